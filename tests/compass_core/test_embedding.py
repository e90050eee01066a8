"""The encoder: loads safely or says why not, and turns equal texts into equal unit vectors."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Pooling,
    StaticEmbedding,
    Transformer,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from compass_core.embedding import (
    Encoder,
    _settle_precision,
    encoder_fingerprint,
    load_encoder,
)
from compass_core.embedding_batches import _batches, encode_texts
from compass_core.errors import DataError, ModelError

WORDS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "rain", "sun", "storm", "goal", "match", "mvua")
TEXTS = ["rain storm", "goal", "sun sun sun rain", "rain storm", "match goal goal", "sun"]


def word_tokenizer():
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module")
def static_folder(tmp_path_factory):
    """A saved static encoder (one vector per word), the kind the starter ships."""
    folder = tmp_path_factory.mktemp("static")
    weights = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(word_tokenizer(), weights)], device="cpu").save(
        str(folder)
    )
    return folder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A saved two-layer transformer encoder with mean pooling, the kind a hub id gives."""
    source, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    BertModel(config).save_pretrained(source)
    PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(),
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(source)
    transformer = Transformer(str(source))
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["static_folder", "bert_folder"])
def test_vectors_have_unit_norm_and_keep_the_order_of_the_texts(kind, request):
    encoder = load_encoder(str(request.getfixturevalue(kind)), device="cpu")
    vectors = encode_texts(encoder, TEXTS, batch_size=2)
    assert vectors.shape == (6, encoder.dimension)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-6)
    assert (vectors[0] == vectors[3]).all()
    one_by_one = np.concatenate([encode_texts(encoder, [text]) for text in TEXTS])
    assert vectors == pytest.approx(one_by_one, abs=1e-5)
    assert (vectors == encode_texts(encoder, TEXTS, batch_size=2)).all()


def test_vectors_equal_those_of_sentence_transformers(bert_folder):
    encoder = load_encoder(str(bert_folder), device="cpu")
    plain = SentenceTransformer(str(bert_folder), device="cpu")
    theirs = plain.encode(TEXTS, normalize_embeddings=True, prompt="mvua ")
    assert encode_texts(encoder, TEXTS, prefix="mvua ") == pytest.approx(theirs, abs=1e-5)
    assert encode_texts(encoder, TEXTS) != pytest.approx(theirs, abs=1e-3)


def test_vectors_do_not_depend_on_order_or_batch_size(bert_folder):
    encoder = load_encoder(str(bert_folder), device="cpu")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[4:], size=n)) for n in rng.integers(1, 30, size=120)]
    vectors = encode_texts(encoder, texts)
    shuffled = rng.permutation(len(texts))
    again = encode_texts(encoder, [texts[row] for row in shuffled], batch_size=1)
    assert again == pytest.approx(vectors[shuffled], abs=1e-5)


def test_batches_hold_every_text_once_within_the_budget_and_with_little_padding():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 40, size=200)
    mask = (torch.arange(40)[None] < torch.tensor(lengths)[:, None]).long()
    features = {"attention_mask": mask, "input_ids": mask * torch.arange(1, 201)[:, None], "p": 3}
    order, batches = _batches(features, 256)
    batches = list(batches)
    ids = torch.cat([batch["input_ids"].max(dim=1).values for batch in batches])
    assert sorted(order) == list(range(200))
    assert (ids.numpy() - 1 == order).all()
    assert max(batch["attention_mask"].numel() for batch in batches) <= 256
    assert {batch["p"] for batch in batches} == {3}
    padded = sum(batch["attention_mask"].numel() for batch in batches)
    assert padded <= 1.1 * lengths.sum() < 0.6 * mask.numel()


def test_a_text_longer_than_the_budget_is_a_batch_of_its_own():
    mask = torch.ones(3, 9, dtype=torch.long)
    _, batches = _batches({"attention_mask": mask, "input_ids": mask}, 4)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(1, 9)] * 3


def test_padding_on_the_left_is_trimmed_on_the_left():
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]])
    _, batches = _batches({"attention_mask": mask, "input_ids": mask * 7}, 64)
    assert next(batches)["input_ids"].tolist() == [[7, 7], [0, 7]]


def test_own_default_prompt_of_the_model_serves_where_no_prefix_is_given(bert_folder, tmp_path):
    folder = copy_tree(bert_folder, tmp_path)
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps(settings | {"prompts": {"query": "goal "}, "default_prompt_name": "query"})
    )
    encoder = load_encoder(str(folder), device="cpu")
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert encode_texts(encoder, TEXTS) == pytest.approx(theirs, abs=1e-5)
    assert encode_texts(encoder, TEXTS, prefix="sun ") != pytest.approx(theirs, abs=1e-3)


def test_model_that_truncates_its_vectors_truncates_them_here(bert_folder, tmp_path):
    folder = copy_tree(bert_folder, tmp_path)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncate_dim": 8}))
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    vectors = encode_texts(load_encoder(str(folder), device="cpu"), TEXTS)
    assert vectors.shape == (6, 8)
    assert vectors == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(dtype, bert_folder):
    exact = load_encoder(str(bert_folder), device="cpu", dtype="float32")
    half = load_encoder(str(bert_folder), device="cpu", dtype=dtype)
    assert half.precision == dtype
    vectors = encode_texts(half, TEXTS)
    assert vectors.dtype == np.float32
    cosines = (vectors * encode_texts(exact, TEXTS)).sum(axis=1)
    assert 0.999 <= cosines.min() < cosines.max() <= 1.0 + 1e-6
    assert (vectors != encode_texts(exact, TEXTS)).any()


def test_automatic_precision_of_a_cpu_is_float32(bert_folder):
    assert load_encoder(str(bert_folder), device="cpu", dtype="auto").precision == "float32"


def test_precision_that_overflows_is_passed_over_for_the_next(bert_folder):
    def load():
        model = load_encoder(str(bert_folder), device="cpu").model
        with torch.no_grad():  # float16 ends at 65,504; the layer norm after it hides the scale
            model[0].auto_model.encoder.layer[0].output.dense.weight.mul_(1e8)
        return model

    wanted = ("float16", "bfloat16")
    assert _settle_precision(load(), wanted, load)[0] == "bfloat16"
    precision, model = _settle_precision(load(), ("float16",), load)
    assert precision == "float32"
    assert next(model.parameters()).dtype == torch.float32
    assert _settle_precision(load(), (), load)[0] == "float32"


def test_equal_texts_reach_the_model_once():
    class Counting:
        seen = 0

        def preprocess(self, inputs, prompt=None):
            self.seen += len(inputs)
            return {"lengths": torch.tensor([float(len(text)) for text in inputs])}

        def __call__(self, features):
            lengths = features["lengths"]
            return {"sentence_embedding": torch.stack([lengths, torch.ones_like(lengths)], dim=1)}

    model = Counting()
    vectors = encode_texts(Encoder("counting", model, 2), ["aa", "b", "aa", "aa"])
    assert model.seen == 2
    assert (vectors[0] == vectors[2]).all()


@pytest.mark.parametrize("kind", ["static_folder", "bert_folder"])
def test_texts_are_cut_at_the_maximum_length(kind, request):
    folder = str(request.getfixturevalue(kind))
    encoder = load_encoder(folder, device="cpu", max_length=4)
    long = "rain sun storm goal " + "match " * 40
    # Special tokens may take part of the length; what lies far beyond it must not matter.
    cut, other = encode_texts(encoder, [long, long + "mvua mvua"])
    assert (cut == other).all()
    assert cut != pytest.approx(encode_texts(load_encoder(folder, device="cpu"), [long])[0])


def test_no_texts_give_no_vectors(static_folder):
    encoder = load_encoder(str(static_folder))
    assert encode_texts(encoder, []).shape == (0, 16)


def test_a_text_without_a_vector_is_named_by_row_and_never_quoted(static_folder):
    encoder = load_encoder(str(static_folder))
    with pytest.raises(DataError, match=r"E30 .* 2 texts \(0-based rows 1, 3\).*are zero"):
        encode_texts(encoder, ["rain", "", "sun", ""])
    with pytest.raises(DataError, match=r"0-based rows 50, 70"):
        encode_texts(encoder, ["rain", "", ""], numbers=np.array([10, 50, 70]))


def test_vectors_that_are_not_finite_are_refused():
    class Broken:
        def preprocess(self, inputs, prompt=None):
            return {"rows": torch.zeros(len(inputs))}

        def __call__(self, features):
            return {"sentence_embedding": torch.full((len(features["rows"]), 2), torch.nan)}

    with pytest.raises(DataError, match="not finite numbers"):
        encode_texts(Encoder("broken", Broken(), 2), ["a"])


def test_a_missing_folder_is_refused_with_advice(tmp_path):
    with pytest.raises(ModelError, match=r"E26 .*does not exist.*fit-encoder"):
        load_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="E26"):
        encoder_fingerprint(str(tmp_path / "nowhere"))


def test_a_folder_that_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"E26 .*neither modules\.json"):
        load_encoder(str(tmp_path))


def copy_tree(folder, target):
    for path in folder.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return target


def test_pickle_weights_are_refused_without_being_opened(static_folder, tmp_path):
    folder = copy_tree(static_folder, tmp_path)
    weights = next(folder.rglob("model.safetensors"))
    weights.with_name("pytorch_model.bin").write_bytes(b"not even a pickle")
    weights.unlink()
    with pytest.raises(ModelError, match=r"E28 .*pytorch_model\.bin.*Pickle weights can run code"):
        load_encoder(str(folder))


def test_stray_training_arguments_beside_safetensors_do_no_harm(static_folder, tmp_path):
    folder = copy_tree(static_folder, tmp_path)
    next(folder.rglob("model.safetensors")).with_name("training_args.bin").write_bytes(b"x")
    assert load_encoder(str(folder)).dimension == 16


def test_remote_code_is_refused(bert_folder, tmp_path):
    folder = copy_tree(bert_folder, tmp_path)
    config = next(folder.rglob("config.json"))
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "x"}})
    )
    with pytest.raises(ModelError, match=r"E27 .*auto_map.*trust_remote_code=False"):
        load_encoder(str(folder))


@pytest.mark.parametrize("kind", ["os.system", "sentence_transformers.models.WordEmbeddings", ""])
def test_modules_that_are_not_known_to_be_harmless_are_refused(kind, static_folder, tmp_path):
    folder = copy_tree(static_folder, tmp_path)
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules[0]["type"] = kind
    path.write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="E27"):
        load_encoder(str(folder))


def test_damaged_weights_are_a_message_and_not_a_traceback(static_folder, tmp_path):
    folder = copy_tree(static_folder, tmp_path)
    weights = next(folder.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(str(folder))


def test_a_hub_id_that_cannot_be_had_lists_the_causes(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"E24 .*misspelt.*gated.*HF_HUB_OFFLINE=1"):
        load_encoder("nobody/no-such-encoder")


def test_fingerprint_follows_the_files_and_not_the_place(static_folder, tmp_path):
    copy = copy_tree(static_folder, tmp_path)
    assert encoder_fingerprint(str(copy)) == encoder_fingerprint(str(static_folder))
    (copy / "README.md").write_text("changed")
    assert encoder_fingerprint(str(copy)) != encoder_fingerprint(str(static_folder))


def test_fingerprint_reads_an_unchanged_folder_once(static_folder, tmp_path, monkeypatch):
    from compass_core import embedding

    copy, read = copy_tree(static_folder, tmp_path), []
    real = embedding.sha256_tree
    monkeypatch.setattr(
        embedding, "sha256_tree", lambda folder: read.append(folder) or real(folder)
    )
    first = encoder_fingerprint(str(copy))
    assert encoder_fingerprint(str(copy)) == first
    assert len(read) == 1
    readme = copy / "README.md"
    readme.write_text("one")
    changed = encoder_fingerprint(str(copy))
    readme.write_text("two")
    os.utime(readme, ns=(1, 1))
    assert len({first, changed, encoder_fingerprint(str(copy))}) == 3, "equal sizes, other time"
    readme.unlink()
    encoder_fingerprint(str(copy))
    assert len(read) == 4


def test_fingerprint_of_a_hub_id_names_the_cached_commit(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert encoder_fingerprint("org/name") == "org/name@main"
    assert encoder_fingerprint("org/name", commit) == f"org/name@{commit}"
    reference = tmp_path / "models--org--name" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(commit)
    assert encoder_fingerprint("org/name") == f"org/name@{commit}"

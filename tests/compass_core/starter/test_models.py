"""The shipped encoder and base: standard formats, small, and as good as claimed."""

import json

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from compass_core import starter
from compass_core.starter.encoder import RECIPE, measure_encoder

MAX_SHIPPED_BYTES = 10 * 1024 * 1024


def _files(path):
    return [file for file in path.rglob("*") if file.is_file()]


def test_shipped_weights_are_safetensors_and_below_ten_megabytes():
    files = _files(starter.encoder_path()) + _files(starter.base_path())
    assert files
    assert sum(file.stat().st_size for file in files) <= MAX_SHIPPED_BYTES
    assert not {file.suffix for file in files} - {".json", ".jinja", ".safetensors", ".md"}


def test_base_is_a_standard_llama_with_chat_template_that_answers_with_a_kind():
    path = starter.base_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert json.loads((path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    row = starter.build_pool(["spa_Latn"])[0]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": row.prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**ids)
    answer = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.strip() in starter.TOPICS


def test_tokenizer_writes_every_script_without_loss():
    tokenizer = AutoTokenizer.from_pretrained(starter.base_path())
    for text in ("Kenya ∈ ?", "ኬንያ", "केनिया", "肯尼亚 한국", "🙂 \u200f\n x"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_encoder_loads_as_plain_sentence_transformer_with_unit_vectors():
    encoder = SentenceTransformer(str(starter.encoder_path()), device="cpu")
    vectors = encoder.encode(["Kenya ∈ ?", "Кенія ∈ ?"])
    assert vectors.shape == (2, RECIPE.dim)
    assert (vectors**2).sum(axis=1) == pytest.approx([1, 1], abs=1e-4)


@pytest.mark.slow
def test_encoder_puts_meaning_before_language_on_held_out_names():
    encoder = SentenceTransformer(str(starter.encoder_path()), device="cpu")
    figures = measure_encoder(encoder)
    assert figures["n_candidates"] >= 200
    assert figures["retrieval_at_1"] >= 0.6
    assert figures["nmi_topic"] >= 0.40
    assert figures["nmi_language"] <= 0.10

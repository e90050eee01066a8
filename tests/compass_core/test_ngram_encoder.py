"""The encoder of hashed character n-grams: features by hand, the fit, the folder it is kept in."""

import json
import math
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from compass_core.embedding import load_encoder
from compass_core.embedding_batches import encode_texts
from compass_core.errors import InputError, ModelError
from compass_core.ngram_encoder import NgramRecipe, features, fit_ngram_encoder
from compass_core.ngram_encoder.features import SIZES, ngram_matrix
from compass_core.ngram_encoder.fitting import fit_table

N_WORDS = 40
RECIPE = NgramRecipe(dim=24, n_bits=14)
ALPHABETS = {"one": "abcdefgh", "two": "klmnopqr", "three": "бвгджзик"}
PROBE = "import runpy, sys; m = runpy.run_path(sys.argv[1])['ngram_matrix']; "


def make_parallel(n, first=0):
    """Return `n` sentences of 6 word concepts; languages share no letters."""
    words = {
        name: [
            "".join(np.random.default_rng([3, w, len(name)]).choice(list(a), 5))
            for w in range(N_WORDS)
        ]
        for name, a in ALPHABETS.items()
    }
    sentences = {}
    for item in range(first, first + n):
        chosen = np.random.default_rng([5, item]).choice(N_WORDS, 6)
        sentences[f"p{item:04}"] = {
            name: " ".join(words[name][w] for w in chosen) for name in words
        }
    return sentences


def slow_ngrams(text):
    """Return the counts of the n-grams of one text, word by word; sizes of `SIZES`."""
    words = unicodedata.normalize("NFKD", text).lower().split()
    grams = {}
    for word in words:
        padded = f" {word} "
        for size in SIZES:
            for start in range(len(padded) - size + 1):
                gram = padded[start : start + size]
                grams[gram] = grams.get(gram, 0) + 1
    return grams


@pytest.fixture(scope="module")
def parallel():
    return make_parallel(120)


@pytest.fixture(scope="module")
def folder(parallel, tmp_path_factory):
    return fit_ngram_encoder(parallel, tmp_path_factory.mktemp("encoder") / "ngrams", recipe=RECIPE)


def test_ngrams_are_those_of_padded_words_with_logarithmic_counts():
    row = ngram_matrix(["ab ab"], 18)
    assert sorted(row.data.tolist()) == pytest.approx([1 + math.log(2)] * 6)
    assert row.nnz == 6  # " a", "ab", "b ", " ab", "ab ", " ab "


@pytest.mark.parametrize("text", ["abc", "Ça va?", "жук и ёж", "हिन्दी भाषा", "中文 字", "a"])
def test_counts_equal_those_of_a_slow_twin(text):
    row = ngram_matrix([text], 22)
    slow = slow_ngrams(text)
    assert row.nnz == len(slow)
    expected = sorted(1 + math.log(count) for count in slow.values())
    assert sorted(row.data.tolist()) == pytest.approx(expected)


def test_same_ngram_has_the_same_bucket_wherever_it_stands():
    together = ngram_matrix(["xyz abc", "abc", "", "abc xyz"], 18)
    alone = ngram_matrix(["abc xyz"], 18)
    assert (together[0] != alone[0]).nnz == 0
    assert (together[3] != alone[0]).nnz == 0
    assert together[2].nnz == 0
    assert set(together[1].indices) <= set(together[0].indices)


def test_case_and_composition_of_accents_do_not_matter():
    first, second = ngram_matrix(["\u00c9T\u00c9"], 18), ngram_matrix(["e\u0301te\u0301"], 18)
    assert (first != second).nnz == 0


def test_long_texts_are_cut_and_lone_surrogates_survive():
    cut = ngram_matrix(["ab" * 50], 18, max_characters=10)
    assert (cut != ngram_matrix(["ab" * 5], 18)).nnz == 0
    assert ngram_matrix(["a\ud800b"], 18).nnz > 0
    assert ngram_matrix([], 18).shape == (0, 2**18)


def test_buckets_are_the_same_in_another_process():
    code = f"{PROBE}print(sorted(m(['Habari ya asubuhi, 中文'], 16).indices.tolist()))"
    told = subprocess.run(
        [sys.executable, "-c", code, features.__file__],
        env={"PYTHONHASHSEED": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    here = sorted(ngram_matrix(["Habari ya asubuhi, 中文"], 16).indices.tolist())
    assert json.loads(told) == here


def test_unseen_translations_find_each_other_far_above_chance(folder):
    held_out = make_parallel(60, first=1_000)
    encoder = load_encoder(str(folder), device="cpu")
    vectors = {
        name: encode_texts(encoder, [texts[name] for texts in held_out.values()])
        for name in ALPHABETS
    }
    for first, second in (("one", "two"), ("one", "three"), ("three", "two")):
        nearest = (vectors[first] @ vectors[second].T).argmax(axis=1)
        found = float(np.mean(nearest == np.arange(60)))
        assert found > 0.6, (first, second, found)  # chance is 1/60


def test_folder_loads_without_foreign_code_and_gives_what_was_fitted(parallel, folder):
    assert not [file for file in folder.rglob("*") if file.suffix in {".py", ".pkl", ".pt", ".bin"}]
    texts = [item["one"] for item in list(parallel.values())[:5]]
    found = encode_texts(load_encoder(str(folder), device="cpu"), texts)
    rows = {name: {key: item[name] for key, item in parallel.items()} for name in sorted(ALPHABETS)}
    direct = ngram_matrix(texts, RECIPE.n_bits) @ fit_table(rows, RECIPE)
    direct /= np.linalg.norm(direct, axis=1, keepdims=True)
    # The table is kept in half precision.
    np.testing.assert_allclose(found, direct, atol=5e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_same_rows_in_any_order_give_the_same_bytes(parallel, folder, tmp_path):
    turned = {key: parallel[key] for key in sorted(parallel, reverse=True)}
    again = fit_ngram_encoder(turned, tmp_path / "again", recipe=RECIPE)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (again / file.relative_to(folder)).read_bytes(), file


def test_an_encoder_that_is_there_is_replaced_as_a_whole(parallel, tmp_path):
    target = tmp_path / "encoder"
    target.mkdir()
    (target / "stale.txt").write_text("old", encoding="utf-8")
    fit_ngram_encoder(parallel, target, recipe=RECIPE)
    assert not (target / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_a_text_does_not_depend_on_the_others_in_its_batch(folder):
    encoder = load_encoder(str(folder), device="cpu")
    texts = [item["two"] for item in make_parallel(7).values()]
    together = encode_texts(encoder, texts)
    alone = np.concatenate([encode_texts(encoder, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("facts", [{"format": 99, "n_bits": 14}, {"format": 1, "n_bits": 3}])
def test_table_of_another_format_is_refused(parallel, tmp_path, facts):
    broken = fit_ngram_encoder(parallel, tmp_path / "encoder", recipe=RECIPE)
    (found,) = broken.rglob("ngrams.json")
    found.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ModelError):
        load_encoder(str(broken), device="cpu")


def test_one_language_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(InputError, match="at least two languages"):
        fit_ngram_encoder({"a": {"one": "b"}, "c": {"one": "d"}}, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()

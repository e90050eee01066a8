"""Fitting an encoder on parallel rows, on a slice of real sentences where the data is there."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from compass_core.encoder_fitting import EncoderRecipe, fit_encoder, measure_encoder
from compass_core.errors import InputError

LANGUAGES = ("en", "fr", "ru", "hi")
SMALL = EncoderRecipe(dim=64, vocab_size=4000, n_steps=20, batch_size=64)


@pytest.fixture(scope="module")
def sentences():
    path = Path(os.environ.get("COMPASS_TEST_DATA", "../shared/data")) / "sib200.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent: set COMPASS_TEST_DATA to the folder of sib200.jsonl.gz")
    texts, topics = {}, {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["language"] in LANGUAGES:
                texts.setdefault(row["parallel_id"], {})[row["language"]] = row["text"]
                topics[row["parallel_id"]] = row["topic"]
    return texts, topics


@pytest.fixture(scope="module")
def parallel():
    words = [f"{a}{b}" for a in ("ka", "mo", "ti", "su") for b in ("ra", "ne", "lo", "pi", "du")]
    return {f"p{i}": {"xx": word, "yy": word.upper() + " q"} for i, word in enumerate(words)}


def test_fitted_encoder_is_a_sentence_transformers_folder_without_pickle(parallel, tmp_path):
    path = fit_encoder(parallel, tmp_path / "encoder", recipe=SMALL)
    assert not [file for file in path.rglob("*") if file.suffix in {".bin", ".pkl", ".pt"}]
    vectors = SentenceTransformer(str(path), device="cpu").encode(["kara", "mone q"])
    assert vectors.shape == (2, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_same_seed_gives_the_same_bytes(parallel, tmp_path):
    first = fit_encoder(parallel, tmp_path / "one", recipe=SMALL, seed=3)
    second = fit_encoder(parallel, tmp_path / "two", recipe=SMALL, seed=3)
    for file in sorted(first.rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (second / file.relative_to(first)).read_bytes(), file


def test_single_language_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(InputError, match="at least two languages"):
        fit_encoder({"a": {"xx": "b"}}, tmp_path / "encoder")


def test_language_with_few_shared_rows_is_named(parallel, tmp_path):
    rows = {key: dict(texts) for key, texts in parallel.items()}
    rows["p0"]["zz"] = "thin"
    with pytest.raises(InputError, match="zz have fewer than"):
        fit_encoder(rows, tmp_path / "encoder", recipe=SMALL)


def test_encoder_fitted_on_sentences_ranks_translations_far_above_chance(sentences, tmp_path):
    texts, topics = sentences
    keys = sorted(texts)
    held_out = {key: texts[key] for key in keys[::4]}
    fitted = {key: texts[key] for key in keys if key not in held_out}
    recipe = EncoderRecipe(dim=128, vocab_size=8000, n_steps=10)
    path = fit_encoder(fitted, tmp_path / "encoder", recipe=recipe)
    encoder = SentenceTransformer(str(path), device="cpu")
    figures = measure_encoder(encoder, held_out, {key: topics[key] for key in held_out})
    assert figures["n_candidates"] >= 200
    assert figures["retrieval_at_1"] >= 0.25
    assert figures["nmi_language"] <= 0.10

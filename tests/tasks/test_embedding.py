"""The stage `embed`, with the shipped encoder: in one go, in parts, by trainers, after damage."""

from __future__ import annotations

import numpy as np
import pytest
from prefect.logging import disable_run_logger

from compass_core.config import EmbeddingConfig, ExecutionConfig
from compass_core.embedding import encoder_fingerprint, load_encoder
from compass_core.embedding_batches import encode_texts
from compass_core.errors import DataError, StoreError
from compass_core.records import Example, examples_to_table
from compass_core.starter import encoder_path
from compass_core.storage import ArtifactStore, read_array, write_table
from tasks import embedding
from tasks.caching import ModelRef
from tasks.compute import close_trainers
from tasks.embedding import embed
from tasks.progress import watch

PLACES = ("Kenya", "日本", "Россия", "مصر", "Brasil")
TEXTS = [f"{PLACES[n % 5]} {n % 37}" for n in range(90)]
HERE = ExecutionConfig(trainers=0)


@pytest.fixture(scope="module")
def encoder():
    path = str(encoder_path())
    return ModelRef(path, encoder_fingerprint(path))


@pytest.fixture(scope="module")
def expected(encoder):
    return encode_texts(load_encoder(encoder.path, device="cpu"), TEXTS)


@pytest.fixture
def store(home):
    return ArtifactStore(home / "store")


@pytest.fixture
def embedded(store, encoder):
    """A function that embeds texts through the stage and returns the vectors."""

    def run(texts, execution=HERE, **settings):
        rows = [
            Example(id=str(n), language="eng_Latn", prompt=text) for n, text in enumerate(texts)
        ]
        key = f"rows-{len(texts)}-{len(set(texts))}"
        with store.build("ingest", key, {}) as draft:
            write_table(draft.folder / "rows.parquet", examples_to_table(rows))
            draft.rows = len(rows)
        with disable_run_logger():
            made = embed.fn(
                language="",
                rows=store.put("ingest", key, draft),
                encoder=encoder,
                config=EmbeddingConfig(**settings),
                execution=execution,
            )
        assert made["rows"] == len(texts)
        return read_array(store.root / made["path"] / "vectors.npy")

    return run


def never(*_):
    raise AssertionError("this must not run")


def partials(store):
    return sorted(path.name for path in (store.root / "partial").glob("*/part-*.npy"))


def test_parts_give_the_vectors_that_one_go_gives(embedded, expected, store):
    whole = embedded(TEXTS)
    assert whole == pytest.approx(expected, abs=1e-6)
    beats = []
    stop = watch(beats.append)
    in_parts = embedded(TEXTS, shard_rows=20, max_length=255)
    stop()
    assert in_parts == pytest.approx(whole, abs=1e-6)
    assert in_parts.dtype == np.float32
    assert not list((store.root / "partial").glob("*"))


def test_trainers_share_the_parts(embedded, expected, store):
    try:
        made = embedded(TEXTS, ExecutionConfig(trainers=2), shard_rows=9)
    finally:
        close_trainers()
    assert made == pytest.approx(expected, abs=1e-6)
    assert not list((store.root / "partial").glob("*"))


def test_empty_corpus_has_no_vectors(embedded):
    assert embedded([]).shape == (0, 0)


def test_failed_run_keeps_its_parts_and_the_next_makes_only_the_rest(
    embedded, expected, store, monkeypatch
):
    assemble = embedding.assemble_job
    monkeypatch.setattr(embedding, "assemble_job", never)
    with pytest.raises(AssertionError, match="must not run"):
        embedded(TEXTS, shard_rows=20)
    assert len(partials(store)) == 5
    # One part is lost, one is damaged; three serve again.
    folder = next((store.root / "partial").iterdir())
    (folder / "part-00001.npy").unlink()
    damaged = folder / "part-00003.npy"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    made = []
    monkeypatch.setattr(embedding, "assemble_job", assemble)
    monkeypatch.setattr(
        "compass_core.embedding_jobs.encode_texts",
        lambda encoder, texts, **options: (
            made.append(len(texts)) or encode_texts(encoder, texts, **options)
        ),
    )
    assert embedded(TEXTS, shard_rows=20) == pytest.approx(expected, abs=1e-6)
    assert made == [20, 20]
    assert not list((store.root / "partial").glob("*"))


def test_text_without_a_vector_is_named_by_its_row_in_the_corpus(embedded):
    texts = [*TEXTS, "", *TEXTS]
    with pytest.raises(DataError, match=r"E30 .* 1 texts \(0-based rows 90\)"):
        embedded(texts, shard_rows=20)


def test_disk_that_loses_parts_is_told_in_words(embedded, monkeypatch):
    monkeypatch.setattr(embedding, "_CLAIM_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(embedding, "parts_job", lambda spec: {})
    with pytest.raises(StoreError, match=r"E29 .*damaged or missing after 2 attempts.*disk"):
        embedded(TEXTS, shard_rows=20)

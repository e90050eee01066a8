"""A pool of files that grows, and one whose vectors rot: only what must be made is made."""

import json

import pytest

from compass_core.config import AdaptConfig
from compass_core.records import ArtifactRef
from compass_core.starter import build_language, build_pool
from compass_core.storage import read_table
from tasks.settings import open_store

pytestmark = pytest.mark.usefixtures("prefect_backend")

KINDS = ("ingest", "embed", "sketch", "assign", "fit", "cluster", "gap-score", "sample", "pool")


def write_rows(path, examples):
    columns = ("id", "language", "prompt", "response", "topic", "source", "licence", "parallel_id")
    lines = [json.dumps({c: getattr(example, c) for c in columns}) for example in examples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Swahili's own corpora, and a pool of three files of which the third comes later."""
    folder = tmp_path_factory.mktemp("corpora")
    own = build_language(
        "swh_Latn", seed=0, n_coverage=60, n_usage=60, n_test=120, n_missing_topics=3
    )
    for role in ("usage", "coverage", "test"):
        path = folder / f"{role}.jsonl"
        rows = []
        for example in getattr(own, role):
            row = {"id": example.id, "language": "swh_Latn", "prompt": example.prompt}
            row |= {"response": example.response, "topic": example.topic}
            if role == "test":
                row |= {"choices": list(example.choices), "answer": example.answer_index}
            rows.append(json.dumps(row))
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    pool = [e for e in build_pool() if e.language not in ("swh_Latn", "eng_Latn")][::20]
    parts = [pool[0::3], pool[1::3], pool[2::3]]
    (folder / "pool").mkdir()
    # A file of which the configuration wants no row at all.
    english = [e for e in build_pool() if e.language == "eng_Latn"][:5]
    write_rows(folder / "pool" / "0.jsonl", english)
    for name, part in zip("ab", parts, strict=False):
        write_rows(folder / "pool" / f"{name}.jsonl", part)
    return folder, parts[2]


def config(folder):
    return AdaptConfig.model_validate(
        {
            "languages": ["sw"],
            "data": {
                "kind": "files",
                **{
                    role: {"path": str(folder / f"{role}.jsonl")}
                    for role in ("usage", "coverage", "test")
                },
                "pool": {"path": str(folder / "pool"), "exclude_languages": ["en"]},
            },
            "clustering": {"n_clusters": [6]},
            "selection": {"budget": 30},
            "execution": {"dry_run": True, "trainers": 0},
        }
    )


def select(folder):
    from flows.adapt_languages import adapt_languages
    from tasks.reporting import last_run_id, read_run

    state = adapt_languages(config(folder), return_state=True)
    assert state.name == "Completed", state.message
    return read_run(last_run_id())["languages"]["swh_Latn"]


def made(kind):
    """Return every artefact of a kind with the time it was made."""
    store = open_store()
    return {
        ref.path: (store.root / ref.path / "MANIFEST.json").stat().st_mtime_ns
        for ref in store.refs(kind)
    }


def test_a_new_file_leaves_what_was_made_of_the_others_as_it_is(corpora, home):
    folder, later = corpora
    first = select(folder)
    before = {kind: made(kind) for kind in KINDS}
    write_rows(folder / "pool" / "c.jsonl", later)
    second = select(folder)
    after = {kind: made(kind) for kind in KINDS}
    for kind in KINDS:
        assert before[kind].items() <= after[kind].items(), f"{kind} was made again"
    new = {kind: len(after[kind]) - len(before[kind]) for kind in KINDS}
    assert {kind: new[kind] for kind in ("ingest", "embed", "sketch", "assign")} == dict.fromkeys(
        ("ingest", "embed", "sketch", "assign"), 1
    )
    assert new["fit"] == 0
    assert new["sample"] == 1
    assert second["artifacts"]["pool"]["rows"] == first["artifacts"]["pool"]["rows"] + len(later)
    chosen = ArtifactRef.from_dict(second["artifacts"]["sample"])
    ids = read_table(open_store().folder(chosen) / "selected.parquet", ["id"])["id"].to_pylist()
    assert set(ids) & {example.id for example in later}, "nothing came from the new file"


def test_rotten_vectors_are_found_by_their_checksum_made_anew_and_never_used(corpora, home):
    folder, _ = corpora
    before = select(folder)
    store = open_store()
    largest = max(store.refs("embed"), key=lambda ref: ref.bytes)
    path = store.root / largest.path / "vectors.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + bytes(4))
    after = select(folder)
    assert path.read_bytes() == whole
    assert after["artifacts"]["sample"] == before["artifacts"]["sample"]


def test_an_id_in_two_files_of_the_pool_is_refused_by_name(corpora, home):
    from flows.adapt_languages import adapt_languages

    folder, later = corpora
    write_rows(folder / "pool" / "c.jsonl", later)
    write_rows(folder / "pool" / "d.jsonl", later[:2])
    try:
        state = adapt_languages(config(folder), return_state=True)
    finally:
        (folder / "pool" / "d.jsonl").unlink()
    assert state.is_failed()
    assert "2 ids are in more than one file of the pool" in state.message
    assert "in c.jsonl and d.jsonl" in state.message

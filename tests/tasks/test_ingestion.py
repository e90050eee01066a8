"""Reading as stages: a shard of the pool is read once, whatever comes and goes beside it."""

import json

import pytest
from prefect import flow

from compass_core.config import CorpusConfig, Recipe
from compass_core.errors import DataError
from compass_core.reading import identity
from compass_core.storage import read_json, read_table
from flows.language_dag import Line, ingest_pool
from tasks.caching import as_ref
from tasks.ingestion import check_corpora, check_pool, check_sources, corpus_config, ingest
from tasks.settings import compass_home, open_store

pytestmark = pytest.mark.usefixtures("home", "prefect_backend")


def write(path, name, count, language="en", **extra):
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [
        {"language": language, "prompt": f"{name} {i}?", "response": f"say {i}", **extra}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "pool" / "a.jsonl", "a", 5)
    write(tmp_path / "pool" / "b.jsonl", "b", 4, language="yo")
    write(tmp_path / "own.jsonl", "own", 3, language="sw")
    return tmp_path


def recipe(pool="pool", **options):
    own = {"path": "own.jsonl"}
    data = {"kind": "files", "usage": own, "test": own, "pool": {"path": pool, **options}}
    return Recipe.model_validate({"data": data})


def read_pool(config, base):
    """Return the artefacts of the pool's shards by label."""
    sources = check_sources.fn(config, str(base)).pool

    @flow(name="reads-the-pool")
    def reading():
        return ingest_pool(Line(""), sources)

    return dict(zip((source.label for source in sources), reading(), strict=True))


def files_of(ref):
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in open_store().folder(ref).iterdir()
    }


def rows_of(ref):
    return read_table(open_store().folder(ref) / "rows.parquet")


def test_a_new_file_is_read_alone_and_the_old_artefacts_stay(folder):
    before = read_pool(recipe(), folder)
    files = {label: files_of(ref) for label, ref in before.items()}
    write(folder / "pool" / "0.jsonl", "new", 2)
    after = read_pool(recipe(), folder)
    assert list(after) == ["0.jsonl", "a.jsonl", "b.jsonl"]
    assert {label: after[label] for label in before} == before
    assert {label: files_of(after[label]) for label in before} == files
    assert rows_of(after["0.jsonl"])["id"].to_pylist() == ["0.jsonl:1", "0.jsonl:2"]
    assert len(open_store().refs("ingest")) == 3


def test_a_file_that_changed_is_read_anew_and_no_other(folder):
    before = read_pool(recipe(), folder)
    write(folder / "pool" / "b.jsonl", "b", 6, language="yo")
    after = read_pool(recipe(), folder)
    assert after["a.jsonl"] == before["a.jsonl"]
    assert after["b.jsonl"].rows == 6


def test_a_file_that_changes_after_the_check_is_not_kept_under_the_old_key(folder):
    source = check_sources.fn(recipe(), str(folder)).pool[0]
    write(folder / "pool" / "a.jsonl", "other", 5)

    @flow(name="reads-late")
    def late():
        return ingest(
            language="", role="pool", corpus=source.corpus, content=source.content, seed=0,
            label=source.label,
        )  # fmt: skip

    with pytest.raises(DataError, match=r"E21 changed since the run began: a\.jsonl"):
        late()
    assert open_store().refs("ingest") == []


def test_a_bad_file_is_named_and_what_was_read_before_it_is_kept(folder):
    write(folder / "pool" / "c.jsonl", "", 1, prompt="")
    with pytest.raises(DataError, match=r"E16 empty text: c\.jsonl:1 prompt"):
        read_pool(recipe(), folder)
    assert [ref.rows for ref in open_store().refs("ingest")].count(4) == 1
    assert not list((open_store().root / "tmp").glob("ingest*"))
    (folder / "pool" / "c.jsonl").unlink()
    assert len(read_pool(recipe(), folder)) == 2


def test_files_without_rows_are_fine_unless_all_are(folder):
    found = read_pool(recipe(exclude_languages=["yo"]), folder)
    assert [ref.rows for ref in found.values()] == [5, 0]
    with pytest.raises(DataError, match="E51 Every file of the pool has no pool rows"):
        read_pool(recipe(exclude_languages=["yo", "en"]), folder)
    with pytest.raises(DataError, match=r"E51 pool/a\.jsonl has no pool rows"):
        read_pool(recipe("pool/a.jsonl", exclude_languages=["en"]), folder)


def test_an_id_in_two_files_is_refused(folder):
    write(folder / "pool" / "a.jsonl", "a", 1, id="x")
    write(folder / "pool" / "b.jsonl", "b", 1, id="x")
    with pytest.raises(DataError, match=r"E17 duplicate ids: 1 ids .*'x' in a\.jsonl and b\.jsonl"):
        read_pool(recipe(), folder)


def test_a_language_needs_another_one_in_any_shard(folder):
    config = recipe()
    pool = list(read_pool(config, folder).values())
    sources = check_sources.fn(config, str(folder))

    @flow(name="checks")
    def checks(language, shards):
        own = {
            role: as_ref(
                ingest(
                    language=language,
                    role=role,
                    corpus=corpus_config(config, role),
                    content=sources.corpora[role],
                    seed=0,
                )
            )
            for role in ("usage", "coverage", "test")
        }
        return check_corpora(language=language, **own, pool=shards)

    with pytest.raises(DataError, match="E47"):  # the test set is the usage sample here
        checks("swh_Latn", pool)
    write(folder / "own.jsonl", "own", 3, language="en")
    sources = check_sources.fn(config, str(folder))
    with pytest.raises(DataError, match="E51 The pool for English has no other language"):
        checks("eng_Latn", pool[:1])


def test_shards_are_checked_against_each_other_once(folder):
    found = read_pool(recipe(), folder)

    @flow(name="checks-again")
    def again():
        return check_pool(shards=found, return_state=True)

    assert again().name == "Cached"


def test_big_files_are_hashed_once(folder, monkeypatch):
    monkeypatch.setattr(identity, "_SETTLED_NS", 0)
    first = check_sources.fn(recipe(), str(folder))
    kept = compass_home() / "store" / "contents.json"
    assert len(read_json(kept)) == 3

    def unread(_file):
        raise AssertionError("hashed again")

    with monkeypatch.context() as patch:
        patch.setattr(identity, "_content", unread)
        assert check_sources.fn(recipe(), str(folder)) == first
    kept.write_text("torn {")
    assert check_sources.fn(recipe(), str(folder)) == first


def test_a_starter_pool_is_one_shard():
    (source,) = check_sources.fn(Recipe(), ".").pool
    assert source.label == ""
    assert not isinstance(source.corpus, CorpusConfig)

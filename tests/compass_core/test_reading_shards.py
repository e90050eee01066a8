"""Pools of many files: one shard per file, the same rows either way, memory that does not grow."""

import gzip
import json
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_core.config import CorpusConfig
from compass_core.config_files import load_config
from compass_core.errors import DataError
from compass_core.reading import (
    check_ids,
    corpus_fingerprint,
    count_rows,
    identity,
    pool_shards,
    read_corpus,
    write_corpus,
)
from compass_core.reading.corpus import CorpusReader
from compass_core.reading.keys import FirstPlaces, id_key
from compass_core.records import EXAMPLE_SCHEMA
from compass_core.selection.drawing import example_keys


def rows(name, count, **extra):
    """Return `count` records without ids that say where they are from."""
    codes = ("sw", "en", "yo")
    return [
        {"language": codes[i % 3], "prompt": f"{name} {i}?", "response": f"say {i}", **extra}
        for i in range(count)
    ]


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture
def pool(tmp_path):
    """A pool of three files, one of them packed, one in a folder of its own."""
    write(tmp_path / "pool" / "a.jsonl", rows("a", 5))
    write(tmp_path / "pool" / "b.jsonl.gz", rows("b", 4))
    write(tmp_path / "pool" / "more" / "a.jsonl", rows("more", 3))
    return tmp_path


def read(config, base, label="", **options):
    given = {"language": None, "role": "pool", "base_folder": base, "label": label} | options
    return read_corpus(config, **given)[0]


def as_shards(config, base):
    return [read(shard.config, base, shard.label) for shard in pool_shards(config, base)]


FORMS = {
    "a folder": "pool",
    "a pattern": "pool/**/*.jsonl*",
    "a list": ("pool/a.jsonl", "pool/b.jsonl.gz", "pool/more/*"),
}


# --------------------------------------------------------------------------- shards
@pytest.mark.parametrize("form", FORMS)
def test_a_pool_is_the_same_rows_whether_it_is_read_as_one_or_as_shards(form, pool):
    config = CorpusConfig(path=FORMS[form])
    together = read(config, pool)
    parts = as_shards(config, pool)
    assert sorted(part.num_rows for part in parts) == [3, 4, 5]
    assert pa.concat_tables(parts).sort_by("id").equals(together.sort_by("id"))
    assert len(set(together["id"].to_pylist())) == 12


def test_ids_and_sources_name_the_file(pool):
    found = read(CorpusConfig(path="pool"), pool)
    assert found["id"].to_pylist()[:6] == [*(f"a.jsonl:{i}" for i in range(1, 6)), "b.jsonl.gz:1"]
    assert found["id"].to_pylist()[-1] == "more/a.jsonl:3"
    assert set(found["source"].to_pylist()) == {"pool"}
    listed = read(CorpusConfig(path=FORMS["a list"]), pool)
    assert set(listed["source"].to_pylist()) == {"a.jsonl", "b.jsonl"}
    assert listed["id"].to_pylist()[-1] == "more/a.jsonl:3"
    assert set(read(CorpusConfig(path="pool", source="web"), pool)["source"].to_pylist()) == {"web"}


@pytest.mark.parametrize("form", ["a folder", "a pattern"])
def test_a_new_file_changes_nothing_about_the_others(form, pool):
    config = CorpusConfig(path=FORMS[form])

    def identities():
        return {
            shard.label: (
                shard.config.key_values(),
                corpus_fingerprint(shard.config, pool),
                read(shard.config, pool, shard.label),
            )
            for shard in pool_shards(config, pool)
        }

    before = identities()
    write(pool / "pool" / "0-first.jsonl", rows("new", 2))
    write(pool / "pool" / "more" / "z.jsonl", rows("z", 2))
    after = identities()
    assert len(after) == len(before) + 2
    assert {label: after[label] for label in before} == before


def test_single_corpora_and_those_with_a_limit_stay_one_shard(pool):
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows("saved", 4)).save_to_disk(str(pool / "saved"))
    for config in (
        CorpusConfig(path="pool/a.jsonl"),
        CorpusConfig(path="saved"),
        CorpusConfig(path="org/set"),
        CorpusConfig(path="pool", limit=2),
    ):
        (shard,) = pool_shards(config, pool)
        assert (shard.config, shard.label) == (config, "")
    assert Counter(read(CorpusConfig(path="pool", limit=2), pool)["language"].to_pylist()) == {
        "swh_Latn": 2, "eng_Latn": 2, "yor_Latn": 2,
    }  # fmt: skip
    assert read(CorpusConfig(path="saved"), pool)["id"].to_pylist()[-1] == "row-4"


def test_a_split_chosen_by_file_names_is_not_asked_of_the_rows(tmp_path):
    for name in ("train-0", "train-1", "test-0"):
        write(tmp_path / "pool" / f"{name}.jsonl", rows(name, 3))
    config = CorpusConfig(path="pool", split="train")
    assert [s.label for s in pool_shards(config, tmp_path)] == ["train-0.jsonl", "train-1.jsonl"]
    assert [part.num_rows for part in as_shards(config, tmp_path)] == [3, 3]


def test_a_split_column_is_asked_of_every_shard_and_may_leave_one_empty(tmp_path):
    write(tmp_path / "pool" / "a.jsonl", rows("a", 3, split="train"))
    write(tmp_path / "pool" / "b.jsonl", rows("b", 3, split="dev"))
    config = CorpusConfig(path="pool", split="train")
    assert [part.num_rows for part in as_shards(config, tmp_path)] == [3, 0]
    with pytest.raises(DataError, match="E25 no split"):
        read(CorpusConfig(path="pool/b.jsonl", split="train"), tmp_path)


def test_a_bad_file_among_many_is_named_with_its_line(pool):
    write(pool / "pool" / "more" / "bad.jsonl", [*rows("x", 2), {"language": "sw", "prompt": ""}])
    shards = {shard.label: shard for shard in pool_shards(CorpusConfig(path="pool"), pool)}
    with pytest.raises(DataError, match=r"E16 empty text: more/bad\.jsonl:3 prompt"):
        read(shards["more/bad.jsonl"].config, pool, "more/bad.jsonl")
    assert read(shards["a.jsonl"].config, pool, "a.jsonl").num_rows == 5


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("pool/*.parquet", "E01 no file matches: 'pool/[*].parquet'.*'pool'"),
        ("pool/a**b", "E01 not a pattern"),
        (("pool/a.jsonl", "pool/more"), r"E02 not a file: 'more' is a folder.*'more/\*'"),
        (("pool/a.jsonl", "pool/c.jsonl"), "E01 file not found: pool/c.jsonl - did you mean"),
        (("pool/a.jsonl", "other/pool/a.jsonl"), "E17 two files are called pool/a.jsonl"),
        (("pool/a.jsonl", "other/b.csv"), "E22 mixed formats: 2 files holds csv and jsonl"),
        (("pool/a.jsonl", "https://host/b.jsonl"), "E45 scheme not allowed"),
    ],
)
def test_places_that_cannot_be_read_say_what_to_change(path, message, pool):
    write(pool / "other" / "pool" / "a.jsonl", rows("b", 1))
    (pool / "other" / "b.csv").write_text("prompt,response\nask,say\n")
    with pytest.raises(DataError, match=message):
        pool_shards(CorpusConfig(path=path), pool)


def test_the_same_file_listed_twice_is_read_once(pool):
    config = CorpusConfig(path=("pool/a.jsonl", "pool/*.jsonl", "pool/../pool/a.jsonl"))
    assert [part.num_rows for part in as_shards(config, pool)] == [5]


def test_a_name_with_brackets_is_taken_as_it_is_written(tmp_path):
    write(tmp_path / "data [v2]" / "a[1].jsonl", rows("a", 3))
    assert read(CorpusConfig(path="data [v2]/a[1].jsonl"), tmp_path).num_rows == 3
    assert read(CorpusConfig(path="data [v2]/*.jsonl"), tmp_path).num_rows == 3


def test_a_list_of_paths_starts_from_the_configuration_files_folder(pool):
    file = pool / "config" / "compass.yaml"
    file.parent.mkdir()
    file.write_text(
        "project: x\nlanguages: [sw]\ndata:\n  usage: {path: ../pool/a.jsonl}\n"
        "  test: {path: ../pool/a.jsonl}\n  pool: {path: [../pool/a.jsonl, '../pool/more/*']}\n"
    )
    found = load_config(file).data.pool
    assert found.paths == (str(pool / "pool" / "a.jsonl"), str(pool / "pool" / "more" / "*"))
    assert sum(part.num_rows for part in as_shards(found, pool)) == 8
    for wrong in ("5", "[]", "[a.jsonl, 3]"):
        file.write_text(file.read_text().replace("[../pool/a.jsonl, '../pool/more/*']", wrong))
        with pytest.raises(Exception, match=r"data\.pool\.path: (give a path|the list of paths)"):
            load_config(file)
        file.write_text(file.read_text().replace(wrong, "[../pool/a.jsonl, '../pool/more/*']"))


# --------------------------------------------------------------------------- batches on disk
@pytest.mark.parametrize("batch_rows", [1, 4, 100])
def test_what_is_written_is_what_is_read_in_row_groups_of_the_size_asked_for(batch_rows, pool):
    config, out = CorpusConfig(path="pool"), pool / "rows.parquet"
    n_rows, notes = write_corpus(
        config, out, language=None, role="pool", base_folder=pool, batch_rows=batch_rows
    )
    table, same_notes = read_corpus(config, language=None, role="pool", base_folder=pool)
    assert (n_rows, notes) == (12, same_notes)
    written = pq.ParquetFile(out)
    assert written.schema_arrow.equals(EXAMPLE_SCHEMA)
    assert written.read().equals(table)
    groups = [written.metadata.row_group(i).num_rows for i in range(written.num_row_groups)]
    assert groups[:-1] == [batch_rows] * (len(groups) - 1)


def test_long_texts_end_a_batch_early(tmp_path):
    write(tmp_path / "x.jsonl", [{"language": "sw", "text": "m" * 1_900_000} for _ in range(20)])
    reader = CorpusReader(CorpusConfig(path="x.jsonl"), None, "pool", tmp_path, "")
    assert [table.num_rows for table in reader.tables()] == [9, 9, 2]


def test_long_rows_of_parquet_are_taken_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("compass_core.reading.tables.BATCH_BYTES", 1_000)
    records = [{"id": i, "language": "sw", "text": f"{i} " + "m" * 300} for i in range(50)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "x.parquet", use_dictionary=False)
    assert read(CorpusConfig(path="x.parquet"), tmp_path)["id"].to_pylist() == [
        str(i) for i in range(50)
    ]


def test_a_duplicate_id_far_away_is_found_with_both_places(tmp_path):
    records = [{"id": f"item-{i}", **row} for i, row in enumerate(rows("a", 20_000))]
    write(tmp_path / "x.jsonl", [*records, records[7]])
    with pytest.raises(DataError, match=r"E17 duplicate id \(also at x\.jsonl:8\): x\.jsonl:20001"):
        write_corpus(
            CorpusConfig(path="x.jsonl"), tmp_path / "out", language=None, role="pool",
            base_folder=tmp_path,
        )  # fmt: skip


def test_a_column_of_other_things_than_languages_is_refused_early(tmp_path):
    records = [{**row, "language": f"xx-{i}"} for i, row in enumerate(rows("a", 300))]
    write(tmp_path / "x.jsonl", [*rows("a", 3), *records])
    for options in ({}, {"bad_rows": "skip"}):
        with pytest.raises(DataError, match=r"E43 not a column of languages.*201 .* line 204,"):
            read(CorpusConfig(path="x.jsonl", **options), tmp_path)
    write(tmp_path / "x.jsonl", [*records[:50], *rows("a", 3)])
    assert read(CorpusConfig(path="x.jsonl", bad_rows="skip"), tmp_path).num_rows == 3


@pytest.mark.slow
def test_a_pool_of_200_thousand_rows_is_read_in_memory_that_does_not_grow(tmp_path):
    """Twice the rows may cost the 16 bytes of an id's slot each, and noise; not their texts."""
    peaks = []
    for count in (100_000, 200_000):
        with (tmp_path / "x.jsonl").open("w") as stream:
            for index in range(count):
                record = {"id": f"item-{index}", "language": "sw", "prompt": f"ask {index}"}
                stream.write(json.dumps(record | {"response": f"{index} say " * 40}) + "\n")
        command = [sys.executable, "-c", _MEASURE, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        n_rows, peak = map(int, done.stdout.split())
        assert n_rows == count
        peaks.append(peak)
    assert max(peaks) < 300 * 2**20
    assert peaks[1] - peaks[0] < 40 * 2**20, [peak >> 20 for peak in peaks]


_MEASURE = """
import sys
from pathlib import Path
from compass_core.config import CorpusConfig
from compass_core.reading.corpus import CorpusReader
from compass_core.records import EXAMPLE_SCHEMA
from compass_core.storage import write_tables

def anonymous():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

def watched(tables):
    for table in tables:
        peaks.append(anonymous())
        yield table

peaks = []
folder = Path(sys.argv[1])
reader = CorpusReader(CorpusConfig(path="x.jsonl"), None, "pool", folder, "")
n_rows = write_tables(folder / "out.parquet", watched(reader.tables()), EXAMPLE_SCHEMA)
print(n_rows, max(peaks))
"""


# --------------------------------------------------------------------------- keys, counts, identity
@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.integers(1, 150))
def test_first_places_are_those_a_dictionary_would_keep(keys, copies):
    table, known = FirstPlaces(), {}
    spread = [(key + 4096 * copy) % 2**64 for copy in range(copies) for key in keys]
    for place, key in enumerate(spread + spread[:20]):
        assert table.add(key, place) == known.get(key or 1)
        known.setdefault(key or 1, place)


def test_keys_of_ids_are_those_of_the_draw():
    names = ["a", "wiki/a.jsonl:7", "ሰላም"]
    assert [id_key(name) for name in names] == example_keys(names).tolist()


def shard(folder, name, ids, **changes):
    row = dict.fromkeys(EXAMPLE_SCHEMA.names, "") | {"history": [], "choices": []} | changes
    table = pa.Table.from_pylist(
        [row | {"id": i, "answer_index": None} for i in ids], schema=EXAMPLE_SCHEMA
    )
    pq.write_table(table, folder / name)
    return name, folder / name


def test_ids_in_two_shards_are_found_and_shown(tmp_path):
    one = shard(tmp_path, "one", [f"x{i}" for i in range(1_000)])
    two = shard(tmp_path, "two", [f"y{i}" for i in range(1_000)])
    check_ids([])
    check_ids([one, two, shard(tmp_path, "empty", [])])
    three = shard(tmp_path, "three", ["z", "y7", "x\u202e1", "x5"])
    with pytest.raises(DataError, match=r"E17 duplicate ids: 2 ids .*'(y7|x5)' in (one|two) and t"):
        check_ids([one, two, three])


def test_rows_are_counted_by_the_columns_asked_for(tmp_path):
    one = shard(tmp_path, "one", "abc", language="swh_Latn", licence="MIT")[1]
    two = shard(tmp_path, "two", "de", language="swh_Latn")[1]
    assert count_rows([one, two], ["language"]) == {("swh_Latn",): 5}
    assert count_rows([one, two], ["language", "licence"]) == {
        ("swh_Latn", "MIT"): 3,
        ("swh_Latn", ""): 2,
    }


def test_a_file_that_is_as_it_was_is_not_hashed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_SETTLED_NS", 0)
    config, known = CorpusConfig(path="x.jsonl"), {}
    file = write(tmp_path / "x.jsonl", rows("a", 3))
    plain = corpus_fingerprint(config, tmp_path)
    assert corpus_fingerprint(config, tmp_path, known) == plain
    (place,) = known
    known[place] = "what was found before"
    remembered = corpus_fingerprint(config, tmp_path, known)
    assert remembered != plain
    write(file, rows("b", 3))
    changed = corpus_fingerprint(config, tmp_path, known)
    assert changed == corpus_fingerprint(config, tmp_path) != remembered


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    write(tmp_path / "x.jsonl", rows("a", 3))
    known = {}
    corpus_fingerprint(CorpusConfig(path="x.jsonl"), tmp_path, known)
    assert known == {}

"""Rows and texts leave files of every kind, and nothing else does."""

import html
import json
import sqlite3

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.errors import StoreError
from compass_core.forgotten import Forgotten
from compass_core.redaction import (
    Needles,
    copy_without,
    file_holds,
    id_columns,
    redact_file,
    redact_sqlite,
    sqlite_cells,
)

LONG = 'Eleza "twiga" kwa ufupi, tafadhali:\n<b>mnyama</b> mrefu kuliko wote duniani'
ROWS = pa.table(
    {
        "id": ["a-1", "a-2", "a-3", "a-4"],
        "prompt": ["one", LONG, "three", "four"],
        "parallel_id": ["a-2", "", "", ""],
    }
)


def test_rows_are_found_by_columns_that_name_rows_alone():
    assert id_columns(ROWS.schema) == ["id"]
    assert Needles(["a-2"]).mask(ROWS).tolist() == [False, True, False, False]
    assert not Needles(["a-9"]).mask(ROWS).any()
    other = pa.table({"other_id": pa.array(["x", "a-2"]).dictionary_encode(), "n": [1, 2]})
    assert Needles(["a-2"]).mask(other).tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("row-12 and row-123", "[removed] and row-123"),
        ('{"id": "row-12"}', '{"id": "[removed]"}'),
        ("xrow-12 row-12-b row-12.", "xrow-12 row-12-b [removed]."),
        ("<td>row-12</td>", "<td>[removed]</td>"),
    ],
)
def test_id_counts_where_it_stands_by_itself(text, redacted):
    assert Needles(["row-12"]).redact(text.encode()).decode() == redacted


def test_short_id_counts_only_as_a_whole_value():
    needles = Needles(["7"])
    assert needles.redact(b'{"id": "7", "n": 7, "x": "17 7"}') == (
        b'{"id": "[removed]", "n": 7, "x": "17 7"}'
    )


@pytest.mark.parametrize("record_id", ["4000", "12", "2026", "-7.5", "1e-05", "NaN", "true"])
def test_id_that_is_a_number_touches_no_number_and_breaks_no_json(record_id):
    facts = (
        f'{{"n_prompts": {record_id}, "p": [{record_id}, 0.{record_id}], "rows": -{record_id},\n'
        f' "by_cluster": {{"{record_id}": {record_id}}}, "note": "all {record_id} of them"}}'
    ).encode()
    needles = Needles([record_id])
    assert not needles.in_bytes(facts)
    assert not needles.in_bytes(f"budget: {record_id}\n<td>{record_id}</td>".encode())
    row = {"id": record_id, "n": 4000, "inner": json.dumps({"id": record_id})}
    found = json.loads(needles.redact(json.dumps(row).encode()))
    assert found == {"id": "[removed]", "n": 4000, "inner": '{"id": "[removed]"}'}
    escaped = html.escape(json.dumps({"id": record_id})).encode()
    assert html.unescape(needles.redact(escaped).decode()) == '{"id": "[removed]"}'


def test_artefact_with_a_count_that_equals_an_id_stays_as_it_is(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    pq.write_table(pa.table({"id": ["3999", "4000"]}), source / "rows.parquet")
    (source / "facts.json").write_text('{"budget": 4000, "first": "4000"}')
    (source / "counts.json").write_text('{"rows": 4000}')
    assert not file_holds(source / "counts.json", Needles(["4000"]))
    assert copy_without(source, target, Needles(["4000"])).tolist() == [1]
    assert json.loads((target / "facts.json").read_text()) == {
        "budget": 4000,
        "first": "[removed]",
    }


@pytest.mark.parametrize(
    "written",
    [
        LONG, json.dumps(LONG), json.dumps(LONG, ensure_ascii=False), html.escape(LONG),
        html.escape(json.dumps(LONG)), json.dumps({"text": LONG[:60] + "…"}),
    ],
)  # fmt: skip
def test_text_of_a_row_is_found_however_it_is_written_or_cut(written):
    needles = Needles(["a-2"], [LONG])
    assert needles.in_bytes(written.encode())
    assert b"twiga" not in needles.redact(written.encode())


def test_short_texts_are_left_alone():
    assert not Needles(["a-2"], ["yes", "territory"]).in_bytes(b'{"answer": "territory"}')


@given(st.text(min_size=16, max_size=80), st.text(max_size=20), st.text(max_size=20))
def test_redacted_json_stays_json_without_the_text(text, before, after):
    needles = Needles(["some-id"], [text])
    for ascii_only in (True, False):
        value = {"a": before + "|", "b": text, "c": ["|" + after, 1]}
        data = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace")
        if not text.isprintable():
            continue
        found = json.loads(needles.redact(data))
        assert found["c"][1] == 1
        assert text not in found["b"]


def test_copy_of_an_artefact_loses_the_same_rows_everywhere(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    target.mkdir()
    pq.write_table(ROWS, source / "rows.parquet")
    pq.write_table(pa.table({"id": ["a-2", "b"], "n": [1, 2]}), source / "sub" / "other.parquet")
    np.save(source / "cluster_ids.npy", np.arange(4))
    np.save(source / "centroids.npy", np.ones((7, 2)))
    (source / "notes.json").write_text('["a-2", "a-3"]')
    (source / "weights.safetensors").write_bytes(b"a-2")
    gone = copy_without(source, target, Needles(["a-2"]))
    assert gone.tolist() == [1]
    assert pq.read_table(target / "rows.parquet")["id"].to_pylist() == ["a-1", "a-3", "a-4"]
    assert pq.read_table(target / "sub" / "other.parquet")["n"].to_pylist() == [2]
    assert np.load(target / "cluster_ids.npy").tolist() == [0, 2, 3]
    assert np.load(target / "centroids.npy").shape == (7, 2)
    assert json.loads((target / "notes.json").read_text()) == ["[removed]", "a-3"]
    assert (target / "weights.safetensors").read_bytes() == b"a-2"


def test_file_is_rewritten_only_where_it_holds_something(tmp_path):
    table, text = tmp_path / "t.parquet", tmp_path / "t.json"
    pq.write_table(ROWS, table)
    text.write_text('"nothing"')
    before = text.stat().st_mtime_ns
    needles = Needles(["a-2"])
    assert redact_file(table, needles)
    assert not redact_file(table, needles)
    assert not redact_file(text, needles)
    assert text.stat().st_mtime_ns == before
    assert not file_holds(table, needles)


def test_cells_of_a_database_are_redacted_and_the_old_bytes_are_gone(tmp_path):
    path = tmp_path / "x.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute('CREATE TABLE "odd name" (id INTEGER PRIMARY KEY, message TEXT, data BLOB)')
    rows = [(f"about row-123456 and {n}", b"row-123456" if n == 3 else None) for n in range(5)]
    connection.executemany('INSERT INTO "odd name" (message, data) VALUES (?, ?)', rows)
    connection.execute('INSERT INTO "odd name" (message) VALUES (?)', ["row-1234567"])
    connection.commit()
    connection.close()
    needles = Needles(["row-123456"])
    assert sqlite_cells(path, needles) == 6
    assert redact_sqlite(path, needles) == 6
    assert redact_sqlite(path, needles) == 0
    for file in tmp_path.iterdir():
        assert b"row-123456 " not in file.read_bytes()
    with sqlite3.connect(path) as again:
        messages = [row[0] for row in again.execute('SELECT message FROM "odd name"')]
    assert messages == [f"about [removed] and {n}" for n in range(5)] + ["row-1234567"]


def test_list_of_forgotten_ids_holds_hashes_alone(tmp_path):
    forgotten = Forgotten(tmp_path, {})
    assert forgotten.test() is None
    assert forgotten.add(["row-1", "row-2"]) == 2
    assert forgotten.add(["row-2", "row-3"]) == 1
    assert "row" not in forgotten.path.read_text()
    covers = Forgotten(tmp_path, {}).test()
    assert [covers(text) for text in ("row-1", "row-3", "row-4")] == [True, True, False]
    rows = pa.table({"id": ["row-1", "row-9"]})
    assert forgotten.without(rows)["id"].to_pylist() == ["row-9"]


def test_damaged_list_of_forgotten_ids_stops_everything(tmp_path):
    (tmp_path / "forgotten").write_text("no hash\n")
    with pytest.raises(StoreError, match="would come back"):
        Forgotten(tmp_path, {}).test()


def test_rows_with_a_forgotten_id_are_passed_over_when_a_corpus_is_read(tmp_path):
    from compass_core.config import CorpusConfig
    from compass_core.reading import read_corpus

    path = tmp_path / "pool.jsonl"
    rows = [{"prompt": f"swali {n}", "response": "ndiyo", "language": "sw"} for n in range(4)]
    path.write_text("".join(json.dumps({"id": n, **row}) + "\n" for n, row in enumerate(rows)))
    settings = {"language": None, "role": "pool", "base_folder": tmp_path}
    config = CorpusConfig(path="pool.jsonl")
    table, _ = read_corpus(config, forgotten={"2"}.__contains__, **settings)
    assert table["id"].to_pylist() == ["0", "1", "3"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table, _ = read_corpus(config, forgotten={"row-2"}.__contains__, **settings)
    assert table["id"].to_pylist() == ["row-1", "row-3", "row-4"]

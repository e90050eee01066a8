"""Bad input: every fault has its code, its place and advice, and never a traceback."""

import gzip
import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compass_core.config import CorpusConfig
from compass_core.errors import CompassError, DataError, TransientError
from compass_core.reading import read_corpus
from compass_core.reading.lines import MAX_LINE_BYTES
from compass_core.records import EXAMPLE_SCHEMA

GOOD = '{"id": "g", "language": "sw", "prompt": "ask", "response": "say"}'


def read(path, role="pool", target=None, **options):
    config = CorpusConfig(path=path.name, **options)
    return read_corpus(config, language=target, role=role, base_folder=path.parent)


def refusal(path, role="pool", target=None, **options):
    """Return the message of the refusal of `path`."""
    names = sorted(p.name for p in path.parent.iterdir()) if path.parent.exists() else []
    with pytest.raises(CompassError) as caught:
        read(path, role, target, **options)
    if path.parent.exists():
        assert sorted(p.name for p in path.parent.iterdir()) == names, "something was written"
    message = str(caught.value)
    assert message.startswith(caught.value.code)
    assert all(line.isprintable() for line in message.split("\n"))
    assert len(message) < 8_000
    return message


def lines(tmp_path, *rows, name="x.jsonl"):
    path = tmp_path / name
    data = b"\n".join(row.encode() if isinstance(row, str) else row for row in rows)
    path.write_bytes(data + b"\n")
    return path


def row(**values):
    return json.dumps({"language": "sw", "prompt": "ask", "response": "say", **values})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, '{"language": "sw", "prompt": "as'], "E04 not valid JSON (unexpected end)"),
        ([GOOD, "{'language': 'sw'}"], "E04 not valid JSON"),
        ([GOOD, b'{"language": "sw", "prompt": "\xff"}'], "E05 not UTF-8: x.jsonl:2 byte 31"),
        ([GOOD, row(prompt="\ud800x")], "E06 invalid Unicode: x.jsonl:2 prompt got U+D800"),
        ([GOOD, row(prompt="a\0b")], "E07 control character: x.jsonl:2 prompt got U+0000"),
        ([GOOD, '{"language": "sw", "prompt": "a\x01b"}'], "E07 control character: x.jsonl:2"),
        ([GOOD, '{"language": "sw", "prompt": NaN}'], "E08 not a finite number: x.jsonl:2 got NaN"),
        ([GOOD, '{"language": "sw", "prompt": -Infinity}'], "E08 not a finite number"),
        ([GOOD, '{"language": "sw", "prompt": 1e999}'], "E08 not a finite number"),
        ([GOOD, '{"prompt": "a", "prompt": "b"}'], "E09 key given twice: x.jsonl:2 got 'prompt'"),
        ([f"[{GOOD}]"], "E10 this is a JSON array: x.jsonl:1 - set `format: json`"),
        ([GOOD, "[1]"], "E11 a record must be an object: x.jsonl:2 got a list of 1"),
        ([GOOD, "7"], "E11 a record must be an object: x.jsonl:2 got 7"),
        ([GOOD, row(prompt=7)], "E11 not a text: x.jsonl:2 prompt got 7"),
        ([row(id=1), row(id="b")], "E11 int in x.jsonl:1, str here: x.jsonl:2 id got 'b'"),
        ([row(id=123456789012345678901234567890)], "E12 id too large for int64: x.jsonl:1 id"),
        ([GOOD, '{"a": ' + "9" * 5000 + "}"], "E12 integer too large: x.jsonl:2"),
        ([GOOD, '{"a": ' + "[" * 65 + "]" * 65 + "}"], "E13 nesting deeper than 64: x.jsonl:2"),
        ([GOOD, "[" * 20_000 + "]" * 20_000], "E13 nesting deeper than 64: x.jsonl:2"),
        ([GOOD, '{"a":' * 100_000], "E13 nesting deeper than 64: x.jsonl:2"),
        ([GOOD, row(prompt=None)], "E16 empty text: x.jsonl:2 prompt got null"),
        ([GOOD, row(prompt="")], "E16 empty text: x.jsonl:2 prompt got ''"),
        ([GOOD, row(prompt=" \u3000")], "E16 empty text: x.jsonl:2 prompt"),
        ([GOOD, '{"language": "sw", "response": "say"}'], "E16 empty text: x.jsonl:2 prompt"),
        ([GOOD, GOOD], "E17 duplicate id (also at x.jsonl:1): x.jsonl:2 id got 'g'"),
        (["<!DOCTYPE html><html>"], "E18 looks like HTML, not JSONL: x.jsonl:1"),
        ([GOOD, row(id="n", language="tlhIngan")], "E43 unknown language: x.jsonl:2 language"),
        ([GOOD, row(id="n", language=None)], "E43 unknown language: x.jsonl:2 language got None"),
        ([GOOD, row(id="n", language=["sw"])], "E43 unknown language"),
        ([GOOD, row(id=None)], "E15 no id: x.jsonl:2 id got None"),
        ([GOOD, row(id={"a": 1})], "E15 no id: x.jsonl:2 id got an object of 1"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_code_file_line_and_field(rows, message, tmp_path):
    assert message in refusal(lines(tmp_path, *rows))


def test_every_bad_row_is_counted_and_the_first_twenty_are_shown(tmp_path):
    rows = [row(id=i, prompt="" if i % 2 else "ask") for i in range(100)]
    message = refusal(lines(tmp_path, "{", *rows, GOOD.replace('"g"', "8")))
    assert message.startswith("E04 x.jsonl has 52 problems (E04 × 1, E16 × 50, E17 × 1):")
    assert message.count("E16 empty text") == 19
    assert "… and 32 more" in message
    assert "bad_rows: skip" in message


def test_data_cannot_forge_lines_of_a_message(tmp_path):
    message = refusal(lines(tmp_path, GOOD, row(id="g\nE99 forged", language="x\nE98 forged")))
    assert not any(line.startswith("E98") for line in message.split("\n"))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "E03 file is empty"),
        (b"\n \n\n", "E03 no records"),
        (b"\xef\xbb\xbf", "E03 no records"),
        ("\ufeff".encode("utf-16"), "E05 encoding UTF-16"),
        (GOOD.encode("utf-16-le"), "E05 encoding UTF-16"),
        (GOOD.encode("utf-16"), "E05 encoding UTF-16"),
        (b"PK\x03\x04rest of an archive", "E18 not jsonl: x.jsonl is a zip archive"),
        (b"\x1f\x8b\x08\x00garbage", "E19 damaged gzip file: x.jsonl"),
        (gzip.compress(GOOD.encode() * 100)[:40], "E19 damaged gzip file: x.jsonl"),
    ],
)
def test_a_file_that_is_something_else_is_named(data, code, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    assert code in refusal(path)


def test_a_missing_file_lists_its_neighbours(tmp_path):
    lines(tmp_path, GOOD, name="train.jsonl")
    assert "E01 file not found: trian.jsonl - did you mean train.jsonl?" in refusal(
        tmp_path / "trian.jsonl"
    )
    assert "E01 file not found" in refusal(tmp_path / "no" / "such.jsonl")


@pytest.mark.parametrize(
    "place", ["", " ", "a\0b", "a\nE99 forged", "x" * 5000, "../" * 50 + "no.csv"]
)
def test_a_hostile_path_is_a_file_that_is_not_there(place, tmp_path):
    with pytest.raises(DataError, match="E01 file not found") as caught:
        read_corpus(CorpusConfig(path=place), language=None, role="pool", base_folder=tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_an_odd_file_name_is_only_a_name(tmp_path):
    for name in ("a'b;c.jsonl", "100%.jsonl", "[x]*?.jsonl", "\N{GRINNING FACE}.jsonl"):
        table, _ = read(lines(tmp_path, GOOD, name=name))
        assert table["source"].to_pylist() == [name]


def test_a_folder_without_data_and_a_pipe_are_refused_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "E02 no data files" in refusal(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "E02 not a regular file" in refusal(tmp_path / "pipe.jsonl")


@pytest.mark.parametrize(
    "place", ["http://169.254.169.254/x", "https://host/a.jsonl", "file:///etc/passwd", "s3://b/k"]
)
def test_a_url_is_never_opened(place, tmp_path):
    with pytest.raises(DataError, match="E45 scheme not allowed"):
        read_corpus(CorpusConfig(path=place), language=None, role="pool", base_folder=tmp_path)


def test_a_line_beyond_the_limit_is_skipped_without_keeping_it(tmp_path):
    long = row(prompt="x" * MAX_LINE_BYTES)
    assert "E14 line longer than 10 MB: x.jsonl:2" in refusal(lines(tmp_path, GOOD, long))


def test_a_gzip_bomb_stops_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("compass_core.reading.lines.FREE_EXPANSION_BYTES", 2**20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 2**24))
    started = time.monotonic()
    assert "E19 expands beyond the limit: bomb.jsonl.gz" in refusal(path)
    path.write_bytes(gzip.compress((GOOD + "\n").encode() * 60_000))
    assert "E19 expands beyond the limit" in refusal(path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[{GOOD}, {GOOD[:20]}", "E04 not valid JSON"),
        (f"[{GOOD}", "E04 not valid JSON (a comma or ] is missing)"),
        (f"[{GOOD},", "E04 not valid JSON (unexpected end)"),
        (f"[{GOOD}] x", "E04 not valid JSON (text after the array)"),
        (f"[\n{GOOD},\n[]]", "E11 a record must be an object: x.json:3"),
        (f'[\n{GOOD},\n{{"a": 1, "a": 2}}]', "E09 key given twice: x.json:3 got 'a'"),
        (f'[{GOOD}, {{"a": ' + "[" * 70 + "]" * 70 + "}]", "E13 nesting deeper than 64"),
        ("[" * 100_000, "E13 nesting deeper than 64"),
        ("[]", "E03 no records"),
        (f"[{GOOD}, NaN]", "E08 not a finite number"),
    ],
)
def test_a_json_array_is_read_as_strictly(text, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text, "utf-8")
    assert message in refusal(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "E03"),
        ("\n\n", "E03 no header"),
        ("language,prompt,response\n", "E03 no records"),
        ("language,prompt,prompt\nsw,a,b\n", "E09 column named twice"),
        ("language,prompt,response\nsw,a\n", "E04 2 fields where the header has 3: x.csv:2"),
        ('language,prompt,response\nsw,"a,b\n', "E04 not valid CSV"),
        ("language,prompt,response\nsw,a\0,b\n", "E07 control character: x.csv:2"),
        ("<html>", "E18 looks like HTML"),
        ("language,prompt,response\nsw,,b\n", "E16 empty text: x.csv:2 prompt got ''"),
    ],
)
def test_a_bad_csv_is_named_by_line(text, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text, "utf-8")
    assert message in refusal(path)


def test_bad_parquet_files_are_named_not_dumped(tmp_path):
    good = tmp_path / "good.parquet"
    table = pa.Table.from_pylist([json.loads(GOOD)])
    pq.write_table(table, good)
    bad = tmp_path / "bad.parquet"
    for data in (b"", b"PAR1", good.read_bytes()[:-6], b"PAR1" + b"\xff" * 100 + b"PAR1", b"a,b\n"):
        bad.write_bytes(data)
        assert refusal(bad)[:3] in ("E03", "E20")
    pq.write_table(table.slice(0, 0), bad)
    assert "E03 no records" in refusal(bad)
    pq.write_table(table.drop_columns(["prompt"]), bad)
    assert "E15 the prompt missing" in refusal(bad)
    assert "columns found: id, language, response" in refusal(bad)


def test_parts_with_other_columns_are_refused_by_name(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    pq.write_table(pa.table({"id": [1], "prompt": ["a"]}), folder / "a.parquet")
    pq.write_table(pa.table({"id": ["1"], "prompt": ["a"]}), folder / "b.parquet")
    message = refusal(folder)
    assert "E22 schemas differ: column 'id' is int64 in a.parquet, string in b.parquet" in message
    (folder / "c.csv").write_text("a\n1\n")
    assert "E22 mixed formats" in refusal(folder)


def test_a_saved_dataset_cannot_point_outside_its_folder(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))
    (tmp_path / "x.arrow").write_bytes(b"x")
    assert "E20 not a valid datasets folder" in refusal(folder)


def test_a_missing_column_lists_those_there_are(tmp_path):
    path = lines(tmp_path, GOOD)
    message = refusal(path, columns={"prompt": "promt"})
    assert "E15 column 'promt' missing" in message
    assert "columns found: id, language, prompt, response" in message
    assert "did you mean 'prompt'?" in message
    assert "E15" in refusal(path, where={"grade": 1})
    assert "E15" in refusal(path, response_template="{answer}")
    bare = lines(tmp_path, '{"a": "x", "language": "sw"}', name="y.jsonl")
    assert "E15 the prompt and the response missing: y.jsonl" in refusal(bare)
    assert "E15 the prompt missing: y.jsonl" in refusal(bare, "usage")


def test_an_answer_that_is_no_option_is_refused(tmp_path):
    for answer in (4, -1, "E", "maybe", None, True, [0]):
        path = lines(tmp_path, json.dumps(
            {"language": "sw", "question": "q", "choices": ["a1", "b1"], "answer": answer}
        ))  # fmt: skip
        assert "E16 right answer is none of the 2 options: x.jsonl:1 answer" in refusal(
            path, "test"
        )
    path = lines(
        tmp_path, json.dumps({"language": "sw", "question": "q", "choices": "a1", "answer": 0})
    )
    assert "E11 no list of options" in refusal(path, "test")


@pytest.mark.parametrize(
    "messages",
    ["text", [], [1], [{"role": "tool", "content": "x"}], [{"role": "user", "content": ""}],
     [{"role": "assistant", "content": "x"}], [{"role": "user", "content": "x"}], {"role": "user"}],
)  # fmt: skip
def test_a_chat_that_is_none_is_refused(messages, tmp_path):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    good = json.dumps({"language": "sw", "messages": chat})
    message = refusal(lines(tmp_path, good, json.dumps({"language": "sw", "messages": messages})))
    assert message[:3] in ("E11", "E16")
    assert "x.jsonl:2 messages" in message


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = lines(tmp_path, *[row() for _ in range(5)])
    from compass_core.reading import opening

    original = opening.read_jsonl

    def growing(file, problems, notes):
        for number, values in original(file, problems, notes):
            with path.open("ab") as stream:
                stream.write(b"\n")
            os.utime(path, ns=(1, number))
            yield number, values

    monkeypatch.setattr(opening, "read_jsonl", growing)
    with pytest.raises(DataError, match="E21 changed while it was read"):
        read(path)


# --------------------------------------------------------------------------- hub
def test_an_unreachable_hub_is_named_with_three_causes_and_quickly(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://no-such-host.invalid")
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    with pytest.raises(DataError, match="E24 not reachable: org/set") as caught:
        read_corpus(CorpusConfig(path="org/set"), language=None, role="pool", base_folder=tmp_path)
    message = str(caught.value)
    assert all(cause in message for cause in ("misspelt", "gated", "HF_HUB_OFFLINE"))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), DataError, "E23"),
        (ValueError("Unknown split \"x\". Should be one of ['dev', 'test']."), DataError, "E25"),
        (ValueError("BuilderConfig 'xx' not found. Available: ['en']"), DataError, "E25"),
        (ConnectionError("Couldn't reach 'a/b' (OfflineModeIsEnabled)"), DataError, "E24"),
        (TimeoutError("slow"), TransientError, "E24"),
        (KeyError("surprise"), DataError, "E24"),
    ],
)  # fmt: skip
def test_errors_of_the_hub_are_translated(error, kind, code, tmp_path, monkeypatch):
    import datasets

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr("compass_core.reading.tables._check_reachable", lambda hub: None)
    with pytest.raises(kind) as caught:
        read_corpus(CorpusConfig(path="org/set"), language=None, role="pool", base_folder=tmp_path)
    assert caught.value.code == code


# --------------------------------------------------------------------------- garbage
FIXTURE = [HealthCheck.function_scoped_fixture]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = st.sampled_from(
    ["id", "language", "prompt", "response", "text", "messages", "choices", "answer", "split", "x"]
)
VALUES = JSON_VALUES | st.sampled_from(["sw", "en", "ask", "say", ["a", "b"], 0, "A"])
ROWS = st.dictionaries(KEYS, VALUES, max_size=6).map(json.dumps)
JUNK = st.text(max_size=20) | st.sampled_from(["{", "[", '{"prompt": NaN}', "null", "\ud800", GOOD])
LINES = st.lists(ROWS | JUNK | st.just(GOOD), max_size=6)


def check_outcome(path, role, **options):
    """Read; the outcome must be a valid table or one of our errors."""
    try:
        table, notes = read(path, role, **options)
    except CompassError:
        return
    table.validate(full=True)
    assert table.schema.equals(EXAMPLE_SCHEMA)
    assert all(isinstance(note, str) for note in notes)
    for example in table.to_pylist():
        assert example["prompt"].strip() or example["response"].strip()
        assert len(example["language"]) == 8
        if example["answer_index"] is not None:
            assert 0 <= example["answer_index"] < len(example["choices"])


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lines_=LINES,
    role=st.sampled_from(["usage", "coverage", "pool", "test"]),
    skip=st.booleans(),
    name=st.sampled_from(["x.jsonl", "x.json"]),
)
def test_generated_json_gives_a_table_or_a_clear_error(lines_, role, skip, name, tmp_path):
    path = tmp_path / name
    text = "\n".join(lines_) if name == "x.jsonl" else "[" + ",".join(lines_) + "]"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    check_outcome(path, role, bad_rows="skip" if skip else "refuse")


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=200), suffix=st.sampled_from(["jsonl", "csv", "parquet", "arrow"]))
def test_generated_bytes_give_a_table_or_a_clear_error(data, suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(data)
    check_outcome(path, "usage", language="sw")


CELLS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["sw", '["a","b"]', "A"]
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.lists(CELLS, min_size=3, max_size=5), max_size=5))
def test_generated_csv_gives_a_table_or_a_clear_error(rows, tmp_path):
    path = tmp_path / "x.csv"
    body = "\n".join(",".join(cells) for cells in [["language", "prompt", "response"], *rows])
    path.write_text(body, "utf-8")
    check_outcome(path, "pool")

"""What is read from a log, and what is not: files, tables, bad records."""

import errno
import gzip
import json
import os
import random
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compass_core.config import UsageLogConfig
from compass_core.errors import ConfigError, DataError
from compass_core.monitoring import usage_log as module
from compass_core.monitoring.records import MAX_TEXT_CHARS
from compass_core.monitoring.usage_log import read_usage_log

from .conftest import LANGUAGE, SPACE, START, row

NOW = START + timedelta(days=60)


def read(config, home, *, seen=None, now=NOW, **changes):
    batches = read_usage_log(
        config, base_folder=home, language=LANGUAGE, now=now, seen=seen or {}, **changes
    )
    return list(batches)


def records_of(batches):
    return [record for batch in batches for record in batch.records]


def reasons(usage):
    return {
        reason: count
        for entry in usage.log.quarantine(SPACE).values()
        for reason, count in entry["counts"].items()
    }


# ------------------------------------------------------------------ good records
def test_records_are_found_by_the_usual_names_in_jsonl_gzip_and_parquet(usage):
    usage.write([row(1)], "a.jsonl")
    usage.write(
        [{"record_id": 2, "timestamp": 1772841600, "text": "b", "lang": "swh"}], "b.jsonl.gz"
    )
    table = pa.table(
        {
            "request_id": ["3"],
            "created_at": pa.array([START], pa.timestamp("us", "UTC")),
            "message": ["c"],
            "language": ["Swahili"],
            "session_id": ["s"],
        }
    )
    pq.write_table(table, usage.home / "logs" / "c.parquet")
    found = records_of(read(usage.config().log, usage.home))
    assert [record.id for record in found] == ["record-1", "2", "3"]
    assert found[0].user == "user-1"
    assert found[2].session == "s"
    assert {record.language for record in found} == {LANGUAGE}


def test_other_names_are_mapped(usage):
    usage.write([{"key": "k", "at": START.isoformat(), "q": "swali", "iso": "sw", "who": 7}])
    columns = {"id": "key", "time": "at", "text": "q", "language": "iso", "user": "who"}
    config = usage.config(log={"columns": columns}).log
    (record,) = records_of(read(config, usage.home))
    assert (record.id, record.text, record.user) == ("k", "swali", "7")


def test_language_of_the_log_serves_records_that_name_none(usage):
    usage.write([{"id": 1, "time": START.isoformat(), "text": "a"}, row(2, language="tr")])
    report = usage.take_in(usage.config(log={"language": "sw"}))
    assert report.n_new == 1
    assert report.other_languages == {"tur_Latn": 1}


def test_records_of_other_languages_are_counted_and_not_quarantined(usage):
    rows = [row(1), row(2, language="tr"), row(3, language="yo"), row(4, language="tr")]
    rows += [row(5, language="xx"), row(6, language="what is this text doing here?")]
    rows += [row(7, language="qsiri"), row(8, language="xx-Latn-X1"), row(9, language="Nenolangu")]
    usage.write(rows)
    report = usage.take_in()
    assert (report.n_new, report.n_rejected) == (1, 0)
    assert report.other_languages == {"tur_Latn": 2, "yor_Latn": 1}
    assert report.unknown_languages == {"xx": 1, "xx-Latn-X1": 1, "(no language code)": 3}


def test_reading_is_in_batches_of_bounded_size(usage, monkeypatch):
    monkeypatch.setattr(module, "BATCH_RECORDS", 10)
    usage.write([row(number) for number in range(35)])
    batches = read(usage.config().log, usage.home)
    assert [len(batch.records) for batch in batches] == [10, 10, 10, 5]
    assert [batch.finished is not None for batch in batches] == [False] * 3 + [True]


def test_patterns_lists_and_single_files_are_read(usage):
    usage.write([row(1)], "x/a.jsonl")
    usage.write([row(2)], "x/b.jsonl")
    usage.write([row(3)], "y/c.jsonl")
    for path, expected in [
        ("logs/x/*.jsonl", 2),
        (("logs/x/a.jsonl", "logs/y"), 2),
        ("logs", 3),
        ("logs/x/b.jsonl", 1),
        (("logs", "logs/x"), 3),
    ]:
        assert len(records_of(read(UsageLogConfig(path=path), usage.home))) == expected


def test_hidden_files_are_left_alone(usage):
    usage.write([row(1)], ".partial/a.jsonl")
    usage.write([row(1)], "_tmp.jsonl")
    assert read(usage.config().log, usage.home) == []


# ------------------------------------------------------------------ what changed since
def test_unchanged_file_is_not_read_again_and_a_longer_one_is(usage):
    usage.write([row(1)])
    assert usage.take_in().n_read == 1
    again = usage.again().take_in()
    assert (again.n_read, again.n_unchanged) == (0, 1)
    usage.write([row(1), row(2)])
    longer = usage.take_in()
    assert (longer.n_new, longer.n_known) == (1, 1)


def test_rotated_and_truncated_files_are_read_again_and_nothing_is_doubled(usage):
    path = usage.write([row(number) for number in range(5)])
    assert usage.take_in().n_new == 5
    path.rename(path.with_name("a.1.jsonl"))
    usage.write([row(5)])
    rotated = usage.take_in()
    assert (rotated.n_new, rotated.n_known, rotated.n_files) == (1, 5, 2)
    path.write_text(json.dumps(row(6)) + "\n")
    assert usage.take_in().n_new == 1
    assert sum(window.n_prompts for window in usage.windows()) == 7


def test_file_of_equal_size_and_time_with_another_inode_is_read_again(usage):
    path = usage.write([row(1)])
    usage.take_in()
    times = path.stat()
    other = path.with_name("new")
    other.write_text(json.dumps(row(2)) + "\n")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_size == times.st_size
    assert usage.take_in().n_new == 1


def test_changed_settings_read_everything_again(usage):
    usage.write([row(1), row(2, time="2026-03-02T00:00:00")])
    assert usage.take_in().n_new == 1
    found = usage.take_in(usage.config(log={"time_zone": "Africa/Nairobi"}))
    assert (found.n_new, found.n_known) == (1, 1)
    assert usage.log.quarantine(SPACE) == {}


def test_half_written_last_line_waits_for_the_next_time(usage):
    whole = json.dumps(row(2)) + "\n"
    usage.write([row(1), whole[:30]])
    first = usage.take_in()
    assert (first.n_new, first.n_unfinished, first.n_rejected) == (1, 1, 0)
    usage.write([row(1), whole])
    second = usage.take_in()
    assert (second.n_new, second.n_unfinished) == (1, 0)


def test_last_line_without_a_line_end_counts_when_it_is_whole(usage):
    usage.write([row(1), json.dumps(row(2))])
    assert usage.take_in().n_new == 2


def test_packed_file_that_is_still_written_gives_what_it_has(usage):
    path = usage.home / "logs" / "a.jsonl.gz"
    # Random prompts: else the whole file is one block, and half of it unpacks to nothing.
    rng = random.Random(0)
    rows = [row(n, prompt=f"{rng.getrandbits(4000):x}") for n in range(200)]
    data = gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode())
    path.write_bytes(data[: len(data) // 2])
    first = usage.take_in()
    assert 0 < first.n_new < 200
    assert first.n_rejected == 0
    path.write_bytes(data)
    assert first.n_new + usage.take_in().n_new == 200


@pytest.mark.parametrize(
    ("kind", "good", "odd"),
    [
        (pa.timestamp("us", "UTC"), 1_772_668_800 * 10**6, 884_541_513_600 * 10**6),
        (pa.timestamp("ms"), 1_772_668_800_000, 2**62),
        (pa.date32(), 20_500, 2**31 - 1),
    ],
)
def test_one_odd_time_of_a_parquet_file_costs_its_own_row_only(usage, kind, good, odd):
    rows = [row(n) for n in range(3)]
    table = pa.Table.from_pylist(rows)
    times = pa.array([good, odd, good], pa.int32() if kind == pa.date32() else pa.int64())
    pq.write_table(table.set_column(1, "time", times.cast(kind)), usage.home / "logs" / "a.parquet")
    report = usage.take_in(usage.config(log={"time_zone": "UTC"}))
    assert (report.n_new, dict(report.rejected)) == (2, {"E49 time: not a time": 1})


def test_zone_that_is_unknown_here_is_but_how_a_timestamp_is_shown(usage):
    table = pa.Table.from_pylist([row(1)])
    times = pa.array([1_772_668_800_000_000_001], pa.timestamp("ns", "Mars/Base"))
    pq.write_table(table.set_column(1, "time", times), usage.home / "logs" / "a.parquet")
    [batch] = read(usage.config().log, usage.home)
    assert [r.time for r in batch.records] == [datetime(2026, 3, 5, tzinfo=UTC)]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_file_that_could_not_be_read_is_read_the_next_time(usage, monkeypatch, code):
    path = usage.write([row(n) for n in range(4)])
    opened = Path.open

    def fails(self, *args, **kwargs):
        if self == path:
            raise OSError(code, os.strerror(code), str(path))
        return opened(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", fails)
        assert usage.take_in().rejected == {f"E02 file: cannot be read ({os.strerror(code)})": 1}
    assert usage.log.quarantine(SPACE)["a.jsonl"]["counts"]
    report = usage.take_in()
    assert (report.n_new, report.n_rejected) == (4, 0)
    assert usage.log.quarantine(SPACE) == {}
    assert usage.take_in().n_unchanged == 1


def test_file_that_vanishes_while_the_log_is_read_costs_nothing_else(usage, monkeypatch):
    gone = usage.write([row(1)], "a.jsonl")
    usage.write([row(2)], "b.jsonl")
    found = module.find_files(usage.config().log, usage.home)
    monkeypatch.setattr(module, "find_files", lambda *_: found)
    gone.unlink()
    assert [r.id for r in records_of(read(usage.config().log, usage.home))] == ["record-2"]


# ------------------------------------------------------------------ unusable records
BAD = {
    "{ not json\n": "E04 line: not valid JSON",
    "[1, 2]\n": "E11 line: not a JSON object",
    '"text"\n': "E11 line: not a JSON object",
    "[" * 100_000 + "\n": "E13 line: nesting deeper than 64",
    '{"id": 1, "prompt": "a\0b"}\n': "E07 line: control character U+0000",
    '{"id": 1, "prompt": "\udcff"}\n': "E05 line: not UTF-8",
    json.dumps(row(1, id=None)) + "\n": "E15 id: missing",
    json.dumps(row(1, id=True)) + "\n": "E11 id: neither a text nor an integer",
    json.dumps(row(1, id=["x"])) + "\n": "E11 id: neither a text nor an integer",
    json.dumps(row(1, id="x" * 2000)) + "\n": "E14 id: longer than 1000 characters",
    json.dumps(row(1, prompt=None)) + "\n": "E15 text: missing",
    json.dumps(row(1, prompt="  ")) + "\n": "E16 text: empty",
    json.dumps(row(1, prompt=7)) + "\n": "E11 text: not a text",
    json.dumps(row(1, prompt="nul \0")) + "\n": "E07 text: control character U+0000",
    json.dumps(row(1, prompt="\ud800")) + "\n": "E06 text: invalid Unicode",
    json.dumps(row(1, prompt="x" * (MAX_TEXT_CHARS + 1))) + "\n": (
        f"E14 text: longer than {MAX_TEXT_CHARS} characters"
    ),
    json.dumps(row(1, time=None)) + "\n": "E49 time: no time",
    json.dumps(row(1, time="soon")) + "\n": "E49 time: not a time",
    json.dumps(row(1, time="2026-03-01T00:00:00")) + "\n": "E49 time: without a zone",
    json.dumps(row(1, time=0)) + "\n": "E49 time: before the year 2000",
    json.dumps(row(1, time="2027-01-01T00:00:00Z")) + "\n": "E49 time: in the future",
    json.dumps(row(1, language=None)) + "\n": (
        "E15 language: missing (set `log.language` or map a column)"
    ),
    json.dumps(row(1, language=5)) + "\n": "E11 language: not a text",
    json.dumps(row(1, user={"name": "x"})) + "\n": (
        "E11 user or session: neither a text nor an integer"
    ),
}


@pytest.mark.parametrize(("line", "reason"), BAD.items(), ids=list(BAD.values()))
def test_unusable_record_is_quarantined_with_its_line_and_a_reason(usage, line, reason):
    usage.write([row(1), line, row(2)])
    report = usage.take_in()
    assert report.n_new == 2
    assert report.rejected == {reason: 1}
    assert usage.log.quarantine(SPACE) == {
        "a.jsonl": {"counts": {reason: 1}, "lines": [[2, reason]]}
    }


def test_line_beyond_the_limit_is_passed_by_without_being_held(usage, monkeypatch):
    from compass_core.monitoring import log_files

    monkeypatch.setattr(log_files, "MAX_LINE_BYTES", 2**10)
    usage.write([row(1), '{"id": 1, "prompt": "' + "x" * 5000 + '"}\n', row(2)])
    report = usage.take_in()
    assert (report.n_new, report.n_rejected) == (2, 1)
    assert next(iter(report.rejected)).startswith("E14 line")


def test_quarantine_is_counted_once_however_often_a_file_is_read(usage):
    usage.write([row(1), "garbage\n"])
    usage.take_in()
    usage.write([row(1), "garbage\n", row(2)])
    usage.take_in()
    assert reasons(usage) == {"E04 line: not valid JSON": 1}


def test_quarantine_lists_the_first_lines_and_counts_all(usage):
    usage.write(["garbage\n"] * 500)
    usage.take_in()
    entry = usage.log.quarantine(SPACE)["a.jsonl"]
    assert entry["counts"] == {"E04 line: not valid JSON": 500}
    assert [line for line, _ in entry["lines"]] == list(range(1, 101))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.parquet", b"PAR1 this is no Parquet", "E20 file"),
        ("a.parquet", b"", "E20 file"),
        ("a.jsonl", "\ufeffhi".encode("utf-16"), "E05 file"),
        ("a.jsonl.gz", gzip.compress(b"{}\n", mtime=0)[:-8] + b"\xff" * 8, "E1"),
    ],
)
def test_file_that_is_no_log_costs_its_own_rows_only(usage, name, data, reason):
    (usage.home / "logs" / name).write_bytes(data)
    usage.write([row(1)], "b.jsonl")
    report = usage.take_in()
    assert report.n_new == 1
    assert any(text.startswith(reason) for text in report.rejected), report.rejected


def test_empty_file_and_empty_folder_are_no_error(usage):
    assert usage.take_in().n_files == 0
    usage.write([])
    assert usage.take_in().n_read == 0


def test_packed_file_that_unpacks_beyond_the_limit_is_stopped(usage, monkeypatch):
    from compass_core.monitoring import log_files

    monkeypatch.setattr(log_files, "expansion_limit", lambda size: 10_000)
    usage.write([row(number) for number in range(1000)], "a.jsonl.gz")
    report = usage.take_in()
    assert 0 < report.n_new < 1000
    assert "E19 file: unpacks beyond the limit" in report.rejected


# ------------------------------------------------------------------ the future
def test_record_from_the_future_is_taken_when_its_time_has_come(usage):
    usage.write([row(1), row(2, minutes=60)])
    now = START + timedelta(minutes=5)
    first = usage.take_in(now=now)
    assert (first.n_new, first.rejected) == (1, {"E49 time: in the future": 1})
    assert usage.take_in(now=now).n_unchanged == 1
    later = usage.take_in(now=START + timedelta(minutes=51))
    assert (later.n_new, later.n_known, later.n_rejected) == (1, 1, 0)
    assert usage.log.quarantine(SPACE) == {}
    assert usage.take_in(now=START + timedelta(days=1)).n_unchanged == 1


def test_clock_that_is_ten_minutes_ahead_is_forgiven(usage):
    usage.write([row(1, minutes=10)])
    assert usage.take_in(now=START).n_new == 1


# ------------------------------------------------------------------ wrong settings
@pytest.mark.parametrize(
    ("log", "kind", "advice"),
    [
        ({"path": "nowhere"}, DataError, "check the path"),
        ({"path": "https://example.com/log"}, DataError, "copy the log"),
        ({"path": ""}, ConfigError, "give `path`"),
        ({"path": "logs", "database": "x.duckdb", "table": "t"}, ConfigError, "one of the two"),
        ({"path": "logs", "time_zone": "nowhere"}, ConfigError, "IANA"),
        ({"path": "", "database": "x.duckdb"}, ConfigError, "name the table"),
        ({"path": "", "database": "x.duckdb", "table": "t"}, DataError, "check the path"),
        ({"path": "logs/a.csv"}, DataError, "jsonl"),
    ],
)
def test_wrong_settings_say_what_to_change(usage, log, kind, advice):
    (usage.home / "logs" / "a.csv").write_text("id,text\n")
    with pytest.raises(kind, match=advice):
        usage.take_in(usage.config(log=log))


# ------------------------------------------------------------------ databases
@pytest.fixture
def database(usage):
    path = usage.home / "app.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            "CREATE TABLE prompts (id BIGINT, time TIMESTAMPTZ, prompt VARCHAR, language VARCHAR, "
            "local TIMESTAMP, secret VARCHAR)"
        )
        connection.execute(
            "INSERT INTO prompts SELECT i, TIMESTAMPTZ '2026-03-02 00:00:00+00' + INTERVAL (i) HOUR"
            ", 'swali ' || i, 'sw', TIMESTAMP '2026-03-02 00:00:00' + INTERVAL (i) HOUR, 'x' "
            "FROM range(100) t(i)"
        )
    return path


def table_config(usage, **changes):
    log = {"path": "", "database": str(usage.home / "app.duckdb"), "table": "prompts"}
    return usage.config(log=log | changes)


def test_rows_of_a_duckdb_table_are_read(usage, database):
    report = usage.take_in(table_config(usage))
    assert (report.n_new, report.n_rejected) == (100, 0)
    assert usage.take_in(table_config(usage)).n_known == 100
    assert sum(window.n_prompts for window in usage.windows()) == 100


def test_view_in_a_schema_is_read(usage, database):
    with duckdb.connect(str(database)) as connection:
        connection.execute('CREATE SCHEMA s; CREATE VIEW s."a b" AS SELECT * FROM prompts')
    assert usage.take_in(table_config(usage, table="s.a b")).n_new == 100


def test_naive_times_of_a_table_need_a_zone(usage, database):
    columns = {"time": "local"}
    assert usage.take_in(table_config(usage, columns=columns)).n_rejected == 100
    zoned = table_config(usage, columns=columns, time_zone="Africa/Nairobi")
    usage.take_in(zoned)
    assert usage.windows()[0].start == datetime(2026, 3, 1, tzinfo=UTC)


def test_decided_stretch_of_a_table_is_not_read_again(usage, database):
    config = table_config(usage)
    now = START + timedelta(hours=121)
    usage.take_in(config, now=now)
    for window in usage.windows(config, now=now):
        if window.closed and window.n_prompts:
            usage.log.mark_decided(window)
    # Five days began in the table, and the fifth is over and an hour past.
    assert usage.take_in(config, now=now).n_read == 0
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            "INSERT INTO prompts VALUES (500, '2026-03-08 00:00:00+00', 'mpya', 'sw', NULL, '')"
        )
    later = usage.take_in(config, now=now + timedelta(days=3))
    assert (later.n_read, later.n_new) == (1, 1)


def test_rows_that_are_committed_late_are_seen_by_windows_of_a_count_too(usage, database):
    config = table_config(usage)
    config = config.model_copy(update={"windows": "count", "window_size": 50, "lateness": "2h"})
    now = START + timedelta(hours=99, minutes=30)
    usage.take_in(config, now=now)
    for window in usage.windows(config, now=now):
        usage.log.mark_decided(window)
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            "INSERT INTO prompts VALUES (500, '2026-03-06 02:00:00+00', 'mpya', 'sw', NULL, ''), "
            "(501, '2026-03-05 02:00:00+00', 'zamani', 'sw', NULL, '')"
        )
    # The newest decided prompt is of 03:00 and the log was read at 03:30.
    assert usage.take_in(config, now=now + timedelta(hours=1)).n_new == 1


def test_rows_of_a_table_come_oldest_first_however_they_lie(usage):
    with duckdb.connect(str(usage.home / "app.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE prompts AS SELECT i AS id, i::VARCHAR AS prompt, 'sw' AS language, "
            "TIMESTAMPTZ '2026-03-02 00:00:00+00' + INTERVAL ((i * 7919) % 10000) SECOND "
            'AS "created at" FROM range(10000) t(i)'
        )
    config = table_config(usage, columns={"time": "created at"})
    times = [record.time for record in records_of(read(config.log, usage.home))]
    assert len(times) == 10_000
    assert times == sorted(times)


def test_missing_table_is_named_with_advice(usage, database):
    with pytest.raises(DataError, match=r"'nothing'.*check that the database"):
        usage.take_in(table_config(usage, table="nothing"))


@pytest.mark.parametrize(
    "odd",
    ["infinity", "-infinity", "30000-01-01 00:00+00"],
)
def test_one_odd_time_of_a_table_costs_its_own_row_only(usage, database, odd):
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            "INSERT INTO prompts VALUES (500, ?::TIMESTAMPTZ, 'mpya', 'sw', NULL, '')", [odd]
        )
    report = usage.take_in(table_config(usage))
    assert (report.n_new, dict(report.rejected)) == (100, {"E49 time: not a time": 1})


def test_wide_integers_and_whole_decimals_of_a_table_are_ids_and_times(usage):
    with duckdb.connect(str(usage.home / "app.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE prompts (id HUGEINT, user_id DECIMAL(20, 1), time DECIMAL(38, 3), "
            "prompt VARCHAR, language VARCHAR)"
        )
        connection.execute(
            "INSERT INTO prompts VALUES (5, 1.0, 1772668800.5, 'a', 'sw'), "
            "(170141183460469231731687303715884105727, 2, 1772668800000, 'b', 'sw'), "
            "(6, 1.5, 1772668800, 'c', 'sw')"
        )
    [batch] = read(table_config(usage).log, usage.home)
    assert sorted((r.id, r.user) for r in batch.records) == [
        ("170141183460469231731687303715884105727", "2"),
        ("5", "1"),
    ]
    assert {r.time.replace(microsecond=0) for r in batch.records} == {
        datetime(2026, 3, 5, tzinfo=UTC)
    }
    assert dict(batch.rejected) == {"E11 user or session: neither a text nor an integer": 1}


@pytest.mark.parametrize("row_number", [0, 90_000])
def test_failing_view_says_so_without_a_value_of_its_rows(usage, row_number):
    with duckdb.connect(str(usage.home / "app.duckdb")) as connection:
        connection.execute(
            f"CREATE TABLE raw AS SELECT CASE i WHEN {row_number} THEN 'siri yangu' ELSE '1' END s "
            "FROM range(100000) t(i)"
        )
        connection.execute(
            "CREATE VIEW prompts AS SELECT s::BIGINT AS id, s AS prompt, 'sw' AS language, "
            "TIMESTAMPTZ '2026-03-02 00:00:00+00' AS time FROM raw"
        )
    with pytest.raises(DataError, match="its query fails") as caught:
        usage.take_in(table_config(usage))
    assert "siri" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None


def test_table_name_cannot_smuggle_a_statement(usage, database):
    name = 'prompts"; DROP TABLE prompts; --'
    with pytest.raises(DataError):
        usage.take_in(table_config(usage, table=name))
    assert usage.take_in(table_config(usage)).n_new == 100


def test_view_that_reads_other_files_is_refused(usage, database):
    other = usage.write([row(1)])
    with duckdb.connect(str(database)) as connection:
        connection.execute(f"CREATE VIEW spy AS SELECT * FROM read_json('{other}')")
    with pytest.raises(DataError, match="cannot be read"):
        usage.take_in(table_config(usage, table="spy"))


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
def test_missing_extension_is_never_installed_and_the_address_is_never_repeated(
    usage, kind, monkeypatch
):
    monkeypatch.setenv("USAGE_LOG", "host=127.0.0.1 port=1 user=me password=hunter2")
    config = table_config(usage, database_type=kind, database="env:USAGE_LOG")
    with pytest.raises(DataError) as caught:
        usage.take_in(config)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None
    assert f"INSTALL {kind}" in str(caught.value) or "cannot be read" in str(caught.value)


def test_address_is_taken_from_the_environment_when_the_log_is_read(usage, database, monkeypatch):
    config = table_config(usage, database="env:USAGE_LOG")
    monkeypatch.delenv("USAGE_LOG", raising=False)
    with pytest.raises(ConfigError, match="env:USAGE_LOG, and that environment variable is not"):
        usage.take_in(config)
    monkeypatch.setenv("USAGE_LOG", str(database))
    assert usage.take_in(config).n_new == 100
    assert str(database) not in config.model_dump_json()


def test_sqlite_is_read_where_its_extension_is_installed(usage):
    import sqlite3

    path = usage.home / "app.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE prompts (id, time, prompt, language)")
        connection.execute("INSERT INTO prompts VALUES ('1', '2026-03-02T00:00:00Z', 'a', 'sw')")
    config = table_config(usage, database=str(path), database_type="sqlite")
    with duckdb.connect() as connection:
        asked = "SELECT installed FROM duckdb_extensions() WHERE extension_name LIKE 'sqlite%'"
        installed = connection.sql(asked).fetchall()
    if installed != [(True,)]:
        with pytest.raises(DataError, match="INSTALL sqlite"):
            usage.take_in(config)
        pytest.skip("DuckDB's sqlite extension is not installed here")
    assert usage.take_in(config).n_new == 1

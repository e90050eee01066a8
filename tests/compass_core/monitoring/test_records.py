"""Whatever a log holds is a record, a reason, or of another language; never an error."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.config import UsageLogConfig
from compass_core.errors import LanguageError
from compass_core.monitoring.log_files import LogFile, Unfinished, read_rows
from compass_core.monitoring.records import (
    MAX_UNKNOWN_CODES,
    OTHER_VALUES,
    OtherLanguage,
    RecordReader,
    Rejected,
    UsageRecord,
)
from compass_core.monitoring.usage_log import UsageBatch

NOW = datetime(2026, 6, 1, tzinfo=UTC)
READER = RecordReader(UsageLogConfig(time_zone="Europe/Berlin"), "swh_Latn", NOW)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(["id", "time", "prompt", "language", "user", "session", "lang", "text"])
GOOD = {"id": "1", "time": "2026-03-02T00:00:00Z", "prompt": "a", "language": "sw"}


@given(st.dictionaries(NAMES, VALUES, max_size=6), st.booleans())
def test_any_row_is_one_of_three(row, complete):
    outcome = READER.read((GOOD | row) if complete else row, 3)
    if isinstance(outcome, UsageRecord):
        assert outcome.time.tzinfo is UTC
        assert outcome.text.strip()
        assert outcome.id
        outcome.text.encode()
    elif isinstance(outcome, Rejected):
        assert outcome.line == 3
        assert outcome.reason.startswith("E")
        assert len(outcome.reason) < 80
    else:
        assert isinstance(outcome, OtherLanguage)


@given(st.binary(max_size=400))
def test_any_bytes_are_rows_or_reasons(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("log") / "a.jsonl"
    path.write_bytes(data)
    for found in read_rows(LogFile(path, "a.jsonl"), READER):
        assert isinstance(found, (Rejected, Unfinished)) or isinstance(found[1], dict)


def test_reason_never_repeats_what_the_record_says():
    for name in GOOD:
        for value in ("SECRET", ["SECRET"], {"SECRET": "SECRET"}, "SECRET \0"):
            outcome = READER.read(GOOD | {name: value}, 1)
            if isinstance(outcome, Rejected):
                assert "SECRET" not in outcome.reason


def test_ids_of_databases_are_ids():
    uuid = UUID("12345678-1234-5678-1234-567812345678")
    assert READER.read(GOOD | {"id": uuid}, 1).id == str(uuid)
    assert READER.read(GOOD | {"id": uuid.bytes}, 1).id == uuid.hex


def test_language_of_the_settings_must_exist():
    with pytest.raises(LanguageError):
        RecordReader(UsageLogConfig(language="nowhere-at-all"), "swh_Latn", NOW)


def test_different_unknown_codes_are_bounded():
    batch = UsageBatch("x")
    for number in range(MAX_UNKNOWN_CODES + 30):
        code = f"x{chr(97 + number // 26)}{chr(97 + number % 26)}"
        batch.take(OtherLanguage(code, known=False))
    assert len(batch.unknown_languages) == MAX_UNKNOWN_CODES + 1
    assert batch.unknown_languages[OTHER_VALUES] == 30


def test_deep_brackets_in_a_text_are_no_nesting(tmp_path):
    path = tmp_path / "a.jsonl"
    row = GOOD | {"prompt": '[[{"\\' * 300}
    path.write_text(json.dumps(row) + "\n")
    ((number, found),) = read_rows(LogFile(path, "a.jsonl"), READER)
    assert (number, found["prompt"]) == (1, row["prompt"])

"""A record of a usage log, and how a row of whatever log becomes one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from compass_core.config import UsageLogConfig
from compass_core.errors import LanguageError
from compass_core.languages import canonical_language
from compass_core.monitoring.times import BadTimeError, parse_time, time_zone

FUTURE_SKEW: Final = timedelta(minutes=10)
"""How far ahead of the own clock a record's clock may be."""

MAX_TEXT_CHARS: Final = 200_000
"""Longest prompt that is observed."""

MAX_ID_CHARS: Final = 1_000
MAX_UNKNOWN_CODES: Final = 50
"""Unknown language codes that are counted by name; the rest are counted together."""

_USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("id", "record_id", "request_id"),
    "time": ("time", "timestamp", "created_at"),
    "text": ("prompt", "text", "message"),
    "language": ("language", "lang"),
    "user": ("user", "user_id"),
    "session": ("session", "session_id"),
}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_CODE: Final = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,3}")
OTHER_VALUES: Final = "(no language code)"


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One prompt of production.

    Attributes:
        id: Unique within the log.
        time: When it was asked, in UTC.
        text: The prompt.
        language: Canonical code.
        user: Who asked; empty where unknown.
        session: In which conversation; empty where unknown.
    """

    id: str
    time: datetime
    text: str
    language: str
    user: str = ""
    session: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be used: where it is and why, never what it says.

    Attributes:
        line: 1-based line or row; 0 for a whole file.
        reason: Code and words, for example ``E49 time: without a zone``.
        until: When it can be tried again: its own time, for a record from the future.
    """

    line: int
    reason: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class OtherLanguage:
    """A record of another language than the one that is read.

    Attributes:
        code: Canonical code, or what the record says where that is no language.
        known: Whether it is a language.
    """

    code: str
    known: bool


Outcome = UsageRecord | Rejected | OtherLanguage


class RecordReader:
    """Turns rows into records of one language."""

    def __init__(self, config: UsageLogConfig, language: str, now: datetime) -> None:
        """Read for `language` (canonical); what is later than `now` waits.

        Raises:
            ConfigError: the time zone of `config` does not exist.
            LanguageError: the language of `config` does not exist.
        """
        self.language = language
        self._latest = now + FUTURE_SKEW
        self._zone = time_zone(config.time_zone)
        self._fixed = canonical_language(config.language) if config.language else ""
        self._names = {
            field: (getattr(config.columns, field),) if getattr(config.columns, field) else usual
            for field, usual in _USUAL.items()
        }
        self._codes: dict[str, OtherLanguage | None] = {}

    def columns(self, available: list[str]) -> list[str]:
        """Return those of `available` columns that are needed."""
        wanted = {name for names in self._names.values() for name in names}
        return [name for name in available if name in wanted]

    def time_column(self, available: list[str]) -> str:
        """Return which of `available` columns holds the time; empty if none does."""
        return next((name for name in self._names["time"] if name in available), "")

    def read(self, row: Mapping[str, Any], line: int) -> Outcome:
        """Return what a row is: a record, a record of another language, or neither."""
        code = self._language(row, line)
        if code is not None:
            return code
        try:
            record_id = _id(self._value(row, "id"), "id")
            text = _text(self._value(row, "text"))
            instant = parse_time(self._value(row, "time"), self._zone)
            user, session = (_optional_id(self._value(row, n)) for n in ("user", "session"))
        except BadTimeError as error:
            return Rejected(line, f"E49 time: {error}")
        except _UnusableError as error:
            return Rejected(line, str(error))
        if instant > self._latest:
            return Rejected(line, "E49 time: in the future", until=instant)
        return UsageRecord(record_id, instant, text, self.language, user, session)

    def _value(self, row: Mapping[str, Any], field: str) -> Any:
        for name in self._names[field]:
            value = row.get(name)
            if value is not None:
                return value
        return None

    def _language(self, row: Mapping[str, Any], line: int) -> OtherLanguage | Rejected | None:
        """Return None for the language that is read."""
        given = self._value(row, "language")
        if given is None or given == "":
            given = self._fixed
            if not given:
                return Rejected(line, "E15 language: missing (set `log.language` or map a column)")
        if not isinstance(given, str):
            return Rejected(line, "E11 language: not a text")
        if given not in self._codes:
            if len(self._codes) > 10 * MAX_UNKNOWN_CODES:
                self._codes.clear()
            self._codes[given] = self._look_up(given)
        return self._codes[given]

    def _look_up(self, given: str) -> OtherLanguage | None:
        try:
            code = canonical_language(given)
        except LanguageError:
            # Only what looks like a code is repeated: a wrongly mapped column may hold prompts.
            return OtherLanguage(given if _CODE.fullmatch(given) else OTHER_VALUES, known=False)
        return None if code == self.language else OtherLanguage(code, known=True)


class _UnusableError(ValueError):
    """Code and reason, without the value."""


def _text(value: Any) -> str:
    if value is None:
        raise _UnusableError("E15 text: missing")
    if not isinstance(value, str):
        raise _UnusableError("E11 text: not a text")
    if len(value) > MAX_TEXT_CHARS:
        raise _UnusableError(f"E14 text: longer than {MAX_TEXT_CHARS} characters")
    if not value or value.isspace():
        raise _UnusableError("E16 text: empty")
    _check_characters(value, "text")
    return value


def _id(value: Any, field: str) -> str:
    if value is None or value == "":
        raise _UnusableError(f"E15 {field}: missing")
    if isinstance(value, bytes):
        value = value.hex()
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, UUID)):
        raise _UnusableError(f"E11 {field}: neither a text nor an integer")
    text = str(value)
    if len(text) > MAX_ID_CHARS:
        raise _UnusableError(f"E14 {field}: longer than {MAX_ID_CHARS} characters")
    _check_characters(text, field)
    return text


def _optional_id(value: Any) -> str:
    return "" if value is None or value == "" else _id(value, "user or session")


def _check_characters(text: str, field: str) -> None:
    if "\0" in text:
        raise _UnusableError(f"E07 {field}: control character U+0000")
    if not text.isascii() and _SURROGATE.search(text):
        raise _UnusableError(f"E06 {field}: invalid Unicode")

"""A usage log as batches of records: files that changed since the last time, or a table.

Nothing is raised for what a log contains: a record that cannot be used is given back as a line
number and a reason, records of other languages are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from compass_core.config import UsageLogConfig
from compass_core.errors import ConfigError
from compass_core.monitoring.log_files import Unfinished, Unread, find_files, read_rows
from compass_core.monitoring.log_tables import table_rows
from compass_core.monitoring.records import (
    FUTURE_SKEW,
    MAX_UNKNOWN_CODES,
    OTHER_VALUES,
    OtherLanguage,
    RecordReader,
    Rejected,
    UsageRecord,
)
from compass_core.monitoring.times import microseconds

BATCH_RECORDS: Final = 16_384
"""Records of a batch at most …"""

BATCH_CHARS: Final = 16 * 2**20
"""… and their characters, where prompts are long."""

MAX_LISTED: Final = 100
"""Unusable records of a file that are listed one by one; all of them are counted."""

SourceState = dict[str, Any]
"""What is remembered of a file (or table) that was read."""


@dataclass
class UsageBatch:
    """Some records of one file or table.

    Attributes:
        source: The file's label, or the table's name.
        records: Usable records of the language that was asked for.
        n_read: Rows looked at.
        rejected: Unusable rows by reason.
        listed: (line, reason) of the first of them.
        other_languages: Rows of other languages, by code.
        unknown_languages: Rows whose language is none, by what they say.
        n_unfinished: 1 if the last line is still being written.
        again: When the earliest record from the future can be taken, microseconds since 1970.
        finished: On the last batch of a source: what to remember of it (with ``counts`` and
            ``lines`` of all its unusable rows).
        unchanged: Whether the source was not read, because it is as it was.
    """

    source: str
    records: list[UsageRecord] = field(default_factory=list)
    n_read: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[int, str]] = field(default_factory=list)
    other_languages: Counter[str] = field(default_factory=Counter)
    unknown_languages: Counter[str] = field(default_factory=Counter)
    n_unfinished: int = 0
    again: int | None = None
    finished: SourceState | None = None
    unchanged: bool = False

    def take(self, outcome: UsageRecord | Rejected | OtherLanguage) -> None:
        """Count one row, and keep it if it is a record."""
        self.n_read += 1
        if isinstance(outcome, UsageRecord):
            self.records.append(outcome)
        elif isinstance(outcome, Rejected):
            self.rejected[outcome.reason] += 1
            if len(self.listed) < MAX_LISTED:
                self.listed.append((outcome.line, outcome.reason))
            if outcome.until is not None:
                until = microseconds(outcome.until - FUTURE_SKEW)
                self.again = until if self.again is None else min(self.again, until)
        elif outcome.known:
            self.other_languages[outcome.code] += 1
        else:
            few = len(self.unknown_languages) < MAX_UNKNOWN_CODES
            known = few or outcome.code in self.unknown_languages
            self.unknown_languages[outcome.code if known else OTHER_VALUES] += 1

    def reject_like(self, other: UsageBatch) -> None:
        """Add the unusable rows of another batch of the same source."""
        self.rejected += other.rejected
        self.listed = (self.listed + other.listed)[:MAX_LISTED]
        if other.again is not None:
            self.again = other.again if self.again is None else min(self.again, other.again)

    def quarantine(self) -> SourceState:
        """Return what is kept of unusable rows: how many by reason, and the first by line."""
        return {"counts": dict(self.rejected), "lines": [list(item) for item in self.listed]}


def read_usage_log(
    config: UsageLogConfig,
    *,
    base_folder: Path,
    language: str,
    now: datetime,
    seen: Mapping[str, SourceState],
    watermark: datetime | None = None,
) -> Iterator[UsageBatch]:
    """Read what is new in a log, in batches.

    A file that has the size, the time and the inode it had when it was last read is passed over,
    unless a record in it was from the future and its time has come, or it could not be read. Any
    other file is read from its
    beginning: records are told apart by their ids.

    Args:
        config: Where the log is, and how its columns are named.
        base_folder: Folder that relative paths start from.
        language: Canonical code; records of other languages are counted.
        now: Records of a later time (beyond ten minutes) wait.
        seen: By source, what `UsageBatch.finished` said when it was read.
        watermark: Rows of a table that are older are not asked for.

    Yields:
        Batches; the last one of each file or table has `finished`.

    Raises:
        ConfigError: neither path nor database is given, or an unknown time zone.
        DataError: the log is not there or cannot be opened.
    """
    reader = RecordReader(config, language, now)
    if bool(config.path) == bool(config.database):
        raise ConfigError(
            "monitoring.log: give `path` (files) or `database` and `table`, one of the two."
        )
    if config.database:
        rows = table_rows(config, base_folder, reader, watermark)
        yield from _batches(config.table, rows, reader, {})
        return
    for file in find_files(config, base_folder):
        try:
            state: SourceState = dict(file.state())
        except FileNotFoundError:
            continue
        if _unchanged(seen.get(file.label), state, now):
            yield UsageBatch(file.label, unchanged=True)
            continue
        yield from _batches(file.label, read_rows(file, reader), reader, state)


def _unchanged(known: Mapping[str, Any] | None, state: SourceState, now: datetime) -> bool:
    if known is None or any(known.get(name) != value for name, value in state.items()):
        return False
    again = known.get("again")
    return again is None or microseconds(now) < again


def _batches(
    source: str, rows: Iterator[Any], reader: RecordReader, state: SourceState
) -> Iterator[UsageBatch]:
    whole, batch, chars = UsageBatch(source), UsageBatch(source), 0
    for found in rows:
        if isinstance(found, Unfinished):
            batch.n_unfinished += 1
            continue
        if isinstance(found, Unread):
            state = {}  # nothing to know the file by: it is read again, and its reason is listed
        outcome = found if isinstance(found, Rejected) else reader.read(found[1], found[0])
        batch.take(outcome)
        chars += len(outcome.text) if isinstance(outcome, UsageRecord) else 0
        if batch.n_read >= BATCH_RECORDS or chars >= BATCH_CHARS:
            whole.reject_like(batch)
            yield batch
            batch, chars = UsageBatch(source), 0
    whole.reject_like(batch)
    batch.finished = state | whole.quarantine()
    if whole.again is not None:
        batch.finished["again"] = whole.again
    yield batch

"""Observations of usage: every record of the log once, placed in a monitoring space, nothing more.

<folder>/observations/<space>/000…-000….parquet   the observations (`OBSERVATION_SCHEMA`)
                              state.json          files read, windows decided, what was unusable

Several processes may read one log at the same time: what an earlier one has added a later one finds
known. The lock of the language is held to write, never while texts are placed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compass_core.config import MonitoringConfig, UsageLogConfig
from compass_core.errors import StoreError
from compass_core.forgotten import Forgotten
from compass_core.monitoring.cutting import Cutting, count_windows, parse_length
from compass_core.monitoring.listing import list_windows
from compass_core.monitoring.parts import KnownRecords, Parts
from compass_core.monitoring.placing import (
    Observe,
    Observed,
    hashed_rows,
    place_rows,
    remembered_rows,
    unknown_rows,
    with_column,
)
from compass_core.monitoring.privacy import Hasher, Key
from compass_core.monitoring.records import RecordReader, UsageRecord
from compass_core.monitoring.reports import AppendReport
from compass_core.monitoring.space_state import SpaceState
from compass_core.monitoring.usage_log import BATCH_RECORDS, UsageBatch, read_usage_log
from compass_core.monitoring.windows import OBSERVATION_SCHEMA, Window
from compass_core.storage import file_lock

_LOCK: Final = "observations.lock"
_APPENDED: Final = "(appended)"
_BACKWARDS: Final = timedelta(minutes=1)

__all__ = ["AppendReport", "ObservationLog", "Observe", "Observed"]


class ObservationLog:
    """The observations of one language."""

    def __init__(self, folder: Path, key: Key) -> None:
        """Take ``COMPASS_HOME/usage/<language>``; nothing is made yet.

        Args:
            folder: Its name is the canonical code of the language; its grandparent holds the list
                of forgotten ids.
            key: Secret of the hashes, see `privacy.open_key`.
        """
        self.folder = folder
        self.language = folder.name
        self._root = folder / "observations"
        self._hash = Hasher(key)
        self._forgotten = Forgotten(folder.parent.parent)
        self._known: dict[str, KnownRecords] = {}

    # -- adding

    def take_in(
        self,
        config: MonitoringConfig,
        *,
        base_folder: Path,
        observe: Observe,
        space: str,
        now: datetime,
        since: datetime | None = None,
    ) -> AppendReport:
        """Read what is new in the usage log (`config.log`) and keep an observation of each record.

        A kill at any point loses nothing: what was not kept is read again.

        Args:
            config: Where the log is, and what is kept.
            base_folder: Folder that relative paths start from.
            observe: Places texts in the space.
            space: Fingerprint of the space.
            now: The time.
            since: Older records are left out.

        Raises:
            ConfigError: `config.log` is missing or wrong.
            DataError: the log is not there.
            StoreError: the disk is full, or another process held the lock for a minute.
        """
        log = config.log or UsageLogConfig()
        state = self._state(space)
        report = AppendReport(warnings=_clock_warnings(state, now))
        reading = SpaceState.reading(log, self.language, since)
        seen = state.sources(reading)
        batches = read_usage_log(
            log,
            base_folder=base_folder,
            language=self.language,
            now=now,
            seen=seen,
            watermark=state.watermark(reading, parse_length(config.lateness)),
        )
        for batch in batches:
            report.add(self._keep(batch, observe, space, keep=log.keep, since=since))
            if batch.finished is not None:
                with self._changed(space) as changed:
                    changed.finish(reading, batch)
        self._note_time(space, now)
        return report

    def append(
        self,
        records: Iterable[UsageRecord | Mapping[str, Any]],
        observe: Observe,
        space: str,
        *,
        now: datetime,
        config: UsageLogConfig | None = None,
        since: datetime | None = None,
    ) -> AppendReport:
        """Keep an observation of each of `records`; durable on return, safe to repeat.

        Args:
            records: Records, or mappings with the columns of a log.
            observe: Places texts in the space.
            space: Fingerprint of the space.
            now: The time.
            config: How columns are named, the time zone, and whether texts are kept.
            since: Earlier records are left out (`AppendReport.n_before`).
        """
        log = config or UsageLogConfig()
        reader = RecordReader(log, self.language, now)
        plain = RecordReader(UsageLogConfig(), self.language, now)
        report = AppendReport(warnings=_clock_warnings(self._state(space), now))
        waiting, number = iter(records), 0
        while group := list(islice(waiting, BATCH_RECORDS)):
            batch = UsageBatch(_APPENDED)
            for record in group:
                number += 1
                if isinstance(record, UsageRecord):
                    batch.take(plain.read(_as_row(record), number))
                else:
                    batch.take(reader.read(record, number))
            report.add(self._keep(batch, observe, space, keep=log.keep, since=since))
            if batch.rejected:
                with self._changed(space) as changed:
                    changed.reject(batch)
        self._note_time(space, now)
        return report

    def _keep(
        self,
        batch: UsageBatch,
        observe: Observe,
        space: str,
        *,
        keep: str,
        since: datetime | None = None,
    ) -> AppendReport:
        """Add what is new of one batch."""
        report = AppendReport(
            n_read=batch.n_read,
            n_unfinished=batch.n_unfinished,
            rejected=batch.rejected,
            other_languages=batch.other_languages,
            unknown_languages=batch.unknown_languages,
            n_files=int(batch.finished is not None),
            n_unchanged=int(batch.unchanged),
        )
        records = [r for r in batch.records if since is None or r.time >= since]
        report.n_before = len(batch.records) - len(records)
        if not records:
            return report
        rows = hashed_rows(records, self._hash, self._forgotten.hashes(), report)
        parts = self._parts(space)
        known = self._known.setdefault(space, KnownRecords(parts))
        with self._lock():
            known.refresh()
        rows = unknown_rows(rows, known, report)
        if not rows.num_rows:
            return report
        rows = place_rows(rows, observe)
        if keep != "text":
            rows = with_column(rows, "text", pa.repeat(pa.scalar(""), rows.num_rows))
        with self._lock():
            known.refresh()
            # Placing takes its time: an id may have been forgotten, or added, meanwhile.
            rows = remembered_rows(rows, self._forgotten.hashes(), report)
            rows = unknown_rows(rows, known, report)
            if rows.num_rows:
                self._write(parts, rows, report, self._state(space))
        return report

    def _write(self, parts: Parts, rows: pa.Table, report: AppendReport, state: SpaceState) -> None:
        first = parts.next_arrival()
        arrivals = pa.array(range(first, first + rows.num_rows), pa.int64())
        parts.write(with_column(rows, "arrival", arrivals).select(OBSERVATION_SCHEMA.names))
        report.n_new = rows.num_rows
        limit = state.late_before()
        if limit is not None:
            report.n_late = int(pc.sum(pc.less(rows["time"], pa.scalar(limit))).as_py() or 0)
        parts.compact()

    # -- windows

    def windows(self, config: MonitoringConfig, now: datetime, space: str) -> list[Window]:
        """Return the windows of a space in their order: decided, closed and open ones.

        A window with prompts that begins before the end of the newest decided one is not listed: it
        came too late to be decided (`AppendReport.n_late` counts its prompts). Windows in a row
        without any prompt are one entry (`Window.n_empty`), which is reported and never frozen: if
        prompts turn up after all, their windows are decided then. Open windows are listed as soon
        as they have a prompt.
        """
        with self._lock():
            parts, state = self._parts(space), self._state(space)
            cutting = Cutting.of(config)
            pairs = (
                (np.asarray(t["arrival"]), np.asarray(t["time"].cast(pa.int64())))
                for t in parts.columns(["time"])
            )
            fillings = count_windows(pairs, cutting, state.limits(cutting))
            return list_windows(
                fillings,
                cutting,
                state,
                now=now,
                next_arrival=parts.next_arrival(),
                space=space,
                load=self._load,
            )

    def mark_decided(self, window: Window) -> None:
        """Note that a closed window was decided; its observations never change after."""
        if not window.closed:
            raise ValueError(f"{window.name} is still open")
        with self._lock():
            state = self._state(window.space)
            if state.decide(window):
                state.write()

    def _load(self, window: Window) -> pa.Table:
        if window.n_empty:
            return OBSERVATION_SCHEMA.empty_table()
        first, last = 0, window.last_arrival
        if window.by_time:
            keep = (pc.field("time") >= window.start) & (pc.field("time") < window.end)
        else:
            size = int(window.cutting[1:])
            first, last = window.number * size, min(last, (window.number + 1) * size - 1)
            keep = pc.scalar(True)
        keep &= (pc.field("arrival") >= first) & (pc.field("arrival") <= last)
        with self._lock():
            return self._parts(window.space).select(keep, first=first, last=last)

    # -- forgetting, looking

    def spaces(self) -> list[str]:
        """Return the spaces that there are observations or a state of."""
        if not self._root.is_dir():
            return []
        return sorted(path.name for path in self._root.iterdir() if path.is_dir())

    def count(self, ids: Iterable[str]) -> int:
        """Return how many observations, over all spaces, are of the records `ids`."""
        keys = frozenset(self._hash("record", text) for text in ids)
        return sum(self._parts(space).count(keys) for space in self.spaces())

    def forget(self, ids: Iterable[str]) -> int:
        """Remove the observations of the records `ids` from all spaces; return how many there were.

        The windows that they were part of stay decided; they are counted without them.
        """
        keys = frozenset(self._hash("record", text) for text in ids)
        with self._lock():
            return sum(self._parts(space).remove(keys) for space in self.spaces())

    def quarantine(self, space: str) -> dict[str, dict[str, Any]]:
        """Return, by file or table: ``counts`` by reason, and the first ``lines`` with theirs.

        What is listed is the state of the last reading of each file; no text is ever in it.
        """
        return self._state(space).quarantine()

    # -- inside

    @contextlib.contextmanager
    def _changed(self, space: str) -> Iterator[SpaceState]:
        with self._lock():
            state = self._state(space)
            yield state
            state.write()

    def _note_time(self, space: str, now: datetime) -> None:
        with self._lock():
            state = self._state(space)
            if state.note_time(now):
                state.write()

    def _parts(self, space: str) -> Parts:
        return Parts(self._space_folder(space))

    def _state(self, space: str) -> SpaceState:
        return SpaceState.read(self._space_folder(space))

    def _space_folder(self, space: str) -> Path:
        if not space.isalnum():
            raise StoreError(f"{space[:80]!r} is not the fingerprint of a monitoring space.")
        return self._root / space

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        return file_lock(self.folder / _LOCK)


def _as_row(record: UsageRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "time": record.time,
        "prompt": record.text,
        "language": record.language,
        "user": record.user,
        "session": record.session,
    }


def _clock_warnings(state: SpaceState, now: datetime) -> list[str]:
    newest = state.newest_now()
    if newest is None or now >= newest - _BACKWARDS:
        return []
    return [
        f"The clock went backwards: it says {now:%Y-%m-%d %H:%MZ}, and the log was read at "
        f"{newest:%Y-%m-%d %H:%MZ} before. Nothing is decided twice; what is not over yet waits."
    ]

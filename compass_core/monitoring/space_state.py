"""What is remembered of one space beside its observations: a small JSON file.

Whoever writes it holds the language's lock. Losing it loses no observation: the logs are read again
(and found known), and windows decided before are protected by the monitor's own history.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

from compass_core.config import UsageLogConfig
from compass_core.errors import StoreError
from compass_core.monitoring.cutting import Cutting
from compass_core.monitoring.usage_log import MAX_LISTED, SourceState, UsageBatch
from compass_core.monitoring.windows import Window
from compass_core.storage import fingerprint, read_json, write_json

_NAME: Final = "state.json"
_MAX_DECIDED: Final = 1_000
"""Decided windows that are still listed; older ones stay decided without."""

_MAX_SOURCES: Final = 10_000
_TICK: Final = timedelta(minutes=1)


class SpaceState:
    """The state of one space, as plain JSON values."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        """Take `values` as read from `path`."""
        self._path = path
        self._values = values

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the state in `folder`; an empty one where there is none.

        Raises:
            StoreError: the file is damaged.
        """
        path = folder / _NAME
        try:
            values = read_json(path)
            if not isinstance(values, dict):
                raise ValueError("not an object")
        except FileNotFoundError:
            values = {}
        except ValueError as error:
            raise StoreError(
                f"{path} is damaged ({error}). Delete it: the logs are read again and nothing is "
                "counted twice; windows that were decided may be listed again."
            ) from error
        return cls(path, values)

    def write(self) -> None:
        """Replace the file."""
        write_json(self._path, self._values)

    # -- sources

    @staticmethod
    def reading(config: UsageLogConfig, language: str, since: datetime | None) -> str:
        """Return what a reading depends on; with another one every file is read again."""
        values = config.key_values()
        return fingerprint(values, language, since.isoformat() if since else None)

    def sources(self, reading: str) -> dict[str, SourceState]:
        """Return what is known of the files that were read in this way."""
        if self._values.get("reading") != reading:
            return {}
        found: dict[str, SourceState] = self._values.get("sources", {})
        return dict(found)

    def watermark(self, reading: str, lateness: timedelta) -> datetime | None:
        """Return before which rows of a table need no reading any more.

        That is what was decided, and older by `lateness` than the newest reading; None before the
        first window is decided.
        """
        horizon = self.horizon()
        newest = self.newest_now()
        if horizon is None or newest is None or self._values.get("reading") != reading:
            return None
        return min(horizon, newest - lateness)

    def finish(self, reading: str, batch: UsageBatch) -> None:
        """Take over what the last batch of a source says of it."""
        if self._values.get("reading") != reading:
            self._values |= {"reading": reading, "sources": {}}
        others = {k: v for k, v in self._values["sources"].items() if k != batch.source}
        entries = [*others.items(), (batch.source, batch.finished)]
        self._values["sources"] = dict(entries[-_MAX_SOURCES:])

    def reject(self, batch: UsageBatch) -> None:
        """Add the unusable records of a batch that came from no file."""
        old = self._values.get("appended", {"counts": {}, "lines": []})
        new = batch.quarantine()
        self._values["appended"] = {
            "counts": dict(Counter(old["counts"]) + Counter(new["counts"])),
            "lines": (old["lines"] + new["lines"])[-MAX_LISTED:],
        }

    def quarantine(self) -> dict[str, dict[str, Any]]:
        """Return what was unusable, by source."""
        entries = dict(self._values.get("sources", {}))
        if "appended" in self._values:
            entries["(appended)"] = self._values["appended"]
        return {
            name: {"counts": entry["counts"], "lines": entry["lines"]}
            for name, entry in entries.items()
            if entry["counts"]
        }

    # -- time

    def newest_now(self) -> datetime | None:
        """Return the newest time at which the log was read."""
        return self._instant("newest_now")

    def note_time(self, now: datetime) -> bool:
        """Keep `now` if it is the newest (by more than a minute); return whether it is."""
        newest = self.newest_now()
        if newest is not None and now <= newest + _TICK:
            return False
        self._values["newest_now"] = now.isoformat()
        return True

    # -- decided windows

    def decided(self) -> list[dict[str, Any]]:
        """Return the decided windows, in the order they were decided."""
        found: list[dict[str, Any]] = self._values.get("decided", [])
        return found

    def decide(self, window: Window) -> bool:
        """Note a decided window; return whether it is new."""
        known = self.decided()
        if any(entry["name"] == window.name for entry in known):
            return False
        entry = {
            "name": window.name,
            "cutting": window.cutting,
            "number": window.number,
            "n_empty": window.n_empty,
            "start": window.start.isoformat(),
            "end": window.end.isoformat(),
            "by_time": window.by_time,
            "last_arrival": window.last_arrival,
        }
        self._values["decided"] = [*known, entry][-_MAX_DECIDED:]
        if not window.n_empty:
            self._move("horizon", window.end)
            if window.by_time:
                self._move("late_before", window.end)
        return True

    def _move(self, name: str, instant: datetime) -> None:
        known = self._instant(name)
        self._values[name] = (instant if known is None else max(instant, known)).isoformat()

    def _instant(self, name: str) -> datetime | None:
        text = self._values.get(name)
        return None if text is None else datetime.fromisoformat(text)

    def horizon(self) -> datetime | None:
        """Return the end of the newest decided window that had a prompt."""
        return self._instant("horizon")

    def late_before(self) -> datetime | None:
        """Return the same of windows of time alone: prompts that are counted are never late."""
        return self._instant("late_before")

    def limits(self, cutting: Cutting) -> dict[int, int]:
        """Return the newest arrival that counts, by number of the decided windows with prompts."""
        return {
            entry["number"]: entry["last_arrival"]
            for entry in self.decided()
            if entry["cutting"] == cutting.name and not entry["n_empty"]
        }

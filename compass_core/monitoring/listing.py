"""The list of windows of a space, from what its windows hold and what was decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa

from compass_core.monitoring.cutting import Cutting, Filling
from compass_core.monitoring.space_state import SpaceState
from compass_core.monitoring.times import from_microseconds
from compass_core.monitoring.windows import Window

Load = Callable[[Window], pa.Table]


def list_windows(
    fillings: Mapping[int, Filling],
    cutting: Cutting,
    state: SpaceState,
    *,
    now: datetime,
    next_arrival: int,
    space: str,
    load: Load,
) -> list[Window]:
    """Return the windows in their order; see `ObservationLog.windows`."""
    listing = _Listing(fillings, cutting, state, now, next_arrival)
    found = [Window(space=space, load=load, **values) for values in listing.windows()]
    return sorted(found, key=lambda window: window.number)


class _Listing:
    def __init__(
        self,
        fillings: Mapping[int, Filling],
        cutting: Cutting,
        state: SpaceState,
        now: datetime,
        next_arrival: int,
    ) -> None:
        self.fillings = fillings
        self.cutting = cutting
        self.next_arrival = next_arrival
        own = [e for e in state.decided() if e["cutting"] == cutting.name]
        self.decided = {e["number"]: e for e in own if not e["n_empty"]}
        self.empty = [e for e in own if e["n_empty"]]
        self.horizon = state.horizon()
        self.last_arrival = max(
            (e["last_arrival"] for e in state.decided() if not e["n_empty"]), default=-1
        )
        self.last_over = cutting.last_over(now) if cutting.by_time else -1

    def windows(self) -> Iterator[dict[str, Any]]:
        """Yield the fields of every window, in no order."""
        full = {
            number: filling
            for number, filling in self.fillings.items()
            if number in self.decided or (filling.n and self._is_open_question(number))
        }
        for number, filling in full.items():
            yield self._filled(number, filling)
        if self.cutting.by_time and full:
            yield from self._gaps(sorted(full))

    def _is_open_question(self, number: int) -> bool:
        """Tell whether nothing later was decided yet."""
        if self.cutting.by_time:
            return self.horizon is None or self.cutting.start(number) >= self.horizon
        return number * self.cutting.size > self.last_arrival

    def _filled(self, number: int, filling: Filling) -> dict[str, Any]:
        entry = self.decided.get(number)
        if self.cutting.by_time:
            start, end = self.cutting.start(number), self.cutting.start(number + 1)
            closed = number <= self.last_over
        else:
            start, end = from_microseconds(filling.first), from_microseconds(filling.last)
            closed = (number + 1) * self.cutting.size <= self.next_arrival
        last = self.next_arrival - 1
        if not self.cutting.by_time:
            last = min(last, (number + 1) * self.cutting.size - 1)
        if entry is not None:
            start, end = (datetime.fromisoformat(entry[name]) for name in ("start", "end"))
        return {
            "name": self.cutting.title(number),
            "start": start,
            "end": end,
            "n_prompts": filling.n,
            "n_late": filling.n_late,
            "n_empty": 0,
            "closed": closed or entry is not None,
            "decided": entry is not None,
            "cutting": self.cutting.name,
            "by_time": self.cutting.by_time,
            "number": number,
            "last_arrival": last if entry is None else entry["last_arrival"],
        }

    def _gaps(self, full: list[int]) -> Iterator[dict[str, Any]]:
        """Yield runs of closed windows without a prompt, after the first one with some."""
        taken = set(full)
        for entry in self.empty:
            numbers = range(entry["number"], entry["number"] + entry["n_empty"])
            if taken.isdisjoint(numbers):
                yield self._empty(entry["number"], entry["n_empty"], entry)
        taken |= {
            number
            for entry in self.empty
            for number in range(entry["number"], entry["number"] + entry["n_empty"])
        }
        first = None
        for number in range(full[0], max(full[-1], self.last_over) + 1):
            is_gap = number not in taken and number <= self.last_over
            is_gap = is_gap and self._is_open_question(number)
            if is_gap and first is None:
                first = number
            if first is not None and not is_gap:
                yield self._empty(first, number - first, None)
                first = None
        if first is not None:
            yield self._empty(first, self.last_over + 1 - first, None)

    def _empty(self, first: int, count: int, entry: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            "name": self.cutting.title(first, count),
            "start": self.cutting.start(first),
            "end": self.cutting.start(first + count),
            "n_prompts": 0,
            "n_late": 0,
            "n_empty": count,
            "closed": True,
            "decided": entry is not None,
            "cutting": self.cutting.name,
            "by_time": True,
            "number": first,
            "last_arrival": self.next_arrival - 1,
        }

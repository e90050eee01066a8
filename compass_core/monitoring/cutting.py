"""Where windows begin and end: by time or by count.

Time is cut in UTC: hours and days from midnight of 1970-01-01, weeks from a Monday. A window of
time closes when it is over and `lateness` has passed. Counts are cut in the order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compass_core.config import MonitoringConfig
from compass_core.monitoring.times import from_microseconds, microseconds

_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_MONDAY: Final = timedelta(days=4)
"""1970-01-01 was a Thursday: the first Monday is four days later."""


def parse_length(text: str) -> timedelta:
    """Return a length such as ``6h``, ``1d``, ``2w`` or ``0``.

    Examples:
        >>> parse_length("2w").days
        14
    """
    return timedelta() if text == "0" else int(text[:-1]) * _UNITS[text[-1]]


@dataclass(frozen=True, slots=True)
class Cutting:
    """How observations are cut into windows numbered from some zero.

    Attributes:
        name: Part of every window's name: ``1d``, or ``1000`` prompts.
        size: Microseconds, or prompts.
        origin: Microseconds since 1970 of the start of window 0; 0 for prompts.
        lateness: How long a window of time waits after its end.
        by_time: Whether it is time that is cut.
    """

    name: str
    size: int
    origin: int
    lateness: timedelta
    by_time: bool

    @classmethod
    def of(cls, config: MonitoringConfig) -> Cutting:
        """Return the cutting that the configuration asks for."""
        if config.windows == "count":
            return cls(f"n{config.window_size}", config.window_size, 0, timedelta(), by_time=False)
        size = parse_length(config.window_length)
        origin = _MONDAY if config.window_length.endswith("w") else timedelta()
        microsecond = timedelta(microseconds=1)
        lateness = parse_length(config.lateness)
        return cls(
            config.window_length, size // microsecond, origin // microsecond, lateness, by_time=True
        )

    def numbers(self, arrivals: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (n,) the number of the window of each observation."""
        values = times if self.by_time else arrivals
        return np.asarray((values - self.origin) // self.size, dtype=np.int64)

    def start(self, number: int) -> datetime:
        """Return the start of a window of time."""
        return from_microseconds(self.origin + number * self.size)

    def title(self, number: int, n_empty: int = 0) -> str:
        """Return the name of a window, or of `n_empty` empty ones in a row.

        Examples:
            >>> Cutting.of(MonitoringConfig()).title(20454)
            '2026-01-01T00:00Z/1d'
            >>> Cutting.of(MonitoringConfig()).title(20454, n_empty=3)
            '2026-01-01T00:00Z/1d/empty3'
            >>> Cutting.of(MonitoringConfig(windows="count")).title(7)
            'n1000/000007'
        """
        if not self.by_time:
            return f"{self.name}/{number:06d}"
        empty = f"/empty{n_empty}" if n_empty else ""
        return f"{self.start(number):%Y-%m-%dT%H:%MZ}/{self.name}{empty}"

    def last_over(self, now: datetime) -> int:
        """Return the number of the newest window of time that is over, lateness included."""
        return (microseconds(now - self.lateness) - self.origin) // self.size - 1


@dataclass
class Filling:
    """What a window holds, counted part by part.

    Attributes:
        n: Observations.
        first: Earliest time, microseconds since 1970.
        last: Latest time.
        n_late: Observations beyond the last arrival that counts.
    """

    n: int = 0
    first: int = 2**63 - 1
    last: int = -(2**63)
    n_late: int = 0


def count_windows(
    parts: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]],
    cutting: Cutting,
    limits: Mapping[int, int],
) -> dict[int, Filling]:
    """Count what each window holds.

    Args:
        parts: (arrivals, times) of some observations each.
        cutting: How to cut.
        limits: By number of a decided window, the newest arrival that counts there.

    Returns:
        By number of window; only windows with an observation.
    """
    found: dict[int, Filling] = {}
    for arrivals, times in parts:
        numbers = cutting.numbers(arrivals, times)
        order = np.argsort(numbers, kind="stable")
        starts = np.flatnonzero(np.diff(numbers[order], prepend=np.int64(-(2**62))))
        for rows in np.split(order, starts[1:]):
            if len(rows):
                number = int(numbers[rows[0]])
                _add(
                    found.setdefault(number, Filling()),
                    arrivals[rows],
                    times[rows],
                    limits.get(number),
                )
    return found


def _add(filling: Filling, arrivals: NDArray[Any], times: NDArray[Any], limit: int | None) -> None:
    counts = np.ones(len(arrivals), dtype=np.bool_) if limit is None else arrivals <= limit
    filling.n_late += int((~counts).sum())
    if counts.any():
        filling.n += int(counts.sum())
        filling.first = min(filling.first, int(times[counts].min()))
        filling.last = max(filling.last, int(times[counts].max()))

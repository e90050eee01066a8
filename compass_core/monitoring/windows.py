"""A window of usage: what was observed in it, and the sample of it that is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.config import DriftConfig
from compass_core.monitoring.drift import Sample
from compass_core.monitoring.privacy import KEY_BYTES

MOST_WITHOUT_UNIT: Final = 0.5
"""Above this share of prompts without a user (or session) the units of a window are unknown."""

_HASH: Final = pa.binary(KEY_BYTES)

OBSERVATION_SCHEMA: Final = pa.schema(
    [
        pa.field("arrival", pa.int64(), nullable=False),
        pa.field("record_key", _HASH, nullable=False),
        pa.field("user_key", _HASH),
        pa.field("session_key", _HASH),
        pa.field("text_key", _HASH, nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
        pa.field("outside", pa.bool_(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)
"""What is kept of a record; `arrival` numbers the records of a space in the order they came."""


@dataclass(frozen=True)
class Window:
    """Usage of one stretch of time, or so many prompts in a row.

    Attributes:
        name: Unique within a space, for example ``2026-03-01T00:00Z/1d``.
        space: Fingerprint of the monitoring space.
        start: First instant (of a window by count: time of the earliest prompt).
        end: First instant after it (by count: time of the latest prompt).
        n_prompts: Observations in it; those that came too late are not.
        n_late: Observations that came after it was decided.
        n_empty: Windows in a row without a single prompt that this one stands for; else 0.
        closed: Whether it is complete as far as it will be waited for.
        decided: Whether `mark_decided` was called.
        cutting: Name of how it was cut.
        by_time: Whether time was cut, or prompts were counted.
        number: Its number in this cutting.
        last_arrival: Newest arrival in the space when the windows were listed (or when this one was
            decided); a later one does not count.
    """

    name: str
    space: str
    start: datetime
    end: datetime
    n_prompts: int
    n_late: int
    n_empty: int
    closed: bool
    decided: bool
    cutting: str
    by_time: bool
    number: int
    last_arrival: int
    load: Callable[[Window], pa.Table] = field(repr=False, compare=False)

    @cached_property
    def table(self) -> pa.Table:
        """The observations (`OBSERVATION_SCHEMA`), in the order of arrival; read when asked for."""
        return self.load(self)

    def sample(self, config: DriftConfig) -> Sample:
        """Return what counts for the drift test; the same for any order of arrival.

        Equal prompts count once (unless `duplicates` says otherwise), and of one user or session
        at most `max_prompts_per_unit` count; those with the smallest record keys stay. Where more
        than half of the prompts have no user or session, the units are unknown.
        """
        return make_sample(self.table, config)


def make_sample(table: pa.Table, config: DriftConfig) -> Sample:
    """Return the sample of any table of ``OBSERVATION_SCHEMA``; see `Window.sample`."""
    records = key_array(table["record_key"])
    units, known = _units(table, config.unit)
    order = np.argsort(records, kind="stable")
    if config.duplicates == "collapse":
        order = order[_first_of_each(key_array(table["text_key"])[order], 1)]
    if known:
        order = order[_first_of_each(units[order], config.max_prompts_per_unit)]
    # One unit for each prompt of nobody would claim that they are independent.
    known = known and share_without_unit(table, config.unit) <= MOST_WITHOUT_UNIT
    return Sample(
        cluster_ids=_array(table, "cluster")[order].astype(np.int32),
        outside=_array(table, "outside")[order].astype(np.bool_),
        units=_numbered(units[order]) if known else None,
        people=_numbered(_units(table, "user")[0][order]),
    )


def _numbered(keys: NDArray[Any]) -> NDArray[np.int64]:
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def share_without_unit(table: pa.Table, unit: str) -> float:
    """Return the share of prompts whose user (or session) is unknown; 0 for no prompts."""
    if not table.num_rows or unit == "prompt":
        return 0.0
    missing = _unit_column(table, unit).null_count
    return float(missing / table.num_rows)


def _units(table: pa.Table, unit: str) -> tuple[NDArray[Any], bool]:
    """Return a key per prompt, and whether there is any unit at all.

    Where the user is unknown the session stands for it, else the prompt stands for itself.
    """
    records = key_array(table["record_key"])
    if unit == "prompt" or not table.num_rows:
        return records, False
    column = _unit_column(table, unit)
    if column.null_count == table.num_rows:
        return records, False
    given = np.asarray(column.is_null())
    return np.where(given, records, key_array(column)), True


def _unit_column(table: pa.Table, unit: str) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    if unit == "user":
        return pc.coalesce(table["user_key"], table["session_key"])
    return table["session_key"]


def _first_of_each(values: NDArray[Any], limit: int) -> NDArray[np.int64]:
    """Return the positions of the first `limit` occurrences of each value, ascending."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.ones(len(values), dtype=np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(new)
    position = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
    return np.sort(order[position < limit])


def key_array(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return fixed-size binaries as a NumPy array of bytes; null becomes zeros."""
    filled = column.fill_null(bytes(KEY_BYTES)) if column.null_count else column
    whole = filled.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], whole.type)
    start = whole.offset * KEY_BYTES
    buffer = whole.buffers()[1]
    data = b"" if buffer is None else buffer.to_pybytes()
    return np.frombuffer(data[start : start + len(whole) * KEY_BYTES], dtype=f"V{KEY_BYTES}")


def _array(table: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(table[name])

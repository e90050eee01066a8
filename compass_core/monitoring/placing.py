"""From records to observations: hashed, each id once, placed in a monitoring space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from compass_core.monitoring.parts import KnownRecords, contents, halves
from compass_core.monitoring.privacy import Hasher, normalised
from compass_core.monitoring.records import UsageRecord
from compass_core.monitoring.reports import AppendReport
from compass_core.monitoring.times import microseconds
from compass_core.monitoring.windows import OBSERVATION_SCHEMA

_COLUMNS: Final = ("record_key", "user_key", "session_key", "text_key", "time", "text")


@dataclass(frozen=True, slots=True)
class Observed:
    """Where texts lie in a monitoring space.

    Attributes:
        cluster_ids: (n,) int32, the nearest cluster.
        distances: (n,) float32, cosine distance to it.
        outside: (n,) bool, whether it is farther away than the cluster reaches.
    """

    cluster_ids: NDArray[np.int32]
    distances: NDArray[np.float32]
    outside: NDArray[np.bool_]


Observe = Callable[[list[str]], Observed]


def hashed_rows(
    records: Sequence[UsageRecord],
    hasher: Hasher,
    forgotten: frozenset[bytes],
    report: AppendReport,
) -> pa.Table:
    """Return hashed records, each id once, none that is forgotten; texts still as they are."""
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    places: dict[bytes, int] = {}
    for record in records:
        key = hasher("record", record.id)
        if key in forgotten:
            report.n_forgotten += 1
            continue
        text_key = hasher("text", normalised(record.text))
        time = microseconds(record.time)
        if key in places:
            first = places[key]
            same = (columns["text_key"][first], columns["time"][first]) == (text_key, time)
            report.n_known += 1
            report.n_conflicting += not same
            continue
        places[key] = len(places)
        columns["record_key"].append(key)
        columns["text_key"].append(text_key)
        columns["time"].append(time)
        columns["text"].append(record.text)
        user, session = record.user, record.session
        columns["user_key"].append(hasher.repeated("user", user) if user else None)
        columns["session_key"].append(hasher.repeated("session", session) if session else None)
    schema = OBSERVATION_SCHEMA
    return pa.table({n: pa.array(values, schema.field(n).type) for n, values in columns.items()})


def unknown_rows(rows: pa.Table, known: KnownRecords, report: AppendReport) -> pa.Table:
    """Return the rows that were not observed before; count the others."""
    found, content = known.find(halves(rows["record_key"]))
    if not found.any():
        return rows
    report.n_known += int(found.sum())
    report.n_conflicting += int((found & (content != contents(rows))).sum())
    return rows.filter(pa.array(~found))


def remembered_rows(rows: pa.Table, forgotten: frozenset[bytes], report: AppendReport) -> pa.Table:
    """Return the rows that are not forgotten; count the others."""
    if not forgotten:
        return rows
    gone = np.array([key in forgotten for key in rows["record_key"].to_pylist()], dtype=np.bool_)
    if not gone.any():
        return rows
    report.n_forgotten += int(gone.sum())
    return rows.filter(pa.array(~gone))


def place_rows(rows: pa.Table, observe: Observe) -> pa.Table:
    """Return `rows` with cluster, distance and outside; each text is placed once."""
    texts = pc.dictionary_encode(rows["text"].combine_chunks())
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    unique = texts.dictionary.to_pylist()
    places = np.asarray(texts.indices)
    found = observe(unique)
    arrays = (found.cluster_ids, found.distances, found.outside)
    if any(len(array) != len(unique) for array in arrays):
        raise ValueError("observe returned another number of rows than it was given texts")
    for name, array in zip(("cluster", "distance", "outside"), arrays, strict=True):
        kind = OBSERVATION_SCHEMA.field(name).type
        rows = rows.append_column(name, pa.array(np.asarray(array)[places], kind))
    return rows


def with_column(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Return `rows` with `values` as the column `name`."""
    if name in rows.column_names:
        return rows.set_column(rows.column_names.index(name), name, values)
    return rows.append_column(name, values)

"""Nearest-neighbour baseline: usage prompts take turns, each with its nearest pool example.

Exact: every candidate is compared with every usage prompt, in blocks. A prompt asked twice takes
two turns. The result depends on vectors and ids alone; the random source is not used.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.selection.drawing import Keys, Rows, VectorSource
from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.strategies._filling import require_candidates

_PRODUCT_ENTRIES = 4_000_000
"""Similarities held at a time."""

_REFINED_ENTRIES = 8_192
"""Pairs whose similarity is computed in double precision at a time."""

_SINGLE_ERROR = 1e-5
"""How far a similarity in single precision may be off (unit vectors of some thousand numbers)."""

_DIGITS = 9
"""Equal vectors must give equal similarities, whatever the order of summation: round to this."""


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Let usage prompts choose in turn until `budget` candidates are taken.

    In a turn every prompt takes the nearest candidate that is left; where two want the same one,
    the nearer prompt gets it and the other takes its next. In the last turn the nearest go first.

    Raises:
        InsufficientPoolError: fewer candidates than `budget`.
        DataError: the vectors were not passed.
    """
    del rng
    candidates = require_candidates(problem, budget, "nearest to usage")
    if problem.usage_vectors is None or problem.pool_vectors is None:
        raise DataError("selection.strategy=nearest needs the vectors of usage and pool.")
    usage = np.asarray(problem.usage_vectors[:], dtype=np.float32)
    points, asked = np.unique(usage, axis=0, return_counts=True)
    depth = min(len(candidates), 8 * -(-budget // len(usage)) + 32)
    while True:
        lists = _nearest_lists(problem, points, depth)
        taken = _take_turns(lists, asked, budget)
        if taken is not None:
            break
        depth = min(len(candidates), 4 * depth)
    indices = np.array(sorted(taken), dtype=np.int64)
    reasons = [f"near a usage prompt, cosine {taken[row]:.2f}" for row in indices.tolist()]
    details = {"mean_cosine": float(np.mean(list(taken.values()))) if taken else None}
    return Selection(indices, reasons, problem.count_by_cluster(indices), (), details)


@dataclass(frozen=True)
class _Lists:
    """Nearest candidates of every point, nearest first, as flat arrays.

    Attributes:
        starts: (U + 1,) where the list of each point begins.
        ends: (U,) up to where it is known to be exact.
        rows: rows of the pool.
        similarities: in double precision, rounded.
        keys: of the rows; they decide between equal similarities.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    rows: Rows
    similarities: NDArray[np.float64]
    keys: Keys


def _take_turns(lists: _Lists, asked: NDArray[np.int64], budget: int) -> dict[int, float] | None:
    """Return row → similarity of `budget` rows; None where a list is too short to tell."""
    place = lists.starts[:-1].copy()
    taken: dict[int, float] = {}

    def proposal(point: int) -> tuple[float, int, int] | None:
        while place[point] < lists.ends[point] and int(lists.rows[place[point]]) in taken:
            place[point] += 1
        if place[point] >= lists.ends[point]:
            return None
        at = place[point]
        return -float(lists.similarities[at]), int(lists.keys[at]), point

    while len(taken) < budget:
        waiting = [proposal(point) for point in np.repeat(np.arange(len(asked)), asked).tolist()]
        queue = [entry for entry in waiting if entry is not None]
        if len(queue) < len(waiting):
            return None
        heapq.heapify(queue)
        while queue and len(taken) < budget:
            asked_for = heapq.heappop(queue)
            now = proposal(asked_for[2])
            if now is None:
                return None
            if now != asked_for:
                # Somebody nearer took it, so this prompt's next one has to compete again.
                heapq.heappush(queue, now)
                continue
            taken[int(lists.rows[place[now[2]]])] = -now[0]
    return taken


def _nearest_lists(problem: SelectionProblem, points: NDArray[np.float32], depth: int) -> _Lists:
    """Find the `depth` nearest candidates of every point, exactly, whatever the blocks."""
    vectors = problem.pool_vectors
    assert vectors is not None
    finder = _Finder(len(points), depth)
    block = max(256, _PRODUCT_ENTRIES // len(points))
    for start in range(0, len(vectors), block):
        inside = np.flatnonzero(problem.candidates[start : start + block])
        if len(inside):
            part = np.asarray(vectors[start : start + block], dtype=np.float32)
            finder.add(points @ part[inside].T, inside + start)
    finder.consolidate()
    exact = _similarities(vectors, finder.rows, points, finder.points)
    keys = problem.pool_keys[finder.rows]
    order = np.lexsort((keys, -exact, finder.points))
    starts = np.searchsorted(finder.points, np.arange(len(points) + 1))
    # Whoever is not listed is at most as near as the last one listed, up to rounding.
    whole = depth >= int(problem.candidates.sum())
    known = (
        np.full(len(exact), True) if whole else exact > finder.floor[finder.points] + _SINGLE_ERROR
    )
    sizes = np.bincount(finder.points[known], minlength=len(points))
    return _Lists(starts, starts[:-1] + sizes, finder.rows[order], exact[order], keys[order])


class _Finder:
    """Keeps the `depth` best of many (point, row, similarity) triples."""

    def __init__(self, n_points: int, depth: int) -> None:
        self.points = np.empty(0, dtype=np.int64)
        self.rows = np.empty(0, dtype=np.int64)
        self.floor: NDArray[Any] = np.full(n_points, -np.inf, dtype=np.float32)
        self._depth = depth
        self._values = np.empty(0, dtype=np.float32)
        self._pending: list[tuple[NDArray[np.int64], Rows, NDArray[np.float32]]] = []
        self._n_pending = 0

    def add(self, similarities: NDArray[np.float32], rows: Rows) -> None:
        """Take in what is better than the worst kept: (U, b) similarities of b rows."""
        hits = np.flatnonzero(similarities > self.floor[:, None])
        if len(hits) > len(self.floor) * self._depth:
            best = np.argpartition(similarities, -self._depth, axis=1)[:, -self._depth :]
            hits = (best + np.arange(len(best))[:, None] * similarities.shape[1]).ravel()
        points, columns = np.divmod(hits, similarities.shape[1])
        self._pending.append((points, rows[columns], similarities.ravel()[hits]))
        self._n_pending += len(points)
        if self._n_pending > len(self.floor) * self._depth:
            self.consolidate()

    def consolidate(self) -> None:
        """Forget all but the `depth` best of each point; lists stay sorted by point."""
        points = np.concatenate([self.points, *(part[0] for part in self._pending)])
        rows = np.concatenate([self.rows, *(part[1] for part in self._pending)])
        values = np.concatenate([self._values, *(part[2] for part in self._pending)])
        order = np.lexsort((-values, points))
        starts = np.searchsorted(points[order], np.arange(len(self.floor) + 1))
        rank = np.arange(len(order)) - starts[points[order]]
        last = order[rank == self._depth - 1]
        order = order[rank < self._depth]
        self.floor[points[last]] = values[last]
        self.points, self.rows, self._values = points[order], rows[order], values[order]
        self._pending, self._n_pending = [], 0


def _similarities(
    vectors: VectorSource, rows: Rows, points: NDArray[np.float32], chosen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the cosines of the pairs (`rows`, `chosen`) in double precision, rounded."""
    found = np.empty(len(rows))
    by_row = np.argsort(rows, kind="stable")
    for start in range(0, len(rows), _REFINED_ENTRIES):
        part = by_row[start : start + _REFINED_ENTRIES]
        pool = np.asarray(vectors[rows[part]], dtype=np.float64)
        found[part] = np.einsum("ij,ij->i", pool, points[chosen[part]].astype(np.float64))
    return np.round(found, _DIGITS)

"""Drawing the allocated number of examples inside each cluster.

Chance is attached to the example, not to its place: every example has a 64-bit key made of its id,
the draw's seed turns the key into a random number, and a cluster's sample is its examples with the
smallest numbers. So equal ids give equal draws whatever the order of the pool, and a pool that
grows changes only as many examples as it must.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError, InsufficientPoolError
from compass_core.selection.allocation import round_to_counts, water_level
from compass_core.selection.gap import Counts, count_clusters

DrawMethod = Literal["uniform", "nearest", "diverse"]
Keys = NDArray[np.uint64]
Rows = NDArray[np.int64]


class VectorSource(Protocol):
    """What selection asks of the pool's vectors: an array, in memory, mapped, or in parts."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any:
        """Return (n, d) vectors of a slice or of (n,) row numbers."""
        ...


_MAX_SPREAD_CANDIDATES = 4_096
"""`diverse` spreads over at most this many (or 4 per example wanted) random rows of a cluster."""


def example_keys(ids: Iterable[str]) -> Keys:
    """Return (N,) 64-bit keys that depend on the ids alone; compute once per pool."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def random_priorities(keys: Keys, rng: np.random.Generator) -> Keys:
    """Return (N,) random numbers, one per key (the splitmix64 finaliser of key + seed)."""
    mixed = keys + np.uint64(rng.integers(0, 2**64, dtype=np.uint64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def draw_examples(  # noqa: PLR0913 - five arrays of the pool and the ways to draw from them
    pool_cluster_ids: NDArray[np.integer[Any]],
    distances: NDArray[np.floating[Any]],
    languages: NDArray[Any],
    allocation: Counts,
    available: NDArray[np.bool_],
    *,
    method: DrawMethod = "uniform",
    language_balance: float = 0.0,
    rng: np.random.Generator,
    keys: Keys | None = None,
    vectors: VectorSource | None = None,
) -> Rows:
    """Draw `allocation[k]` available examples from every cluster k, without replacement.

    Args:
        pool_cluster_ids: (N,) cluster of each pool example.
        distances: (N,) distance to the usage (or centroid) of its cluster, for ``nearest``.
        languages: (N,) language of each pool example.
        allocation: (K,) examples to draw.
        available: (N,) which examples may be drawn.
        method: ``uniform`` | ``nearest`` (smallest distance) | ``diverse`` (farthest-first spread).
        language_balance: β in [0, 1]; inside a cluster a language of n examples gets a share
            proportional to n^(1−β), the temperature 1/(1−β) of multilingual sampling: 0 leaves
            languages to chance, 1 gives every one the same as far as it reaches.
        rng: source of chance.
        keys: (N,) `example_keys` of the pool; without them the draw depends on the pool's order.
        vectors: (N, d) unit norm, needed by ``diverse``; may be memory-mapped.

    Returns:
        (B,) row numbers, ascending.

    Raises:
        InsufficientPoolError: a cluster holds fewer available examples than it should give.
        DataError: ``diverse`` without vectors, or an unknown method.
    """
    _check_options(method, language_balance, vectors)
    held = _count_held(pool_cluster_ids[available], allocation)
    # Only rows of clusters that give something compete, and only they are sorted.
    giving = np.flatnonzero(allocation > 0)
    rows = np.flatnonzero(available & (allocation > 0)[pool_cluster_ids])
    order = _order_by_cluster(pool_cluster_ids[rows], len(allocation))
    balancer = _LanguageBalancer(languages[rows], language_balance) if language_balance else None
    rows = rows[order]
    priorities = random_priorities(rows.astype(np.uint64) if keys is None else keys[rows], rng)
    drawer = _Drawer(method, distances, vectors)
    drawn = [np.empty(0, dtype=np.int64)]
    end = 0
    for cluster in giving:
        own = slice(end, end := end + int(held[cluster]))
        wanted = int(allocation[cluster])
        if balancer is None:
            drawn.append(drawer.draw(rows[own], priorities[own], wanted))
            continue
        for cell, count in balancer.split(order[own], wanted):
            drawn.append(drawer.draw(rows[own][cell], priorities[own][cell], count))
    return np.sort(np.concatenate(drawn))


def _check_options(
    method: DrawMethod, language_balance: float, vectors: VectorSource | None
) -> None:
    if method not in ("uniform", "nearest", "diverse"):
        raise DataError(
            f"selection.draw must be uniform, nearest or diverse, got {method!r}.", code="E42"
        )
    if method == "diverse" and vectors is None:
        raise DataError("selection.draw=diverse needs the pool's vectors, which were not passed.")
    if not 0.0 <= language_balance <= 1.0:
        raise DataError(
            f"selection.language_balance must lie in [0, 1], got {language_balance}.", code="E42"
        )


def _count_held(cluster_ids: NDArray[np.integer[Any]], allocation: Counts) -> Counts:
    """Return (K,) how many rows each cluster holds; refuse an allocation above that."""
    held = count_clusters(cluster_ids, len(allocation))
    short = np.flatnonzero(held < allocation)
    if len(short):
        worst = int(short[np.argmax(allocation[short] - held[short])])
        raise InsufficientPoolError(
            f"Cannot draw {int(allocation.sum())} examples: {len(short)} clusters hold fewer than "
            f"that (cluster {worst} holds {held[worst]}, wants {allocation[worst]}). "
            "Allocate again with the capacities of the examples that may still be drawn."
        )
    return held


def _order_by_cluster(cluster_ids: NDArray[np.integer[Any]], n_clusters: int) -> Rows:
    # A stable sort of 16-bit numbers is a radix sort: linear in the rows.
    narrow = cluster_ids.astype(np.uint16) if n_clusters <= 2**16 else cluster_ids
    return np.argsort(narrow, kind="stable")


class _Drawer:
    """Takes a number of rows out of one group."""

    def __init__(
        self,
        method: DrawMethod,
        distances: NDArray[np.floating[Any]],
        vectors: VectorSource | None,
    ) -> None:
        self._method = method
        self._distances = distances
        self._vectors = vectors

    def draw(self, members: Rows, priorities: Keys, wanted: int) -> Rows:
        if wanted >= len(members):
            return members
        if self._method == "nearest":
            order = np.lexsort((priorities, self._distances[members]))
            return members[order[:wanted]]
        if self._method == "uniform" or self._vectors is None:
            return members[np.argpartition(priorities, wanted)[:wanted]]
        n_candidates = max(_MAX_SPREAD_CANDIDATES, 4 * wanted)
        candidates = members[np.argsort(priorities, kind="stable")[:n_candidates]]
        # Memory-mapped vectors are read fastest in their own order.
        in_order = np.sort(candidates)
        block = np.asarray(self._vectors[in_order], dtype=np.float32)
        block = block[np.searchsorted(in_order, candidates)]
        return candidates[_farthest_first(block, wanted)]


class _LanguageBalancer:
    """Splits a cluster's allocation over its languages.

    Fractions that rounding cuts off in one cluster are carried into the next, so that small
    allocations do not always favour the same languages.
    """

    def __init__(self, languages: NDArray[Any], balance: float) -> None:
        names = np.unique(languages)
        self._codes = np.searchsorted(names, languages)
        self._carry = np.zeros(len(names))
        self._exponent = 1.0 - balance

    def split(self, members: Rows, wanted: int) -> list[tuple[Rows, int]]:
        """Return, per language that gives something, places in `members` and how many to take."""
        codes = self._codes[members]
        counts = np.bincount(codes, minlength=len(self._carry)).astype(np.float64)
        weights = np.where(counts > 0, np.maximum(counts, 1.0) ** self._exponent, 0.0)
        ideal = water_level(weights, np.zeros_like(weights), counts, wanted)[1]
        shifted = np.clip(ideal + self._carry, 0.0, counts)
        given = _round_any_sum(shifted, counts, wanted)
        self._carry = np.where(counts > 0, self._carry + ideal - given, self._carry)
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(counts) + 1))
        cells = ((order[bounds[c] : bounds[c + 1]], int(given[c])) for c in range(len(counts)))
        return [(cell, count) for cell, count in cells if count > 0]


def _round_any_sum(
    values: NDArray[np.float64], capacity: NDArray[np.float64], total: int
) -> Counts:
    """Round `values`, whose sum is only near `total`, to counts of exactly `total`."""
    counts = np.minimum(np.floor(values), capacity)
    excess = int(counts.sum()) - total
    while excess > 0:
        over = np.argsort(np.where(counts > 0, values - counts, np.inf), kind="stable")[:excess]
        over = over[counts[over] > 0]
        counts[over] -= 1
        excess -= len(over)
    room = capacity - counts
    rest = np.where(room > 0, np.minimum(values - counts, room), 0.0)
    return (counts + round_to_counts(rest, room, total - int(counts.sum()))).astype(np.int64)


def _farthest_first(vectors: NDArray[np.float32], wanted: int) -> Rows:
    """Return `wanted` rows, each the farthest from all before it; the first is row 0."""
    chosen = np.zeros(wanted, dtype=np.int64)
    nearest = 1.0 - vectors @ vectors[0]
    nearest[0] = -np.inf
    for i in range(1, wanted):
        row = int(nearest.argmax())
        chosen[i] = row
        np.minimum(nearest, 1.0 - vectors @ vectors[row], out=nearest)
        nearest[row] = -np.inf
    return chosen

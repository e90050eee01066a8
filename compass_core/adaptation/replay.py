"""Replay buffer of equation (8): a small sample of what an adapter was trained on before.

The sample is stratified by cluster so that it keeps the distribution of the history ("anchored"):
a uniform draw of 5 % can miss a small topic altogether, and what is never replayed is forgotten
first. NumPy and Arrow only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.errors import DataError, StoreError
from compass_core.records import EXAMPLE_SCHEMA
from compass_core.seeding import derive_rng
from compass_core.selection.allocation import round_to_counts
from compass_core.selection.drawing import Keys, example_keys, random_priorities
from compass_core.selection.gap import count_clusters, js_divergence
from compass_core.storage import read_array, read_json, read_table, write_array, write_json
from compass_core.storage import write_table as write_rows

Ids = NDArray[np.integer[Any]]
Counts = NDArray[np.int64]

ROWS_NAME, IDS_NAME, FACTS_NAME = "rows.parquet", "cluster_ids.npy", "replay.json"
FORMAT_VERSION = 1


def replay_size(n_history: int, share: float, max_examples: int) -> int:
    """Return the examples of a buffer: `share` of the history rounded up, at most `max_examples`.

    Examples:
        >>> replay_size(1_001, 0.05, 5_000), replay_size(1_001, 0.05, 40)
        (51, 40)
    """
    return min(math.ceil(round(share * n_history, 9)), max_examples)


def draw_replay(
    cluster_ids: Ids, keys: Keys, share: float, max_examples: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a share of the history that has the history's mix of clusters.

    Each cluster gets its share of the buffer by largest remainder; within a cluster every example
    is equally likely.

    Args:
        cluster_ids: (N,) cluster of each historical example.
        keys: (N,) see `example_keys`; the draw depends on them, not on the order of rows.
        share: Of the history, in [0, 1].
        max_examples: Bound of the buffer.
        rng: Of this draw.

    Returns:
        (n,) row numbers in an order that depends on keys and `rng` alone.

    Raises:
        DataError: `cluster_ids` and `keys` differ in length.

    Examples:
        >>> ids = np.repeat([0, 1], [60, 40])
        >>> keys = example_keys(str(n) for n in range(100))
        >>> drawn = draw_replay(ids, keys, 0.05, 100, np.random.default_rng(0))
        >>> np.bincount(ids[drawn])
        array([3, 2])
    """
    if len(cluster_ids) != len(keys):
        raise DataError(
            f"A replay buffer needs the cluster of every example: {len(keys)} examples, "
            f"{len(cluster_ids)} cluster ids."
        )
    size = replay_size(len(keys), share, max_examples)
    if size == 0:
        return np.empty(0, dtype=np.int64)
    _, strata, counts = np.unique(cluster_ids, return_inverse=True, return_counts=True)
    quotas = round_to_counts(size * counts / len(keys), counts, size)
    return _draw_strata(strata, random_priorities(keys, rng), quotas)


def _draw_strata(strata: Ids, priorities: Keys, quotas: Counts) -> NDArray[np.int64]:
    """Return the `quotas` lowest priorities of each stratum, lowest first over all strata."""
    order = np.lexsort((priorities, strata))
    counts = np.bincount(strata, minlength=len(quotas))
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.arange(len(order)) - first[strata[order]]
    taken = order[rank < quotas[strata[order]]]
    drawn: NDArray[np.int64] = taken[np.argsort(priorities[taken], kind="stable")]
    return drawn


@dataclass(frozen=True)
class ReplayBuffer:
    """A bounded sample of everything an adapter was trained on, with what it stands for.

    Attributes:
        rows: The sample, a table of ``EXAMPLE_SCHEMA``.
        cluster_ids: (n,) cluster of each row.
        history: (K,) examples trained on so far, by cluster.
        space: Identity of the clusters.
        seed: Of the newest draw.
        sources: What was trained on, oldest first (identities of artefacts, for instance).
    """

    rows: pa.Table
    cluster_ids: Ids
    history: Counts
    space: str
    seed: int
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of examples."""
        return int(self.rows.num_rows)

    @classmethod
    def draw(
        cls,
        rows: pa.Table,
        cluster_ids: Ids,
        n_clusters: int,
        *,
        share: float,
        max_examples: int,
        seed: int,
        space: str,
        sources: Sequence[str] = (),
    ) -> ReplayBuffer:
        """Draw a buffer from a whole history, see `draw_replay`.

        Args:
            rows: (N) historical examples, of ``EXAMPLE_SCHEMA``.
            cluster_ids: (N,) cluster of each, in [0, K).
            n_clusters: K.
            share: Of the history, in [0, 1].
            max_examples: Bound of the buffer.
            seed: Of the draw.
            space: Identity of the clusters.
            sources: What the rows are.

        Raises:
            DataError: ids that do not fit rows or clusters.
        """
        history = count_clusters(cluster_ids, n_clusters)
        keys = example_keys(rows["id"].to_pylist())
        rng = derive_rng(seed, "replay")
        chosen = draw_replay(cluster_ids, keys, share, max_examples, rng)
        kept = rows.select(EXAMPLE_SCHEMA.names).take(chosen)
        ids = np.asarray(cluster_ids)[chosen].astype(np.int32)
        return cls(kept, ids, history, space, seed, tuple(sources))

    def facts(self) -> dict[str, Any]:
        """Return what the buffer is and how close it is to the history, as JSON values.

        `js_to_history` is the divergence (5) in bits of the buffer's mix from the history's; None
        for an empty buffer.
        """
        buffer = count_clusters(self.cluster_ids, len(self.history))
        return {
            "n_examples": len(self),
            "n_history": int(self.history.sum()),
            "history": self.history.tolist(),
            "buffer": buffer.tolist(),
            "js_to_history": js_divergence(buffer, self.history) if len(self) else None,
            "space": self.space,
            "seed": self.seed,
            "sources": list(self.sources),
        }

    def save(self, folder: Path) -> dict[str, Any]:
        """Write rows, clusters and facts under `folder`; return the facts."""
        write_rows(folder / ROWS_NAME, self.rows)
        write_array(folder / IDS_NAME, self.cluster_ids)
        write_json(folder / FACTS_NAME, {"format_version": FORMAT_VERSION, **self.facts()})
        return self.facts()

    @classmethod
    def load(cls, folder: Path) -> ReplayBuffer:
        """Read what `save` wrote.

        Raises:
            StoreError: E62 a file is missing, damaged or of another format.
        """
        try:
            facts = read_json(folder / FACTS_NAME)
            if facts["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {facts['format_version']}, not {FORMAT_VERSION}")
            rows, ids = read_table(folder / ROWS_NAME), read_array(folder / IDS_NAME)
            history = np.array(facts["history"], dtype=np.int64)
            if len(ids) != rows.num_rows or len(ids) != facts["n_examples"]:
                raise ValueError(f"{rows.num_rows} rows, {len(ids)} clusters")
            return cls(rows, ids, history, facts["space"], facts["seed"], tuple(facts["sources"]))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise StoreError(
                f"The replay buffer in {folder} cannot be read: {error}. Draw it again."
            ) from error

"""Slices: test items in the mix of one stage of usage, and several of them as one test."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.selection.drawing import Keys, random_priorities
from compass_core.storage import fingerprint

FAITHFUL_SHARE = 0.9
"""Share of a slice that must follow the usage's mix; the rest may be missing where a cluster has
too few test items."""

LEAST_COVERED = 0.5
"""Share of the usage whose clusters must have a test item at all."""


def draw_slice(
    item_clusters: NDArray[np.integer],
    usage_clusters: NDArray[np.integer],
    keys: Keys,
    *,
    least: int,
    most: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Choose test items whose clusters are mixed as the usage's are.

    The slice is as large as the mix allows: more items than that would come from clusters that
    users hardly ask about, only because those have items left.

    Args:
        item_clusters: (N,) cluster of each test item.
        usage_clusters: (U,) cluster of each prompt of the new usage.
        keys: (N,) keys of the items' ids; chance goes by them, not by the order of the rows.
        least: Items wanted at least, even if the mix suffers.
        most: Items at most.
        rng: For the choice inside a cluster.

    Returns:
        Row numbers, ascending.

    Raises:
        DataError: E48 less than `LEAST_COVERED` of the usage is about clusters with any item.
    """
    n_clusters = int(max(item_clusters.max(initial=0), usage_clusters.max(initial=0))) + 1
    shares = np.bincount(usage_clusters, minlength=n_clusters) / max(len(usage_clusters), 1)
    items = np.bincount(item_clusters, minlength=n_clusters)
    reachable = int(items[shares > 0].sum())
    covered = float(shares[items > 0].sum())
    if covered < LEAST_COVERED:
        raise DataError(
            f"The {len(item_clusters)} test items lie in clusters that {covered:.0%} of the new "
            f"usage asks about, so they cannot tell how well it is served (at least "
            f"{LEAST_COVERED:.0%}). Add test items like the new usage to `data.test`.",
            code="E48",
        )
    size = min(most, max(least, _faithful_size(shares, items)))
    quotas = _quotas(shares, items, min(size, reachable))
    order = np.lexsort((random_priorities(keys, rng), item_clusters))
    first = np.searchsorted(item_clusters[order], np.arange(n_clusters))
    chosen = [order[first[k] : first[k] + quotas[k]] for k in range(n_clusters)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _quotas(
    shares: NDArray[np.float64], items: NDArray[np.integer], size: int
) -> NDArray[np.int64]:
    """Return how many items each cluster gives: `size` in all, as near to the shares as can be."""
    wanted = shares * size
    quotas: NDArray[np.int64] = np.minimum(items, np.floor(wanted + 1e-9)).astype(np.int64)
    while quotas.sum() < size:
        short = np.where((quotas < items) & (shares > 0), wanted - quotas, -np.inf)
        quotas[int(np.argmax(short))] += 1
    return quotas


def _faithful_size(shares: NDArray[np.float64], items: NDArray[np.integer]) -> int:
    """Return the largest size at which `FAITHFUL_SHARE` of the items can follow the shares."""
    low, high = 0, int(items.sum())
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(items, shares * middle).sum() >= FAITHFUL_SHARE * middle:
            low = middle
        else:
            high = middle - 1
    return low


def merge_slices(slices: Mapping[str, pa.Table]) -> tuple[pa.Table, dict[str, list[str]]]:
    """Return the items of all slices once each, and the ids of every slice among them.

    An id that stands for different items in different slices, as when a test set was rewritten, is
    told apart by a suffix.

    Args:
        slices: By name, rows of ``EXAMPLE_SCHEMA``.
    """
    known: dict[str, str] = {}
    tables, members = [], {}
    for name, table in slices.items():
        new_rows, ids, renamed = [], [], []
        for row, values in enumerate(table.to_pylist()):
            content = fingerprint(values)
            item = str(values["id"])
            if known.get(item, content) != content:
                item = f"{item}#{content[:8]}"
            if item not in known:
                known[item] = content
                new_rows.append(row)
                renamed.append(item)
            ids.append(item)
        members[name] = ids
        fresh = table.take(pa.array(new_rows, pa.int64()))
        place = fresh.schema.get_field_index("id")
        tables.append(
            fresh.set_column(place, fresh.schema.field("id"), pa.array(renamed, pa.string()))
        )
    return pa.concat_tables(tables), members

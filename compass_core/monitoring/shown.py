"""What may be shown of clusters: none with fewer than a minimum of users behind it.

Counts below the minimum are merged, and with them the smallest of the others until the merged ones
reach it together: else what was left out would follow from the total.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.monitoring.drift import Sample

MERGED = -1
"""Cluster id of the row that holds what is not shown by itself."""


def cluster_counts(sample: Sample, n_clusters: int) -> NDArray[np.int64]:
    """Return (K,) how many users each cluster has; prompts, where users are unknown.

    Users count whatever the unit of the test is: several sessions or prompts may be one person's.
    """
    people = sample.units if sample.people is None else sample.people
    if people is None:
        return np.bincount(sample.cluster_ids, minlength=n_clusters).astype(np.int64)
    pairs = np.unique(np.column_stack([sample.cluster_ids, people]), axis=0)
    return np.bincount(pairs[:, 0], minlength=n_clusters).astype(np.int64)


def may_be_shown(counts: NDArray[np.int64], min_shown: int) -> NDArray[np.bool_]:
    """Return (K,) which counts may be shown by themselves: none at all, or enough.

    Examples:
        >>> import numpy as np
        >>> may_be_shown(np.array([50, 3, 0, 30, 25]), 20).tolist()
        [True, False, True, True, False]

        The 3 alone would follow from the total, so the next smallest is merged with it.
    """
    shown: NDArray[np.bool_] = (counts == 0) | (counts >= min_shown)
    for candidate in np.argsort(counts, kind="stable"):
        hidden = counts[~shown].sum()
        if hidden == 0 or (hidden >= min_shown and (~shown).sum() > 1):
            break
        if counts[candidate] > 0:
            shown[candidate] = False
    return shown


def counts_table(
    reference: Sample, current: Sample, labels: tuple[str, ...], min_shown: int
) -> pa.Table:
    """Return one row per cluster that may be shown and one (`MERGED`) for the rest.

    Columns: cluster, label, n_reference, n_current (users, or prompts where they are unknown). A
    count that may not be shown beside one that may is null and part of the merged row.
    """
    sides = [cluster_counts(sample, len(labels)) for sample in (reference, current)]
    shown = [may_be_shown(counts, min_shown) for counts in sides]
    rows = [
        {"cluster": k, "label": labels[k]}
        | {
            name: int(counts[k]) if visible[k] else None
            for name, counts, visible in zip(_SIDES, sides, shown, strict=True)
        }
        for k in range(len(labels))
        if any(visible[k] and counts[k] for counts, visible in zip(sides, shown, strict=True))
    ]
    rest = {
        name: int(counts[~visible].sum())
        for name, counts, visible in zip(_SIDES, sides, shown, strict=True)
    }
    if any(rest.values()):
        rows.append({"cluster": MERGED, "label": "others", **rest})
    return pa.Table.from_pylist(rows, schema=COUNTS_SCHEMA)


_SIDES = ("n_reference", "n_current")
COUNTS_SCHEMA = pa.schema(
    [
        ("cluster", pa.int32()),
        ("label", pa.string()),
        ("n_reference", pa.int64()),
        ("n_current", pa.int64()),
    ]
)

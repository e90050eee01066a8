"""Groups of prompts as they are compared: what the units are, and whether there are enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.config import DriftConfig
from compass_core.errors import DataError
from compass_core.monitoring.permutation import (
    Pool,
    PooledUnits,
    pool_prompts,
    unit_counts,
)

_WAY_OUT = {
    "reference": "Give a larger usage sample and run `compass adapt`",
    "window": "Lengthen monitoring.window_length (window_size)",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Prompts of one stretch of usage.

    Attributes:
        cluster_ids: (n,) cluster of each prompt.
        outside: (n,) whether it lies beyond its cluster's relevance radius.
        units: (n,) number of the user (or session) it is from; None where users are unknown.
        people: (n,) number of who is behind it, for what may be shown: the user, else the session,
            else the prompt; None where nothing but `units` is known.
    """

    cluster_ids: NDArray[np.integer[Any]]
    outside: NDArray[np.bool_]
    units: NDArray[np.integer[Any]] | None = None
    people: NDArray[np.integer[Any]] | None = None

    def __post_init__(self) -> None:
        """Check that there is one entry of everything for each prompt."""
        lengths = {len(self.cluster_ids), len(self.outside)}
        lengths |= {len(known) for known in (self.units, self.people) if known is not None}
        if len(lengths) != 1:
            raise DataError(
                f"A sample needs one cluster, one flag and one unit for each prompt; got "
                f"{sorted(lengths)} of them.",
                code="E15",
            )

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.cluster_ids)


def resampled(
    reference: Sample, current: Sample, config: DriftConfig, rng: np.random.Generator
) -> tuple[tuple[Sample, Sample], str, list[str]]:
    """Return both groups as they are resampled, the name of the unit, and what to be told."""
    if config.unit == "prompt":
        groups = (_without_units(reference), _without_units(current))
        return (
            groups,
            "prompt",
            [
                "The unit is the prompt, as configured: the level holds only if "
                "every prompt has its own user."
            ],
        )
    known = [
        name
        for name, group in (("reference", reference), ("window", current))
        if group.units is not None
    ]
    if len(known) == 2:
        return (reference, current), config.unit, []
    if not known:
        return (
            (reference, current),
            "prompt",
            [
                f"The {config.unit}s are unknown, so every prompt counts as one: the level holds "
                "only if every prompt has its own user."
            ],
        )
    groups = (_one_each(reference, rng), _one_each(current, rng))
    return (
        groups,
        "prompt",
        [
            f"Only the {known[0]} knows its {config.unit}s: one prompt of each counts there. In "
            "the other group every prompt counts: right only if each has its own user."
        ],
    )


def _without_units(sample: Sample) -> Sample:
    return Sample(sample.cluster_ids, sample.outside)


def _one_each(sample: Sample, rng: np.random.Generator) -> Sample:
    """Return one random prompt of each unit; the sample itself where units are unknown."""
    if sample.units is None:
        return sample
    # Sorted by content first: the choice must not depend on the order of the rows.
    order = np.lexsort((sample.outside, sample.cluster_ids, sample.units))
    order = order[rng.permutation(len(order))]
    _, first = np.unique(sample.units[order], return_index=True)
    kept = order[first]
    return Sample(sample.cluster_ids[kept], sample.outside[kept], sample.units[kept])


def count_units(sample: Sample) -> int:
    """Return how many units a group has: users where they are known, else prompts."""
    return len(sample) if sample.units is None else len(np.unique(sample.units))


def shortfall(
    groups: tuple[Sample, Sample], n_units: tuple[int, int], config: DriftConfig
) -> list[str]:
    """Return what is below the minimum, and a way out: users where they are known, else prompts."""
    told = []
    for name, group, found in zip(("reference", "window"), groups, n_units, strict=True):
        needs = config.min_prompts if group.units is None else config.min_units
        what = "prompts" if group.units is None else f"{config.unit}s"
        setting = "min_prompts" if group.units is None else "min_units"
        if found < needs:
            told.append(
                f"The {name} has {found:,} {what}; a decision needs {needs:,}. {_WAY_OUT[name]}, "
                f"or lower monitoring.drift.{setting}."
            )
    return told


def pool_groups(groups: tuple[Sample, Sample], n_units: tuple[int, int], n_clusters: int) -> Pool:
    """Pool reference and window, by prompts where no unit has several.

    Raises:
        DataError: a cluster id is outside [0, n_clusters).
    """
    reference, current = groups
    single = n_units == (len(reference), len(current))
    if reference.units is None or current.units is None or single:
        return pool_prompts(
            (reference.cluster_ids, reference.outside),
            (current.cluster_ids, current.outside),
            n_clusters,
        )
    own = unit_counts(current.cluster_ids, current.outside, current.units, n_clusters)
    other = unit_counts(reference.cluster_ids, reference.outside, reference.units, n_clusters)
    return PooledUnits(np.concatenate([own, other]), len(own))

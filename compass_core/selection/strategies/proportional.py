"""Cluster-proportional baseline: clusters in proportion to usage, whatever is covered already."""

from __future__ import annotations

import numpy as np

from compass_core.selection.allocation import plan_allocation
from compass_core.selection.drawing import draw_examples
from compass_core.selection.problem import Selection, SelectionProblem


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Split `budget` in proportion to usage over clusters, capped, and draw uniformly.

    Raises:
        InsufficientPoolError: fewer candidates than `budget`.
    """
    gap = problem.gap
    plan = plan_allocation(
        gap.usage_share,
        np.zeros(gap.n_clusters),
        problem.count_by_cluster(problem.candidates),
        budget,
    )
    indices = draw_examples(
        problem.pool_cluster_ids,
        problem.pool_distances,
        problem.pool_languages,
        plan.counts,
        problem.candidates,
        rng=rng,
        keys=problem.pool_keys,
    )
    by_cluster = [f"usage {p:.3f} in cluster {k}" for k, p in enumerate(gap.usage_share)]
    reasons = [by_cluster[cluster] for cluster in problem.pool_cluster_ids[indices]]
    return Selection(indices, reasons, plan.counts)

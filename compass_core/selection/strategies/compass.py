"""COMPASS: spend the budget where coverage falls short of usage."""

from __future__ import annotations

import numpy as np

from compass_core.selection.allocation import plan_allocation
from compass_core.selection.drawing import draw_examples
from compass_core.selection.problem import Selection, SelectionProblem


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Allocate `budget` over clusters by `problem.rule` and draw inside each.

    Raises:
        InsufficientPoolError: fewer than `budget` relevant examples.
    """
    gap = problem.gap
    plan = plan_allocation(
        gap.usage_share,
        gap.coverage_count,
        problem.count_by_cluster(problem.relevant),
        budget,
        rule=problem.rule,
        smoothing=problem.smoothing,
    )
    indices = draw_examples(
        problem.pool_cluster_ids,
        problem.pool_distances,
        problem.pool_languages,
        plan.counts,
        problem.relevant,
        method=problem.draw,
        language_balance=problem.language_balance,
        rng=rng,
        keys=problem.pool_keys,
        vectors=problem.pool_vectors,
    )
    by_cluster = [_reason(cluster, value) for cluster, value in enumerate(gap.gap)]
    reasons = [by_cluster[cluster] for cluster in problem.pool_cluster_ids[indices]]
    return Selection(indices, reasons, plan.counts, plan.notes)


def _reason(cluster: int, gap: float) -> str:
    if gap > 0:
        return f"gap {gap:.3f} in cluster {cluster}"
    return f"keeps cluster {cluster} at its share of usage"

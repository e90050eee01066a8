"""Importance resampling on hashed n-grams (DSIR): texts whose words are like those of usage.

Words are compared, not meanings: across languages only names, loan words and numbers are shared.
The method is that of ``selection.hashed_ngrams``; sampling without replacement in proportion to the
weights is taking the largest of log weight + Gumbel noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.selection.drawing import Keys, random_priorities
from compass_core.selection.hashed_ngrams import (
    N_BUCKETS,
    bucket_weights,
    count_buckets,
    text_weights,
)
from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.strategies._filling import require_candidates

_PROPOSAL_TEXTS = 100_000
"""Candidates that tell how often n-grams are in the pool: those of the smallest keys."""


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Resample `budget` candidates by how like the target's their n-grams are.

    Raises:
        InsufficientPoolError: fewer candidates than `budget`.
        DataError: the pool's or the target's texts were not passed.
    """
    candidates = require_candidates(problem, budget, "by importance")
    target = list(problem.usage_texts)
    if problem.dsir_target == "usage+coverage":
        target += problem.coverage_texts
    if not target:
        raise DataError("selection.strategy=dsir needs the texts of usage, and there are none.")
    weights = bucket_weights(count_buckets([target]), _proposal_counts(problem))
    logs = np.full(len(problem.allowed), -np.inf)
    for rows, texts in problem.iter_candidates():
        logs[rows] = text_weights(texts, weights)
    noisy = logs[candidates] + _gumbel(problem.pool_keys, rng)[candidates]
    best = np.lexsort((problem.pool_keys[candidates], -noisy))[:budget]
    indices = np.sort(candidates[best])
    reasons = [f"words like {problem.dsir_target}, log weight {logs[row]:.1f}" for row in indices]
    details = {
        "target": problem.dsir_target,
        "buckets": N_BUCKETS,
        "mean_log_weight": float(logs[indices].mean()) if len(indices) else None,
        "mean_log_weight_of_pool": float(logs[candidates].mean()),
    }
    return Selection(indices, reasons, problem.count_by_cluster(indices), (), details)


def _proposal_counts(problem: SelectionProblem) -> NDArray[np.float64]:
    keys = np.where(problem.candidates, problem.pool_keys, np.iinfo(np.uint64).max)
    n_read = min(_PROPOSAL_TEXTS, len(keys))
    limit = np.partition(keys, n_read - 1)[n_read - 1]
    batches = (
        [text for row, text in zip(rows, texts, strict=True) if problem.pool_keys[row] <= limit]
        for rows, texts in problem.iter_candidates()
    )
    return count_buckets(batches)


def _gumbel(keys: Keys, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (N,) standard Gumbel noise, one number per key."""
    uniform = ((random_priorities(keys, rng) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise

"""Which test items ask about what the coverage already covers, and how arms compare on them.

A topic (or, where the data names none, a cluster) counts as covered when the coverage gives it at
least half of the share that the test set gives it. The test set is looked at only after scoring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_core.evaluation.comparison import bootstrap_interval

COVERED_SHARE = 0.5
"""Share of its test share that coverage must give a topic for it to count as covered."""


@dataclass(frozen=True)
class ArmScore:
    """Accuracy of one arm, in [0, 1]; NaN where a group has no item.

    Attributes:
        accuracy: Over all items, which follow the usage: the headline.
        low: Lower end of the bootstrap interval of `accuracy`.
        high: Upper end.
        missing: Over items whose topic the coverage lacks.
        covered: Over the other items.
        n_items: Scored items.
    """

    accuracy: float
    low: float
    high: float
    missing: float
    covered: float
    n_items: int


def covered_items(
    test_groups: Sequence[Hashable], coverage_groups: Sequence[Hashable]
) -> NDArray[np.bool_]:
    """Return which test items belong to a covered group, (N,).

    Args:
        test_groups: Topic or cluster of each test item.
        coverage_groups: Topic or cluster of each coverage example.

    Examples:
        >>> covered_items(["a", "a", "b", "b"], ["a", "a", "a"])
        array([ True,  True, False, False])
    """
    tested, known = Counter(test_groups), Counter(coverage_groups)
    n_test, n_known = max(len(test_groups), 1), max(len(coverage_groups), 1)
    covered = {
        group: known[group] / n_known >= COVERED_SHARE * count / n_test
        for group, count in tested.items()
    }
    return np.asarray([covered[group] for group in test_groups], dtype=np.bool_)


def score_arm(
    correct: NDArray[np.bool_],
    covered: NDArray[np.bool_],
    *,
    confidence: float,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> ArmScore:
    """Summarise one arm's items.

    Args:
        correct: (N,) whether each item was answered correctly.
        covered: (N,) whether each item's group is covered.
        confidence: Level of the interval.
        n_bootstrap: Resamples.
        rng: Randomness of the bootstrap.
    """
    low, high = bootstrap_interval(correct, confidence, n_bootstrap, rng)
    return ArmScore(
        accuracy=float(np.mean(correct)),
        low=low,
        high=high,
        missing=_mean(correct[~covered]),
        covered=_mean(correct[covered]),
        n_items=len(correct),
    )


def _mean(correct: NDArray[np.bool_]) -> float:
    return float(np.mean(correct)) if len(correct) else float("nan")

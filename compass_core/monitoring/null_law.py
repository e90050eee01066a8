"""The law of the drift statistics without drift, and p-values from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_core.config import DriftConfig
from compass_core.monitoring.permutation import (
    Floats,
    Pool,
    SplitStatistics,
    split_in_blocks,
    split_statistics,
)

EXTEND_BELOW = 0.01
"""A check whose first permutations say this or less is repeated with more of them."""


@dataclass(frozen=True)
class NullLaw:
    """The observed split (entry 0) and B random ones.

    Under the null hypothesis the observed split is as good as any of the others, so every rank
    among the B + 1 has the same chance, for a combination of statistics as for one.
    """

    observed: SplitStatistics
    score: Floats
    largest: Floats
    novelty: Floats

    @classmethod
    def of(cls, pool: Pool, rng: np.random.Generator, config: DriftConfig, level: float) -> NullLaw:
        """Split `n_permutations` times, and `max_permutations` times where it matters.

        It matters where the first splits say `EXTEND_BELOW` or less: no alarm of a corrected level
        is possible elsewhere, and without more splits such a level could never be reached. With
        fewer than 199 first splits one statistic alone could not say so little (see `reaches`), so
        there a level out of reach asks for more of them too.

        Going on after a small p-value cannot raise the level. An alarm needs the p-value that is
        reported: that of all splits if there was an extension, else that of the first. For a level
        up to `EXTEND_BELOW` every alarm is one of the test with all splits, for a larger level one
        of the test with the first splits only, and each of these tests keeps the level.
        """
        observed = split_statistics(pool, pool.observed())
        law = cls(observed, observed.score, observed.largest, observed.novelty)
        n_first = config.n_permutations
        law = law._with(split_in_blocks(pool, rng, n_first))
        coarse = not reaches(n_first, EXTEND_BELOW, n_statistics=2) and not reaches(n_first, level)
        more = config.max_permutations - n_first
        if more > 0 and (coarse or law.p_values()[0] <= EXTEND_BELOW):
            law = law._with(split_in_blocks(pool, rng, more))
        return law

    def _with(self, blocks: Iterable[SplitStatistics]) -> NullLaw:
        found = list(blocks)
        columns = {
            name: np.concatenate([getattr(self, name), *(getattr(b, name) for b in found)])
            for name in ("score", "largest", "novelty")
        }
        return NullLaw(self.observed, **columns)

    @property
    def n_permutations(self) -> int:
        """Random splits B."""
        return len(self.score) - 1

    def p_values(self) -> tuple[float, float, float]:
        """Return the p-values: combined, of the score, of the largest single change."""
        by_score, by_largest = _ranks(self.score), _ranks(self.largest)
        best = np.minimum(by_score, by_largest)
        n = len(best)
        combined = int(np.count_nonzero(best <= best[0]))
        return combined / n, float(by_score[0] / n), float(by_largest[0] / n)

    def novelty_is_largest(self) -> bool:
        """Say whether no cluster changed more than the share outside every radius."""
        return bool(abs(self.novelty[0]) >= self.largest[0])

    def threshold(self, level: float) -> float:
        """Return the score above which `p_score` is at most `level`.

        Where no p-value can be so small, it is the largest score of the random splits.
        """
        rank = max(1, math.floor(round(level * len(self.score), 9)))
        return float(np.partition(self.score[1:], -rank)[-rank])


def reaches(n_permutations: int, level: float, n_statistics: int = 1) -> bool:
    """Say whether any p-value of so many random splits is at most `level`.

    The smallest is 1 / (B + 1). The combined one is so small only where the observed split is the
    largest by both statistics; where it is by one, the largest by the other ties with it.

    Examples:
        >>> reaches(999, 0.001), reaches(999, 0.001, n_statistics=2)
        (True, False)
    """
    return round(level * (n_permutations + 1), 9) >= n_statistics


def _ranks(values: Floats) -> NDArray[np.int64]:
    """Return for each value how many are at least as large, itself included."""
    ascending = np.sort(values)
    ranks: NDArray[np.int64] = len(values) - np.searchsorted(ascending, values, side="left")
    return ranks

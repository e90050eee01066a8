"""Learning, forgetting and cost of arms that follow a sequence of shifts.

The scores of one arm on one sequence are a matrix: `scores[i, j]` is the accuracy after stage i on
the slice of stage j (method notes, section 5).  Languages are the unit across languages; seeds are
averaged within them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from compass_core.evaluation.study import language_interval, resampled_means
from compass_core.report.continual_data import (
    ArmSummary,
    Claim,
    ContinualCell,
    ContinualCost,
    Interval,
)
from compass_core.seeding import derive_rng

Floats = NDArray[np.float64]

NAIVE: Final = "naive"
ECDA: Final = "ecda"
FULL: Final = "full"

MAX_FORGETTING_SHARE: Final = 1 / 3
MIN_LEARNING_SHARE: Final = 0.9
MAX_FINAL_LOSS: Final = 0.01
MAX_COST_SHARE: Final = 0.25

_MEASURES: Final = ("learning", "forgetting", "final_accuracy")


def learning_by_shift(scores: Floats) -> Floats:
    """Return (T − 1,) score on each new slice after its shift was learnt, minus before.

    Args:
        scores: (T, T) accuracy after stage i on slice j.

    Examples:
        >>> learning_by_shift(np.array([[0.9, 0.5], [0.8, 0.7]])).round(3).tolist()
        [0.2]
    """
    stages = np.arange(1, len(scores))
    learnt: Floats = scores[stages, stages] - scores[stages - 1, stages]
    return learnt


def forgetting_by_shift(scores: Floats) -> Floats:
    """Return (T − 1,) forgetting after each shift.

    Forgetting_i = mean over j < i of (best past score_j − score_j now), where a past score of slice
    j is one after a stage from j to i − 1.  It is negative where older slices got better.

    Args:
        scores: (T, T) accuracy after stage i on slice j.

    Examples:
        >>> scores = np.array([[0.9, 0.5, 0.4], [0.8, 0.7, 0.4], [0.6, 0.6, 0.9]])
        >>> forgetting_by_shift(scores).round(3).tolist()
        [0.1, 0.2]
    """
    lost = [
        np.mean([scores[j:now, j].max() - scores[now, j] for j in range(now)])
        for now in range(1, len(scores))
    ]
    return np.array(lost, dtype=np.float64)


def score_matrix(
    cells: Sequence[ContinualCell], language: str, seed: int, arm: str, n_stages: int
) -> Floats:
    """Return (T, T) accuracy after stage i on slice j of one arm; nan where it was not measured."""
    scores = np.full((n_stages, n_stages), np.nan)
    for cell in cells:
        if (cell.language, cell.seed, cell.arm) == (language, seed, arm):
            scores[cell.stage, cell.slice] = np.nan if cell.accuracy is None else cell.accuracy
    return scores


def shift_tokens(cost: ContinualCost) -> int:
    """Return the tokens through forward and backward of one stage: task, replay and Fisher."""
    return cost.tokens_task + cost.tokens_replay + cost.tokens_fisher


class Grid:
    """The measures of every arm over the languages that have all arms and seeds."""

    def __init__(
        self,
        cells: Sequence[ContinualCell],
        costs: Sequence[ContinualCost],
        arms: Sequence[str],
        seeds: Sequence[int],
        n_stages: int,
    ) -> None:
        """Measure every arm; a language that misses any score takes no part.

        Args:
            cells: Every score.
            costs: Every cost; those of stage 0 are shared by all arms and left out.
            arms: Arms to measure.
            seeds: Seeds that every language needs.
            n_stages: Stages, the first training included.
        """
        self.arms = list(arms)
        found = dict.fromkeys(cell.language for cell in cells)
        self.languages: list[str] = []
        measured: dict[str, list[Floats]] = {arm: [] for arm in arms}
        for language in found:
            rows = {
                arm: np.array(
                    [_measures(score_matrix(cells, language, s, arm, n_stages)) for s in seeds]
                )
                for arm in arms
            }
            if all(np.isfinite(values).all() for values in rows.values()):
                self.languages.append(language)
                for arm in arms:
                    measured[arm].append(rows[arm])
        self._values = {arm: np.array(rows, dtype=np.float64) for arm, rows in measured.items()}
        self._tokens = {arm: self._mean_tokens(costs, arm, seeds) for arm in arms}

    def values(self, arm: str, measure: str) -> Floats:
        """Return (languages, seeds) values of ``learning``, ``forgetting``, ``final_accuracy``."""
        return self._values[arm][:, :, _MEASURES.index(measure)]

    def tokens(self, arm: str, language: str = "") -> float:
        """Return the tokens of all shifts of a sequence, mean over seeds (and languages)."""
        tokens = self._tokens[arm]
        return tokens[language] if language else float(np.mean(list(tokens.values())))

    def _mean_tokens(
        self, costs: Sequence[ContinualCost], arm: str, seeds: Sequence[int]
    ) -> dict[str, float]:
        totals = dict.fromkeys(self.languages, 0)
        for cost in costs:
            if cost.arm == arm and cost.stage > 0 and cost.language in totals:
                totals[cost.language] += shift_tokens(cost)
        return {language: total / len(seeds) for language, total in totals.items()}


def _measures(scores: Floats) -> tuple[float, float, float]:
    return (
        float(learning_by_shift(scores).mean()),
        float(forgetting_by_shift(scores).mean()),
        float(scores[-1].mean()),
    )


def summarise(grid: Grid, level: float) -> list[ArmSummary]:
    """Return one summary per arm over all languages, then one per arm and language.

    Intervals resample languages and, in them, seeds; those of one language resample seeds.

    Args:
        grid: What was measured.
        level: Level of the intervals.
    """
    if not grid.languages:
        return []
    overall = [_summary(grid, arm, "", slice(None), level) for arm in grid.arms]
    single = [
        _summary(grid, arm, language, slice(place, place + 1), level)
        for place, language in enumerate(grid.languages)
        for arm in grid.arms
    ]
    return overall + single


def _summary(grid: Grid, arm: str, language: str, rows: slice, level: float) -> ArmSummary:
    means: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for measure in _MEASURES:
        values = grid.values(arm, measure)[rows]
        means[measure] = float(values.mean())
        rng = derive_rng(0, "continual", arm, measure, language)
        intervals[measure] = language_interval(values, level, rng)
    tokens = grid.tokens(arm, language)
    full = grid.tokens(FULL, language) if FULL in grid.arms else 0.0
    return ArmSummary(
        arm=arm,
        learning=means["learning"],
        forgetting=means["forgetting"],
        final_accuracy=means["final_accuracy"],
        cost_tokens=tokens,
        cost_share_of_full=tokens / full if full else None,
        intervals=intervals,
        language=language,
    )


def judge(grid: Grid, level: float) -> list[Claim]:
    """Compare what ECDA was to reach with what was measured.

    A claim is met when the mean over languages meets it; its interval is told beside it.

    Args:
        grid: What was measured; claims about arms that took no part are left out.
        level: Level of the intervals.
    """
    if not grid.languages or ECDA not in grid.arms:
        return []
    found = []
    if NAIVE in grid.arms:
        found += [
            _share_claim(
                grid,
                "forgetting",
                level,
                MAX_FORGETTING_SHARE,
                "ECDA forgets at most a third of what naive fine-tuning forgets",
            ),
            _share_claim(
                grid,
                "learning",
                level,
                MIN_LEARNING_SHARE,
                "ECDA learns at least 90 % of what naive fine-tuning learns",
            ),
        ]
    if FULL in grid.arms:
        found += [_final_claim(grid, level), _cost_claim(grid)]
    return found


def _share_claim(grid: Grid, measure: str, level: float, limit: float, text: str) -> Claim:
    pair = np.stack([grid.values(arm, measure) for arm in (ECDA, NAIVE)], axis=-1)
    ours, theirs = pair.mean(axis=(0, 1))
    told = f"ECDA {100 * ours:.1f} points, naive {100 * theirs:.1f}"
    if theirs <= 0:
        return Claim(
            text,
            f"{told}: naive {'forgot' if measure == 'forgetting' else 'learnt'} "
            "nothing to compare with",
            None,
        )
    means = resampled_means(pair, derive_rng(0, "continual-share", measure))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = means[:, 0] / means[:, 1]
    low, high = np.nanquantile(shares, [(1 - level) / 2, (1 + level) / 2])
    share = ours / theirs
    met = share <= limit if measure == "forgetting" else share >= limit
    return Claim(text, f"{told}: {share:.0%} ({low:.0%} to {high:.0%})", bool(met))


def _final_claim(grid: Grid, level: float) -> Claim:
    differences = grid.values(ECDA, "final_accuracy") - grid.values(FULL, "final_accuracy")
    low, high = language_interval(differences, level, derive_rng(0, "continual-final"))
    mean = float(differences.mean())
    return Claim(
        "ECDA ends within one point of full retraining, over the slices of all stages",
        f"{100 * mean:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})",
        mean >= -MAX_FINAL_LOSS,
    )


def _cost_claim(grid: Grid) -> Claim:
    share = grid.tokens(ECDA) / grid.tokens(FULL)
    return Claim(
        "ECDA costs at most a quarter of full retraining, in tokens through forward and backward "
        "over all shifts, Fisher information and replay included",
        f"{share:.0%}",
        share <= MAX_COST_SHARE,
    )


def describe_differences(grid: Grid, level: float) -> list[str]:
    """Return ECDA minus every other arm as sentences: paired by language and seed.

    No p-values: with the few languages of such a study no test could tell anything (the smallest
    p of a sign-flip test over n languages is 2^(1 − n)).
    """
    if not grid.languages or ECDA not in grid.arms:
        return []
    n = len(grid.languages)
    over = f"{n} language{'s' if n != 1 else ''}"
    told = []
    for arm in grid.arms:
        if arm == ECDA:
            continue
        parts = []
        for measure in _MEASURES:
            values = grid.values(ECDA, measure) - grid.values(arm, measure)
            rng = derive_rng(0, "continual-difference", arm, measure)
            low, high = language_interval(values, level, rng)
            name = measure.replace("_", " ")
            parts.append(
                f"{name} {100 * float(values.mean()):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            )
        told.append(f"ECDA minus {arm}, points: {', '.join(parts)}; {over}.")
    return told

"""Compare arms over languages and seeds: paired differences, sign-flip tests, Holm's correction.

Per language the mean over seeds; across languages a sign-flip permutation test on the differences
(method notes, section 6). Every comparison that is shown is also corrected for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compass_core.evaluation.comparison import cohens_d, holm, sign_flip_test
from compass_core.report.data import Comparison, StudyCell
from compass_core.seeding import derive_rng

METRICS = ("accuracy", "missing")
N_PERMUTATIONS = 10_000
N_BOOTSTRAP = 10_000


def compare_arms(
    cells: Sequence[StudyCell], main: str, others: Sequence[str], *, level: float = 0.95
) -> list[Comparison]:
    """Compare `main` with every other arm, on all items and on the missing topics.

    Args:
        cells: One per language, seed and arm.
        main: The arm under test.
        others: Arms to compare it with.
        level: Level of the intervals (bootstrap over languages and seeds).

    Returns:
        One comparison per metric and arm; p-values corrected over all of them.
    """
    found = []
    for metric in METRICS:
        for other in others:
            differences = paired_differences(cells, main, other, metric)
            if differences.size == 0:
                continue
            per_language = differences.mean(axis=1)
            rng = derive_rng(0, "study", main, other, metric)
            low, high = language_interval(differences, level, rng)
            found.append(
                Comparison(
                    comparison=f"{main} - {other}",
                    metric=metric,
                    mean_difference=float(per_language.mean()),
                    low=low,
                    high=high,
                    p=sign_flip_test(per_language, N_PERMUTATIONS, rng),
                    cohens_d=cohens_d(per_language),
                    n_languages=len(per_language),
                )
            )
    corrected = holm([c.p for c in found if c.p is not None])
    return [replace(found_one, p_holm=p) for found_one, p in zip(found, corrected, strict=True)]


def paired_differences(
    cells: Sequence[StudyCell], main: str, other: str, metric: str
) -> NDArray[np.float64]:
    """Return (languages, seeds) differences of `main` minus `other`.

    Only languages with a finite value of both arms in every seed take part.
    """
    values = {(c.language, c.seed, c.arm): getattr(c, metric) for c in cells}
    languages = list(dict.fromkeys(c.language for c in cells))
    seeds = sorted({c.seed for c in cells})
    rows = []
    for language in languages:
        pairs = [
            (values.get((language, seed, main)), values.get((language, seed, other)))
            for seed in seeds
        ]
        row = [np.nan if a is None or b is None else a - b for a, b in pairs]
        if np.isfinite(row).all():
            rows.append(row)
    return np.asarray(rows, dtype=np.float64)


def language_interval(
    values: NDArray[np.float64], level: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the bootstrap interval of the mean of `values` (languages, seeds)."""
    means = resampled_means(values, rng)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return `N_BOOTSTRAP` means of `values`, resampling languages and, in them, seeds.

    Args:
        values: (languages, seeds, …); further axes are resampled together.
        rng: Source of the resamples.
    """
    n_languages, n_seeds = values.shape[:2]
    languages = rng.integers(0, n_languages, size=(N_BOOTSTRAP, n_languages, 1))
    seeds = rng.integers(0, n_seeds, size=(N_BOOTSTRAP, n_languages, n_seeds))
    means: NDArray[np.float64] = values[languages, seeds].mean(axis=(1, 2))
    return means

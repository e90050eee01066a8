"""Comparisons of a study: paired by language and seed, corrected for their number."""

import numpy as np
import pytest

from compass_core.evaluation.study import compare_arms, paired_differences
from compass_core.report.data import StudyCell

ARMS = {"zero-shot": 0.3, "random": 0.5, "compass": 0.6}


def cells(n_languages=8, seeds=(0, 1), noise=0.01):
    rng = np.random.default_rng(0)
    return [
        StudyCell(
            language=f"l{language}",
            seed=seed,
            arm=arm,
            accuracy=level + noise * rng.standard_normal(),
            missing=level / 2 + noise * rng.standard_normal(),
        )
        for language in range(n_languages)
        for seed in seeds
        for arm, level in ARMS.items()
    ]


def test_clear_difference_is_found_with_the_smallest_p_that_signs_can_give():
    found = compare_arms(cells(), "compass", ["zero-shot", "random"])
    assert [(c.comparison, c.metric) for c in found] == [
        ("compass - zero-shot", "accuracy"),
        ("compass - random", "accuracy"),
        ("compass - zero-shot", "missing"),
        ("compass - random", "missing"),
    ]
    first = found[1]
    assert first.mean_difference == pytest.approx(0.1, abs=0.01)
    assert first.low < first.mean_difference < first.high
    assert first.low > 0.05
    assert first.p == pytest.approx(2 / 2**8)
    assert first.p_holm == pytest.approx(4 * 2 / 2**8)
    assert first.n_languages == 8
    assert first.cohens_d > 1


def test_no_difference_is_not_found():
    same = [c for c in cells(noise=0.05) if c.arm == "random"]
    twin = [StudyCell(c.language, c.seed, "twin", c.accuracy, c.missing) for c in same]
    shuffled = [
        StudyCell(c.language, c.seed, "twin", same[-1 - i].accuracy, same[-1 - i].missing)
        for i, c in enumerate(twin)
    ]
    assert all(c.p > 0.05 for c in compare_arms([*same, *shuffled], "random", ["twin"]))


def test_language_with_a_missing_cell_takes_no_part():
    incomplete = [c for c in cells() if (c.language, c.seed, c.arm) != ("l3", 1, "random")]
    differences = paired_differences(incomplete, "compass", "random", "accuracy")
    assert differences.shape == (7, 2)


def test_same_cells_give_the_same_numbers():
    assert compare_arms(cells(), "compass", ["random"]) == compare_arms(
        cells(), "compass", ["random"]
    )

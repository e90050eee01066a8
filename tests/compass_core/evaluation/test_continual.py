"""Learning, forgetting and cost: by hand, against a slow twin, and what is claimed of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compass_core.evaluation.continual import (
    Grid,
    describe_differences,
    forgetting_by_shift,
    judge,
    learning_by_shift,
    score_matrix,
    summarise,
)
from compass_core.report.continual_data import ContinualCell, ContinualCost

LANGUAGES, SEEDS, N_STAGES = ("zul_Latn", "ukr_Cyrl", "pes_Arab"), (1, 2), 3

MATRICES = {
    "frozen": [[0.8, 0.4, 0.4], [0.8, 0.4, 0.4], [0.8, 0.4, 0.4]],
    "naive": [[0.8, 0.4, 0.4], [0.2, 0.8, 0.4], [0.2, 0.2, 0.8]],
    "ecda": [[0.8, 0.4, 0.4], [0.7, 0.8, 0.4], [0.7, 0.7, 0.8]],
    "full": [[0.8, 0.4, 0.4], [0.8, 0.8, 0.4], [0.7, 0.7, 0.8]],
}
TOKENS = {"frozen": 0, "naive": 100, "ecda": 150, "full": 1000}

scores = st.integers(2, 7).flatmap(
    lambda n: arrays(np.float64, (n, n), elements=st.floats(0, 1, width=32))
)


def cells_of(matrices, languages=LANGUAGES, seeds=SEEDS):
    return [
        ContinualCell(language, seed, arm, stage, number, accuracy)
        for language in languages
        for seed in seeds
        for arm, matrix in matrices.items()
        for stage, row in enumerate(matrix)
        for number, accuracy in enumerate(row)
    ]


def costs_of(tokens, languages=LANGUAGES, seeds=SEEDS):
    return [
        ContinualCost(
            language, seed, arm, stage, n - 30 * (n > 100), 20 * (n > 100), 10 * (n > 100)
        )
        for language in languages
        for seed in seeds
        for arm, n in tokens.items()
        for stage in range(N_STAGES)
    ]


def grid_of(matrices=None, tokens=None, **names):
    matrices = MATRICES if matrices is None else matrices
    cells, costs = cells_of(matrices, **names), costs_of(tokens or TOKENS, **names)
    return Grid(cells, costs, list(matrices), names.get("seeds", SEEDS), N_STAGES)


def slow_forgetting(matrix):
    found = []
    for now in range(1, len(matrix)):
        lost = 0.0
        for old in range(now):
            best = max(matrix[past][old] for past in range(old, now))
            lost += best - matrix[now][old]
        found.append(lost / now)
    return found


def test_a_matrix_by_hand():
    naive = np.array(MATRICES["naive"])
    assert learning_by_shift(naive) == pytest.approx([0.4, 0.4])
    assert forgetting_by_shift(naive) == pytest.approx([0.6, 0.6])
    assert forgetting_by_shift(np.array(MATRICES["ecda"])) == pytest.approx([0.1, 0.1])


@given(scores)
@settings(max_examples=50, deadline=None)
def test_forgetting_is_that_of_the_slow_twin(matrix):
    assert forgetting_by_shift(matrix) == pytest.approx(slow_forgetting(matrix.tolist()))


@given(scores)
@settings(max_examples=50, deadline=None)
def test_an_arm_that_never_changes_learns_and_forgets_nothing(matrix):
    frozen = np.repeat(matrix[:1], len(matrix), axis=0)
    assert not learning_by_shift(frozen).any()
    assert not forgetting_by_shift(frozen).any()


def test_what_was_never_learnt_cannot_be_forgotten():
    """A slice's score before its own stage is no past score: luck is not learning."""
    matrix = np.array([[0.5, 0.9, 0.5], [0.5, 0.4, 0.5], [0.5, 0.4, 0.5]])
    assert not forgetting_by_shift(matrix).any()


def test_a_slice_that_got_better_counts_as_negative_forgetting():
    assert forgetting_by_shift(np.array([[0.5, 0.5], [0.7, 0.5]])) == pytest.approx([-0.2])


def test_the_order_of_the_cells_changes_nothing():
    cells = cells_of(MATRICES)
    one, other = (
        Grid(rows, costs_of(TOKENS), list(MATRICES), SEEDS, N_STAGES)
        for rows in (cells, cells[::-1])
    )
    for arm in MATRICES:
        assert one.values(arm, "forgetting").mean() == other.values(arm, "forgetting").mean()


def test_cost_leaves_out_the_first_stage_and_counts_replay_and_fisher():
    grid = grid_of()
    assert grid.tokens("naive") == 200
    assert grid.tokens("ecda") == 300
    assert grid.tokens("ecda", "zul_Latn") == 300


def test_a_language_with_a_missing_score_takes_no_part():
    cells = [
        cell
        for cell in cells_of(MATRICES)
        if (cell.language, cell.seed, cell.arm, cell.stage) != ("ukr_Cyrl", 2, "ecda", 1)
    ]
    grid = Grid(cells, costs_of(TOKENS), list(MATRICES), SEEDS, N_STAGES)
    assert grid.languages == ["zul_Latn", "pes_Arab"]
    assert {row.language for row in summarise(grid, 0.95)} == {"", "zul_Latn", "pes_Arab"}


def test_a_score_that_was_not_measured_is_not_a_number():
    matrix = score_matrix([ContinualCell("a", 0, "ecda", 0, 0, None)], "a", 0, "ecda", 2)
    assert np.isnan(matrix).all()


def test_the_summary_has_an_arm_over_all_languages_and_each_of_them():
    rows = summarise(grid_of(), 0.95)
    found = {(row.arm, row.language): row for row in rows}
    assert len(rows) == len(MATRICES) * (1 + len(LANGUAGES))
    ecda = found["ecda", ""]
    assert ecda.learning == pytest.approx(0.4)
    assert ecda.forgetting == pytest.approx(0.1)
    assert ecda.final_accuracy == pytest.approx((0.7 + 0.7 + 0.8) / 3)
    assert ecda.cost_share_of_full == pytest.approx(0.15)
    assert ecda.intervals["forgetting"] == pytest.approx((0.1, 0.1))


def test_without_full_retraining_there_is_no_share_of_its_cost():
    matrices = {arm: MATRICES[arm] for arm in ("naive", "ecda")}
    rows = summarise(grid_of(matrices), 0.95)
    assert {row.cost_share_of_full for row in rows} == {None}
    assert len(judge(grid_of(matrices), 0.95)) == 2


def test_claims_that_hold_are_met():
    claims = judge(grid_of(), 0.95)
    assert [claim.met for claim in claims] == [True, True, True, True]
    assert "17% (17% to 17%)" in claims[0].found
    assert claims[2].found.startswith("+0.0 points")


@pytest.mark.parametrize(
    ("changes", "tokens", "met"),
    [
        ({"ecda": MATRICES["naive"]}, TOKENS, [False, True, False, True]),
        ({"ecda": MATRICES["frozen"]}, TOKENS, [True, False, False, True]),
        ({}, TOKENS | {"ecda": 300}, [True, True, True, False]),
    ],
)
def test_claims_that_fail_are_not(changes, tokens, met):
    claims = judge(grid_of(MATRICES | changes, tokens), 0.95)
    assert [claim.met for claim in claims] == met


def test_a_share_of_nothing_is_not_judged():
    claims = judge(grid_of(MATRICES | {"naive": MATRICES["frozen"]}), 0.95)
    assert [claim.met for claim in claims][:2] == [None, None]
    assert "nothing to compare" in claims[0].found


def test_without_ecda_or_any_whole_language_nothing_is_claimed():
    assert judge(grid_of({arm: MATRICES[arm] for arm in ("naive", "full")}), 0.95) == []
    assert judge(Grid([], [], ["ecda", "naive"], SEEDS, N_STAGES), 0.95) == []
    assert summarise(Grid([], [], ["ecda", "naive"], SEEDS, N_STAGES), 0.95) == []


def test_differences_are_paired_and_named():
    told = describe_differences(grid_of(), 0.95)
    assert len(told) == 3
    naive = next(line for line in told if line.startswith("ECDA minus naive"))
    assert "forgetting -50.0 (-50.0 to -50.0)" in naive
    assert naive.endswith("3 languages.")


def test_equal_cells_give_equal_intervals():
    assert summarise(grid_of(), 0.95) == summarise(grid_of(), 0.95)

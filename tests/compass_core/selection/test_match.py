"""How near the data comes to the usage: before, after, and by chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.selection.allocation import allocate_budget
from compass_core.selection.gap import GapTable
from compass_core.selection.match import measure_match, notes_on_match


def table(usage, coverage, capacity):
    ids = [np.repeat(np.arange(len(usage)), counts) for counts in (usage, coverage, capacity)]
    return GapTable.from_assignments(*ids, len(usage), smoothing=1e-9)


def test_a_selection_that_fills_the_gap_brings_the_distance_to_zero():
    gap = table([10, 10], [10, 0], [50, 50])
    found = measure_match(gap, [0, 10], [90, 10])
    # Shares (.5, .5) against (1, 0): JS = 1 − H-like terms = .311 bits.
    assert found["js_before"] == pytest.approx(0.31128, abs=1e-4)
    assert found["js_after"] == pytest.approx(0.0, abs=1e-9)
    # By chance nine of ten go where nothing is missing: 19 against 1.
    assert found["js_after"] < found["js_random"] < found["js_before"]


def test_without_coverage_the_distance_before_is_one():
    gap = table([5, 5], [0, 0], [9, 9])
    found = measure_match(gap, [0, 0], [9, 9])
    assert found["js_before"] == 1.0
    assert found["js_after"] == 1.0


@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=8),
    st.integers(0, 40),
)
def test_all_three_are_divergences_and_ours_is_never_worse_than_no_selection(usage, budget):
    coverage = [1 + 7 * (k % 2) for k in range(len(usage))]
    gap = table(usage, coverage, [100] * len(usage))
    chosen = allocate_budget(gap.usage_share, gap.coverage_count, gap.capacity, budget)
    found = measure_match(gap, chosen, gap.capacity)
    assert all(0.0 <= value <= 1.0 for value in found.values())
    assert found["js_after"] <= found["js_before"] + 0.02


def test_a_selection_that_moves_away_from_the_usage_is_told():
    gap = table([10, 10], [10, 9], [50, 50])
    (note,) = notes_on_match(measure_match(gap, [40, 0], [90, 10]))
    assert "away from the usage" in note
    assert "selection.budget" in note
    assert notes_on_match(measure_match(gap, [0, 1], [90, 10])) == []

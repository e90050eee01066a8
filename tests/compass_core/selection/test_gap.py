"""Shares, gap and divergences: hand-checkable cases, and what must hold for any counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from compass_core.errors import DataError
from compass_core.selection.gap import (
    GapTable,
    js_divergence,
    kl_divergence,
    measure_gap,
    smoothed_shares,
)

counts = st.lists(st.integers(0, 500), min_size=1, max_size=20)


def test_shares_add_the_pseudo_count_to_every_cluster():
    # (3 + .5) / (4 + .5·2) = .7 and (1 + .5) / 5 = .3
    assert smoothed_shares([3, 1], 0.5).tolist() == [0.7, 0.3]


def test_no_coverage_means_uniform_shares():
    assert smoothed_shares([0, 0, 0, 0]).tolist() == [0.25] * 4


@given(counts, st.floats(0.01, 10))
def test_shares_are_positive_and_sum_to_one(values, smoothing):
    shares = smoothed_shares(values, smoothing)
    assert (shares > 0).all()
    assert shares.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("values", "smoothing", "advice"),
    [([1, -1], 0.5, "non-negative"), ([[1, 2]], 0.5, "shape"), ([1, 2], 0.0, "smoothing")],
)
def test_impossible_counts_are_refused_with_the_reason(values, smoothing, advice):
    with pytest.raises(DataError, match=advice):
        smoothed_shares(values, smoothing)


@given(counts)
def test_gap_is_never_negative_and_zero_against_itself(values):
    shares = smoothed_shares(values)
    assert measure_gap(shares, shares).max() == 0
    assert measure_gap(shares, np.roll(shares, 1)).min() >= 0


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)), min_size=1, max_size=12))
def test_js_lies_between_zero_and_one_is_symmetric_and_equals_the_entropy_form(pairs):
    p, q = np.array(pairs).T
    found = js_divergence(p, q)
    assert 0 <= found <= 1
    assert found == pytest.approx(js_divergence(q, p), abs=1e-12)
    p, q = p / p.sum(), q / q.sum()
    by_entropy = entropy((p + q) / 2, base=2) - (entropy(p, base=2) + entropy(q, base=2)) / 2
    assert found == pytest.approx(by_entropy, abs=1e-9)


def test_kl_is_in_bits_and_infinite_where_the_second_share_vanishes():
    assert kl_divergence([0.5, 0.5], [0.25, 0.75]) == pytest.approx(0.5 + 0.5 * np.log2(2 / 3))
    assert kl_divergence([1, 1], [1, 0]) == float("inf")


def test_gap_table_counts_only_available_pool_rows_and_survives_a_round_trip():
    table = GapTable.from_assignments(
        np.array([0, 0, 1]),
        np.array([1]),
        np.array([0, 0, 1, 2]),
        3,
        available=np.array([True, False, True, True]),
    )
    assert table.usage_count.tolist() == [2, 1, 0]
    assert table.coverage_count.tolist() == [0, 1, 0]
    assert table.capacity.tolist() == [1, 1, 1]
    again = GapTable.from_table(table.to_table())
    for name in table.__dataclass_fields__:
        assert getattr(again, name).tolist() == getattr(table, name).tolist()


def test_gap_table_without_usage_says_that_there_is_nothing_to_aim_at():
    nothing = np.empty(0, dtype=np.int32)
    with pytest.raises(DataError, match=r"data\.usage"):
        GapTable.from_assignments(nothing, nothing, nothing, 3)


def test_assignments_of_other_clusters_are_refused():
    with pytest.raises(DataError, match="there are 3 clusters"):
        GapTable.from_assignments(np.array([3]), np.array([0]), np.array([0]), 3)

"""Counts that may be shown: never of a few users, not even by subtraction."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compass_core.monitoring.drift import Sample
from compass_core.monitoring.shown import MERGED, cluster_counts, counts_table, may_be_shown


def sample(ids, units=None):
    ids = np.array(ids, np.int32)
    return Sample(ids, np.zeros(len(ids), bool), None if units is None else np.array(units))


def test_people_are_counted_whatever_the_unit_of_the_test_is():
    ids, sessions, people = [0] * 30 + [1] * 30, list(range(60)), [0] * 30 + list(range(30))
    one = Sample(np.array(ids), np.zeros(60, bool), np.array(sessions), np.array(people))
    assert cluster_counts(one, 2).tolist() == [1, 30]
    assert cluster_counts(Sample(one.cluster_ids, one.outside, None, one.people), 2)[0] == 1


def test_users_are_counted_once_in_each_cluster():
    ids, users = [0, 0, 0, 1, 1], [7, 7, 8, 7, 7]
    assert cluster_counts(sample(ids, users), 3).tolist() == [2, 1, 0]
    assert cluster_counts(sample(ids), 3).tolist() == [3, 2, 0]


def test_what_is_hidden_alone_takes_the_next_smallest_with_it():
    assert may_be_shown(np.array([50, 3, 30]), 20).tolist() == [True, False, False]
    assert may_be_shown(np.array([50, 12, 11, 30]), 20).tolist() == [True, False, False, True]
    assert may_be_shown(np.array([50, 0, 30]), 20).tolist() == [True, True, True]
    assert may_be_shown(np.array([3, 0]), 20).tolist() == [False, True]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=30), st.integers(1, 50))
def test_no_small_count_is_shown_nor_follows_from_the_total(counts, min_shown):
    counts = np.array(counts)
    shown = may_be_shown(counts, min_shown)
    assert (counts[shown & (counts > 0)] >= min_shown).all()
    hidden = counts[~shown]
    if len(hidden) and shown.any() and counts[shown].any():
        assert len(hidden) > 1
        assert hidden.sum() >= min_shown


def test_the_table_keeps_the_totals_and_names_no_small_cluster():
    reference = sample([0] * 40 + [1] * 5 + [2] * 30)
    current = sample([0] * 30 + [1] * 12 + [2] * 11 + [3] * 25)
    rows = counts_table(reference, current, ("a", "b", "c", "d"), 20).to_pylist()
    by_cluster = {row["cluster"]: row for row in rows}
    assert set(by_cluster) == {0, 3, MERGED}, "5 alone takes 30 with it; 12 and 11 go together"
    assert by_cluster[MERGED]["n_reference"] == 35
    for name, total in (("n_reference", 75), ("n_current", 78)):
        values = [row[name] for row in rows if row[name] is not None]
        assert sum(values) == total
        assert all(value == 0 or value >= 20 for value in values)
    assert by_cluster[3]["n_reference"] == 0


def test_where_everything_may_be_shown_nothing_is_merged():
    rows = counts_table(sample([0] * 30), sample([1] * 30), ("a", "b"), 20).to_pylist()
    assert [row["cluster"] for row in rows] == [0, 1]


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    ids, users = rng.integers(0, 5, 300), rng.integers(0, 40, 300)
    order = rng.permutation(300)
    labels = tuple("abcde")
    one = counts_table(sample(ids, users), sample(ids), labels, 10)
    other = counts_table(sample(ids[order], users[order]), sample(ids[order]), labels, 10)
    assert one.equals(other)

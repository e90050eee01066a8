from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.evaluation.comparison import (
    bootstrap_interval,
    cohens_d,
    holm,
    paired_difference,
    sign_flip_test,
    sign_test_one_sided,
)


@given(st.integers(0, 40), st.integers(0, 40))
def test_sign_test_equals_the_binomial_tail_summed_by_hand(wins, losses):
    n = wins + losses
    expected = sum(comb(n, k) for k in range(wins, n + 1)) / 2**n
    assert sign_test_one_sided(wins, losses) == pytest.approx(expected, rel=1e-10)


def test_sign_test_without_any_difference_is_no_evidence():
    assert sign_test_one_sided(0, 0) == 1.0
    assert sign_test_one_sided(0, 7) == 1.0


def test_sign_test_refuses_negative_counts():
    with pytest.raises(ValueError, match="wins=-1"):
        sign_test_one_sided(-1, 2)


def test_interval_contains_the_mean_and_shrinks_with_items():
    rng = np.random.default_rng(0)
    few, many = np.arange(100) % 4 == 0, np.arange(10_000) % 4 == 0
    low, high = bootstrap_interval(few, 0.95, 2_000, rng)
    low_many, high_many = bootstrap_interval(many, 0.95, 2_000, rng)
    assert low < 0.25 < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 100), rel=0.1)
    assert (high - low) / (high_many - low_many) == pytest.approx(10, rel=0.1)


def test_interval_equals_resampling_items_one_by_one():
    values = np.array([0.0, 0.0, 1.0, 1.0, 1.0, -1.0, 0.5])
    rng = np.random.default_rng(1)
    slow = rng.choice(values, size=(20_000, 7)).mean(axis=1)
    fast = bootstrap_interval(values, 0.9, 20_000, np.random.default_rng(2))
    assert fast == pytest.approx(tuple(np.quantile(slow, [0.05, 0.95])), abs=0.02)


def test_interval_repeats_with_its_seed_and_of_one_outcome_is_a_point():
    values = np.ones(30, dtype=bool)
    assert bootstrap_interval(values, 0.95, 100, np.random.default_rng(0)) == (1.0, 1.0)
    mixed = np.arange(30) % 2 == 0
    runs = [bootstrap_interval(mixed, 0.95, 100, np.random.default_rng(3)) for _ in range(2)]
    assert runs[0] == runs[1]


def test_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        bootstrap_interval(np.array([], dtype=bool), 0.95, 10, np.random.default_rng(0))


def test_sign_flip_enumerates_few_languages_exactly():
    differences = np.array([0.05, 0.02, -0.01, 0.04])
    observed = abs(differences.sum())
    extreme = sum(
        abs(np.dot(signs, differences)) >= observed - 1e-12 for signs in product([-1, 1], repeat=4)
    )
    assert sign_flip_test(differences, 10, np.random.default_rng(0)) == extreme / 16


def test_sign_flip_of_eight_equal_gains_has_the_smallest_p():
    p = sign_flip_test(np.full(8, 0.1), 10_000, np.random.default_rng(0))
    assert p == 2 / 2**8


def test_sign_flip_samples_many_languages_and_never_gives_zero():
    differences = np.full(42, 0.1)
    assert sign_flip_test(differences, 999, np.random.default_rng(0)) == 1 / 1000


def test_sign_flip_p_is_uniform_without_effect():
    rng = np.random.default_rng(4)
    p = [sign_flip_test(rng.normal(size=20), 199, rng) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)


def test_sign_flip_of_nothing_but_ties_is_one():
    assert sign_flip_test(np.zeros(5), 100, np.random.default_rng(0)) == 1.0


def test_effect_size_by_hand_and_where_it_is_undefined():
    assert cohens_d(np.array([0.1, 0.3])) == pytest.approx(0.2 / np.sqrt(0.02))
    assert np.isnan(cohens_d(np.array([0.1])))
    assert np.isnan(cohens_d(np.array([0.1, 0.1])))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    assert max(adjusted) <= 1.0
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def test_paired_difference_needs_the_same_items():
    before, after = np.array([True, False, False]), np.array([True, True, False])
    assert paired_difference(before, after).tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="shape"):
        paired_difference(before, after[:2])

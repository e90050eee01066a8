"""Measures of a selection: by hand, against slow twins, and what must hold for any rows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from compass_core.errors import DataError
from compass_core.selection.quality import (
    MMD_ROWS,
    SMOOTHING,
    Yardstick,
    language_mix,
    make_yardstick,
    match_usage,
    measure_quality,
    median_distance,
    squared_mmd,
    topic_lifts,
)

AXES = np.eye(4, dtype=np.float32)


def unit(rng, n, d=6):
    rows = rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def slow_mmd(first, second, sigma):
    """Every pair by itself, in double precision."""

    def kernel(x, y):
        difference = x.astype(float) - y.astype(float)
        return math.exp(-float(difference @ difference) / (2 * sigma**2))

    def inside(rows):
        pairs = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(x, y) for x in first for y in second]
    return inside(first) + inside(second) - 2 * sum(across) / len(across)


@pytest.fixture
def yardstick():
    """Four clusters on the axes; held-out usage is half on the first, half on the second."""
    return Yardstick(AXES, AXES[[0, 0, 1, 1]], np.array([2, 2, 0, 0]), bandwidth=1.0, seed=0)


def test_a_selection_like_usage_closes_what_coverage_lacks(yardstick):
    quality = measure_quality(yardstick, AXES[[1, 1]], np.array(["a", "b"]), AXES[[0, 0]])
    assert quality.mix.js == 0
    # usage (1/2, 1/2), selection (0, 1): M = (1/4, 3/4)
    by_hand = (0.5 * math.log2(2) + 0.5 * math.log2(2 / 3) + math.log2(4 / 3)) / 2
    assert quality.selection.js == pytest.approx(by_hand)
    assert quality.n_selected == 2
    assert (quality.language_entropy, quality.largest_language) == (1.0, 0.5)


def test_kl_smooths_the_rows_and_not_usage(yardstick):
    match = match_usage(yardstick, AXES[[2]])
    share = SMOOTHING / (1 + 4 * SMOOTHING)
    assert match.kl == pytest.approx(math.log2(0.5 / share))
    assert match.js == pytest.approx(1.0)


def test_nothing_selected_leaves_coverage_as_the_mix(yardstick):
    quality = measure_quality(yardstick, AXES[:0], np.array([]), AXES[[0, 1]])
    assert quality.mix.js == 0
    values = quality.to_dict()
    empty = ("selection_js", "selection_kl", "selection_mmd", "language_entropy")
    assert all(math.isnan(values[name]) for name in empty)
    assert set(values) >= {"mix_js", "mix_kl", "mix_mmd", "largest_language", "n_selected"}


def test_nothing_at_all_is_not_a_number_rather_than_an_error(yardstick):
    quality = measure_quality(yardstick, AXES[:0], np.array([]), AXES[:0])
    assert math.isnan(quality.mix.js)


def test_selection_without_a_language_each_is_refused(yardstick):
    with pytest.raises(DataError, match="one for each"):
        measure_quality(yardstick, AXES, np.array(["a"]), AXES)


def test_rows_of_another_encoder_are_refused(yardstick):
    with pytest.raises(DataError, match="different encoders"):
        match_usage(yardstick, np.eye(5, dtype=np.float32))


def test_yardstick_without_usage_says_to_hold_some_back():
    with pytest.raises(DataError, match="Hold some back"):
        make_yardstick(AXES, AXES[:0], n_clusters=2, seed=0)


def test_yardstick_is_the_same_for_the_same_seed_and_any_order():
    rng = np.random.default_rng(0)
    reference, usage = unit(rng, 200), unit(rng, 40)
    first = make_yardstick(reference, usage, n_clusters=5, seed=3)
    again = make_yardstick(reference[rng.permutation(200)], usage, n_clusters=5, seed=3)
    np.testing.assert_allclose(first.centroids, again.centroids, atol=1e-5)
    assert first.usage_count.tolist() == again.usage_count.tolist()
    assert first.usage_count.sum() == 40


def test_mmd_equals_the_pairs_one_by_one():
    rng = np.random.default_rng(1)
    first, second = unit(rng, 17), unit(rng, 9)
    for sigma in (0.3, 1.0, 2.5):
        assert squared_mmd(first, second, sigma) == pytest.approx(
            slow_mmd(first, second, sigma), abs=1e-5
        )


def test_mmd_over_several_blocks_equals_one_by_one_sums():
    rng = np.random.default_rng(2)
    first, second = unit(rng, 2_100, 3), unit(rng, 50, 3)
    kernel = lambda x, y: np.exp((x.astype(float) @ y.T.astype(float) - 1) / 0.49)  # noqa: E731
    n, m = len(first), len(second)
    expected = (
        (kernel(first, first).sum() - n) / (n * (n - 1))
        + (kernel(second, second).sum() - m) / (m * (m - 1))
        - 2 * kernel(first, second).mean()
    )
    assert squared_mmd(first, second, 0.7) == pytest.approx(expected, abs=1e-5)


def test_mmd_is_zero_in_the_mean_for_rows_drawn_alike_and_above_for_others():
    rng = np.random.default_rng(3)
    alike = [squared_mmd(unit(rng, 30), unit(rng, 20), 1.0) for _ in range(300)]
    error = np.std(alike) / math.sqrt(len(alike))
    assert abs(np.mean(alike)) < 4 * error
    assert min(alike) < 0
    moved = unit(rng, 30) + np.float32(0.8)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    assert squared_mmd(moved, unit(rng, 20), 1.0) > max(alike)


def test_mmd_of_a_single_row_is_unknown():
    assert math.isnan(squared_mmd(AXES[:1], AXES, 1.0))


def test_many_rows_are_sampled_for_the_mmd_without_moving_it_far():
    rng = np.random.default_rng(4)
    reference, usage = unit(rng, 300), unit(rng, 60)
    rows = unit(rng, MMD_ROWS + 500)
    yardstick = make_yardstick(reference, usage, n_clusters=4, seed=0)
    whole = squared_mmd(rows, usage, yardstick.bandwidth)
    assert match_usage(yardstick, rows).mmd == pytest.approx(whole, abs=0.002)


def test_median_distance_by_hand():
    assert median_distance(AXES[:1]) == 1.0
    assert median_distance(AXES[[0, 0, 0]]) == 1.0
    assert median_distance(AXES) == pytest.approx(math.sqrt(2))


def test_language_mix_of_one_language_has_no_entropy():
    assert language_mix(np.array(["a", "a"])) == (0.0, 1.0)


def test_topic_lifts_leave_out_rows_without_a_topic():
    lifts = topic_lifts(np.array(["a", "", "b", "b"]), np.array([0, 1]))
    assert lifts == {"a": 2.0, "b": 0.0}
    assert topic_lifts(np.array(["a", "b"]), np.array([], dtype=int)) == {"a": 0.0, "b": 0.0}


counts = st.lists(st.integers(0, 30), min_size=4, max_size=4).filter(lambda c: sum(c) > 0)


@settings(max_examples=40, deadline=None)
@given(usage=counts, rows=counts, seed=st.integers(0, 99))
def test_divergences_stay_in_range_and_ignore_order(usage, rows, seed):
    yardstick = Yardstick(AXES, AXES, np.array(usage), bandwidth=1.0, seed=0)
    vectors = np.repeat(AXES, rows, axis=0)
    match = match_usage(yardstick, vectors)
    assert 0 <= match.js <= 1
    assert 0 <= match.kl < math.inf
    expected = jensenshannon(usage, rows, base=2) ** 2
    assert match.js == pytest.approx(expected, abs=1e-9)
    order = np.random.default_rng(seed).permutation(len(vectors))
    again = match_usage(yardstick, vectors[order])
    assert (again.js, again.kl) == (match.js, match.kl)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 20), m=st.integers(2, 20), seed=st.integers(0, 999))
def test_mmd_is_symmetric_bounded_and_rotation_invariant(n, m, seed):
    rng = np.random.default_rng(seed)
    first, second = unit(rng, n), unit(rng, m)
    value = squared_mmd(first, second, 0.8)
    assert -2 <= value <= 2
    assert squared_mmd(second, first, 0.8) == pytest.approx(value, abs=1e-5)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    assert squared_mmd(first @ turn, second @ turn, 0.8) == pytest.approx(value, abs=1e-4)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(0, 999))
def test_lifts_average_to_one_over_the_pool(topics, seed):
    names = np.array(topics)
    everything = topic_lifts(names, np.arange(len(names)))
    assert all(lift == pytest.approx(1) for lift in everything.values())
    selected = np.flatnonzero(np.random.default_rng(seed).random(len(names)) < 0.5)
    if len(selected):
        shares = {name: float(np.mean(names == name)) for name in everything}
        lifts = topic_lifts(names, selected)
        assert sum(lifts[name] * share for name, share in shares.items()) == pytest.approx(1)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40))
def test_language_entropy_lies_between_none_and_all_alike(languages):
    entropy, largest = language_mix(np.array(languages))
    assert 0 <= entropy <= math.log2(len(set(languages))) + 1e-12
    assert 1 / len(set(languages)) - 1e-12 <= largest <= 1

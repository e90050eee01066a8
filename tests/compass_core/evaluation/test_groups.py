"""Covered and missing topics, and the score of an arm on them."""

import math

import numpy as np

from compass_core.evaluation.groups import covered_items, score_arm


def test_topic_is_covered_from_half_of_its_test_share_on():
    # Test: half a, half b. Coverage: 3 a, 1 b: b has .25, exactly half of .5.
    assert covered_items(["a", "b"], ["a", "a", "a", "b"]).tolist() == [True, True]
    assert covered_items(["a", "b"], ["a"] * 4 + ["b"]).tolist() == [True, False]


def test_nothing_is_covered_without_coverage():
    assert not covered_items(["a", "b"], []).any()


def test_score_splits_accuracy_by_group():
    correct = np.array([True, True, False, False])
    covered = np.array([True, True, True, False])
    score = score_arm(
        correct, covered, confidence=0.95, n_bootstrap=200, rng=np.random.default_rng(0)
    )
    assert score.accuracy == 0.5
    assert score.covered == 2 / 3
    assert score.missing == 0.0
    assert score.low <= 0.5 <= score.high
    assert score.n_items == 4


def test_group_without_items_has_no_accuracy():
    score = score_arm(
        np.array([True]),
        np.array([True]),
        confidence=0.9,
        n_bootstrap=10,
        rng=np.random.default_rng(0),
    )
    assert math.isnan(score.missing)
    assert score.covered == 1.0

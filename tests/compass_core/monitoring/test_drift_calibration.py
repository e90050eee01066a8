"""False alarms and power of the drift test on a few hundred windows; benchmarks/drift.py has all.

The bounds are those that a true rate of 1 % crosses about once in a thousand seeds.
"""

import numpy as np
import pytest

from benchmarks.drift import (
    ANY_SIZE,
    SMALL,
    draw_prompts,
    draw_users,
    shares_of,
    shifted,
)
from compass_core.config import DriftConfig
from compass_core.monitoring.drift import detect_drift

N_NULL = 250
MOST_ALARMS = 9  # of 250 at a true rate of 1 %: P(X > 9) = .0003
K = 50


def null_p_values(draw, config, n_reference, n_current):
    p_values = []
    for window in range(N_NULL):
        rng = np.random.default_rng([1, window])
        shares = shares_of("Zipf", K, rng)
        reference, current = draw(shares, n_reference, rng), draw(shares, n_current, rng)
        p_values.append(detect_drift(reference, current, K, config, seed=window).p_value)
    return np.array(p_values)


@pytest.mark.parametrize(
    ("draw", "n_reference", "n_current"),
    [(draw_prompts, 4_000, 500), (draw_users, 300, 60)],
    ids=["prompts", "users"],
)
def test_p_values_are_uniform_without_drift(draw, n_reference, n_current):
    quick = ANY_SIZE.model_copy(update={"n_permutations": 399, "max_permutations": 1_999})
    p_values = null_p_values(draw, quick, n_reference, n_current)
    assert (p_values <= 0.01).sum() <= MOST_ALARMS
    # A broken law shows in the middle first, on either side.
    assert 0.42 < p_values.mean() < 0.58
    assert 0.04 < (p_values <= 0.1).mean() < 0.17
    assert 0.40 < (p_values <= 0.5).mean() < 0.61


@pytest.mark.parametrize("kind", ["1 clusters", "5 clusters"])
@pytest.mark.parametrize("shape", ["uniform", "Zipf", "Dirichlet"])
def test_change_of_a_tenth_in_a_few_of_100_clusters_is_seen_in_1000_prompts(kind, shape):
    seen = 0
    for window in range(20):
        rng = np.random.default_rng([2, window])
        shares = shares_of(shape, 100, rng)
        changed = shifted(kind, shares, rng)
        assert np.abs(changed - shares).sum() / 2 == pytest.approx(0.1)
        reference, current = draw_prompts(shares, 10_000, rng), draw_prompts(changed, 1_000, rng)
        seen += detect_drift(reference, current, 100, SMALL, seed=window).status == "alarm"
    assert seen >= 18


def test_new_topic_of_two_percent_is_seen_in_1000_prompts_although_the_score_misses_it():
    seen = by_score = 0
    for window in range(40):
        rng = np.random.default_rng([3, window])
        shares = np.append(shares_of("Zipf", 100, rng), 0.0)
        after = np.append(0.98 * shares[:100], 0.02)
        reference, current = draw_prompts(shares, 10_000, rng), draw_prompts(after, 1_000, rng)
        report = detect_drift(reference, current, 101, SMALL, seed=window)
        seen += report.status == "alarm" and report.moved[0]["cluster"] == 100
        by_score += report.p_score <= report.level
    assert seen >= 38
    assert by_score <= 34


def test_diffuse_change_of_a_tenth_is_seen_in_3000_prompts():
    seen = 0
    for window in range(15):
        rng = np.random.default_rng([4, window])
        shares = shares_of("Zipf", 100, rng)
        changed = shifted("diffuse", shares, rng)
        reference, current = draw_prompts(shares, 10_000, rng), draw_prompts(changed, 3_000, rng)
        seen += detect_drift(reference, current, 100, SMALL, seed=window).status == "alarm"
    assert seen >= 13


def test_default_minima_admit_what_the_power_was_measured_on():
    assert DriftConfig().min_prompts <= 1_000
    assert DriftConfig().min_units <= 1_000

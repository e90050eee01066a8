"""Ways to see drift where there is none: each fires, ours does not."""

import numpy as np
import pytest

from compass_core.config import DriftConfig
from compass_core.monitoring.drift import Sample, detect_drift
from compass_core.selection.clustering import (
    assign_clusters,
    fit_clusters,
    leave_one_out_distances,
    relevance_radii,
)
from compass_core.selection.gap import js_divergence

CONFIG = DriftConfig(min_units=1, min_prompts=1, max_permutations=999)
ZIPF = 1 / np.arange(1, 101)
ZIPF /= ZIPF.sum()


def alarms(reports):
    return sum(report.status == "alarm" for report in reports)


# ------------------------------------------------------------------ rows that fitted the clusters
N_CLUSTERS, N_DIMENSIONS, N_ROWS, N_WINDOWS = 40, 24, 800, 12


def unit_vectors(rng, n):
    """Rows of one distribution: a few loose clumps on the sphere."""
    centres = np.random.default_rng(99).standard_normal((8, N_DIMENSIONS))
    rows = centres[rng.integers(8, size=n)] + 1.2 * rng.standard_normal((n, N_DIMENSIONS))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def placed():
    """K-means of 800 rows: those rows, as many that were held out, and unchanged windows."""
    rng = np.random.default_rng(0)
    fitted, held_out = unit_vectors(rng, N_ROWS), unit_vectors(rng, N_ROWS)
    clusters = fit_clusters(fitted, method="kmeans", n_clusters=(N_CLUSTERS,), seed=0)
    distances = leave_one_out_distances(fitted, clusters.labels, N_CLUSTERS)
    radii = relevance_radii(distances, clusters.labels, N_CLUSTERS, 0.95)

    def place(rows):
        ids, found = assign_clusters(rows, clusters.centroids)
        return Sample(ids, found > radii[ids])

    windows = [place(unit_vectors(rng, 1_000)) for _ in range(N_WINDOWS)]
    return place(fitted), place(held_out), windows


def test_reference_that_fitted_the_clusters_fires_and_one_held_out_does_not(placed):
    fitted, held_out, windows = placed

    def check(reference):
        return alarms(
            detect_drift(reference, window, N_CLUSTERS, CONFIG, seed=number)
            for number, window in enumerate(windows)
        )

    assert check(fitted) >= 0.42 * N_WINDOWS
    assert check(held_out) <= 1


# ------------------------------------------------------------------ users
def users(rng, n_users, taste):
    tastes = rng.dirichlet(taste * ZIPF, n_users)
    counts = rng.multinomial(10, tastes)
    user, cluster = np.nonzero(counts)
    times = counts[user, cluster]
    units = np.repeat(user, times)
    return Sample(np.repeat(cluster, times), rng.random(len(units)) < 0.05, units)


@pytest.mark.parametrize(("taste", "least"), [(2.0, 0.9), (20.0, 0.4)])
def test_prompts_of_one_user_taken_for_independent_fire_and_users_do_not(taste, least):
    by_prompt = CONFIG.model_copy(update={"unit": "prompt"})
    wrong, ours, n = 0, 0, 16
    for window in range(n):
        rng = np.random.default_rng([5, window])
        reference, current = users(rng, 500, taste), users(rng, 200, taste)
        wrong += detect_drift(reference, current, 100, by_prompt, seed=window).status == "alarm"
        ours += detect_drift(reference, current, 100, CONFIG, seed=window).status == "alarm"
    assert wrong >= least * n
    assert ours <= 1


def test_users_of_the_window_alone_are_thinned_where_the_reference_knows_none():
    ours, n = 0, 20
    for window in range(n):
        rng = np.random.default_rng([6, window])
        reference = Sample(rng.choice(100, 5_000, p=ZIPF), rng.random(5_000) < 0.05)
        ours += alarms([detect_drift(reference, users(rng, 300, 2.0), 100, CONFIG, seed=window)])
    assert ours <= 1


def uneven_users(rng, n_users=300):
    """One user in ten is heavy: ten prompts about five own topics; the others have one prompt."""
    heavy = np.arange(n_users) < n_users // 10
    units = np.repeat(np.arange(n_users), np.where(heavy, 10, 1))
    own, common = rng.integers(95, 100, len(units)), rng.choice(95, len(units))
    return Sample(np.where(heavy[units], own, common), np.zeros(len(units), bool), units)


def test_users_known_on_one_side_fire_where_heavy_users_differ_and_on_both_sides_do_not():
    rng = np.random.default_rng(5)
    reference, windows = uneven_users(rng, 1_000), [uneven_users(rng) for _ in range(40)]
    without_users = Sample(reference.cluster_ids, reference.outside)

    def check(known):
        return alarms(
            detect_drift(known, window, 100, CONFIG, seed=number)
            for number, window in enumerate(windows)
        )

    assert check(without_users) == 40
    assert check(reference) <= 2


def test_same_users_in_both_stretches_make_the_test_careful_and_not_wrong():
    ours, n = 0, 20
    for window in range(n):
        rng = np.random.default_rng([7, window])
        tastes = rng.dirichlet(2.0 * ZIPF, 300)
        counts = [rng.multinomial(10, tastes) for _ in range(2)]
        samples = [
            Sample(np.tile(np.arange(100), 300).repeat(c.ravel()), np.zeros(3_000, bool),
                   np.arange(300).repeat(10))
            for c in counts
        ]  # fmt: skip
        ours += alarms([detect_drift(*samples, 100, CONFIG, seed=window)])
    assert ours <= 1


# ------------------------------------------------------------------ bootstrap
def bootstrap_alarm(reference, current, rng):
    """The wrong way: windows drawn from the reference's shares, as if those were the truth."""
    shares = np.bincount(reference, minlength=100) / len(reference)
    null = [
        js_divergence(counts, shares) for counts in rng.multinomial(len(current), shares, size=299)
    ]
    score = js_divergence(np.bincount(current, minlength=100), shares)
    return (1 + np.count_nonzero(np.array(null) >= score)) / 300 <= 0.01


@pytest.mark.parametrize(("n_reference", "least"), [(500, 0.95), (1_000, 0.8)])
def test_bootstrap_that_takes_the_reference_for_the_truth_fires_and_permutation_does_not(
    n_reference, least
):
    wrong, ours, n = 0, 0, 20
    for window in range(n):
        rng = np.random.default_rng([8, n_reference, window])
        reference, current = (rng.choice(100, size, p=ZIPF) for size in (n_reference, 1_000))
        wrong += bootstrap_alarm(reference, current, rng)
        samples = [Sample(ids, np.zeros(len(ids), bool)) for ids in (reference, current)]
        ours += alarms([detect_drift(*samples, 100, CONFIG, seed=window)])
    assert wrong >= least * n
    assert ours <= 1


def test_fixed_threshold_fires_on_every_small_window_without_drift():
    rng = np.random.default_rng(9)
    reference = np.bincount(rng.choice(100, 10_000, p=ZIPF), minlength=100)
    for _ in range(10):
        window = np.bincount(rng.choice(100, 500, p=ZIPF), minlength=100)
        assert np.sqrt(js_divergence(window, reference)) > 0.1

"""Seeding: trials that share a product are distributed like trials drawn one step at a time."""

from __future__ import annotations

import numpy as np
import pytest

from compass_core.selection.kmeans import kmeans_plus_plus


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def mean_distance(rows, seeds):
    return float(np.maximum(1 - (rows @ rows[seeds].T).max(axis=1), 0).mean())


def seeded_step_by_step(rows, k, rng):
    """Greedy k-means++ as it is usually written: every step draws and multiplies anew."""
    seeds = [int(rng.integers(len(rows)))]
    while len(seeds) < k:
        nearest = np.maximum(1 - (rows @ rows[seeds].T).max(axis=1), 0).astype(np.float64)
        trials = rng.choice(len(rows), 2 + int(np.log(k)), p=nearest / nearest.sum())
        left = [mean_distance(rows, [*seeds, int(trial)]) for trial in trials]
        seeds.append(int(trials[int(np.argmin(left))]))
    return seeds


def test_seeds_lie_as_close_to_all_rows_as_those_of_the_step_by_step_twin():
    rows = unit(np.random.default_rng(0).normal(size=(300, 6)))
    ours, twin = (
        np.array([mean_distance(rows, seed(rows, 15, np.random.default_rng(i))) for i in range(30)])
        for seed in (kmeans_plus_plus, seeded_step_by_step)
    )
    error = np.hypot(ours.std(), twin.std()) / np.sqrt(30)
    assert abs(ours.mean() - twin.mean()) < 4 * error


def test_the_second_seed_is_drawn_in_proportion_to_distance():
    # With k = 2 there are two trials a step; four corners at equal distances are equally likely.
    corners = np.eye(4, dtype=np.float32)
    seconds = [kmeans_plus_plus(corners, 2, np.random.default_rng(i)) for i in range(600)]
    pairs = np.array([first * 4 + second for first, second in seconds])
    counts = np.bincount(pairs, minlength=16).reshape(4, 4)
    assert (counts.diagonal() == 0).all()
    # Twelve ordered pairs, 50 each on average; Binomial(600, 1/12) has a deviation of 6.8.
    assert np.abs(counts[~np.eye(4, dtype=bool)] - 50).max() < 4.5 * 6.8


@pytest.mark.parametrize("k", [1, 5, 40])
def test_seeds_are_different_rows_and_depend_on_the_seed_alone(k):
    rows = unit(np.random.default_rng(1).normal(size=(40, 8)))
    seeds = kmeans_plus_plus(rows, k, np.random.default_rng(3))
    assert len(seeds) == len(set(seeds.tolist())) == k
    assert (seeds == kmeans_plus_plus(rows, k, np.random.default_rng(3))).all()


def test_seeding_ends_when_the_different_points_run_out():
    rows = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    assert len(kmeans_plus_plus(rows, 10, np.random.default_rng(0))) == 3

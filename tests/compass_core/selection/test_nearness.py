"""The draw `nearest` goes by the usage prompts of a row's own cluster."""

import numpy as np

from compass_core.selection.nearness import distances_to_usage


def unit(n, seed):
    vectors = np.random.default_rng(seed).standard_normal((n, 5)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_row_that_repeats_a_prompt_of_its_cluster_is_at_distance_zero():
    usage = np.eye(3, 5, dtype=np.float32)
    found = distances_to_usage(
        usage, np.array([0, 1, 1]), usage, np.array([0, 1, 2]), np.full(3, 0.7, dtype=np.float32)
    )
    # The third row's prompt is in another cluster: in its own it meets only an orthogonal one.
    np.testing.assert_allclose(found, [0, 0, 1], atol=1e-6)


def test_rows_of_clusters_nobody_asks_about_keep_their_distance_to_the_centroid():
    found = distances_to_usage(
        unit(4, 0),
        np.array([5, 5, 5, 5]),
        unit(2, 1),
        np.array([0, 1]),
        np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32),
    )
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4])


def test_it_equals_a_loop_over_all_pairs():
    pool, usage = unit(20_000, 2), unit(60, 3)
    rng = np.random.default_rng(4)
    ids, asked = rng.integers(0, 9, len(pool)), rng.integers(0, 7, len(usage))
    far = rng.random(len(pool)).astype(np.float32)
    found = distances_to_usage(pool, ids, usage, asked, far)
    for row in range(0, len(pool), 997):
        own = usage[asked == ids[row]]
        expected = 1 - max(own @ pool[row]) if len(own) else far[row]
        assert abs(found[row] - expected) < 1e-5

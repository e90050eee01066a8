"""Assignment: the nearest centroid of every row, in blocks, from files; damaged rows are named."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.errors import DataError
from compass_core.pool import ShardedVectors
from compass_core.selection.assignment import (
    assign_clusters,
    check_unit,
    cluster_sums,
    leave_one_out_distances,
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_unit(n, d, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(n, d)))


def nearest_one_by_one(vectors, centroids):
    """Each row against each centroid, in double precision."""
    ids, distances = [], []
    for vector in vectors.astype(np.float64):
        scores = [float(vector @ centroid) for centroid in centroids.astype(np.float64)]
        ids.append(int(np.argmax(scores)))
        distances.append(1 - max(scores))
    return np.array(ids), np.array(distances)


@given(
    st.integers(1, 60), st.integers(1, 9), st.integers(2, 12), st.integers(1, 70), st.integers(0, 9)
)
def test_every_row_goes_to_its_nearest_centroid_whatever_the_block(n, k, d, block, seed):
    vectors, centroids = random_unit(n, d, seed), random_unit(k, d, seed + 1)
    ids, distances = assign_clusters(vectors, centroids, block=block)
    expected, far = nearest_one_by_one(vectors, centroids)
    # Two centroids may be equally near up to rounding; then the distance alone decides.
    assert ((ids == expected) | (np.abs(distances - far) < 1e-6)).all()
    assert distances == pytest.approx(far, abs=1e-6)
    assert (distances >= 0).all()
    assert (distances <= 2 + 1e-6).all()


def test_ties_go_to_the_lower_cluster():
    centroids = unit(np.array([[0, 1], [1, 0], [1, 0], [0, 1]], dtype=float))
    ids, distances = assign_clusters(unit(np.array([[1.0, 0.0], [0.0, 1.0]])), centroids)
    assert ids.tolist() == [1, 0]
    assert distances.tolist() == [0, 0]


def test_opposite_and_orthogonal_rows_lie_at_two_and_one():
    vectors = np.array([[-1, 0], [0, 1], [1, 0]], dtype=np.float32)
    distances = assign_clusters(vectors, np.array([[1, 0]], dtype=np.float32))[1]
    assert distances.tolist() == [2, 1, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_memory_mapped_file_gives_what_its_rows_give_in_memory(tmp_path, dtype):
    vectors, centroids = random_unit(700, 16).astype(dtype), random_unit(12, 16, 1)
    np.save(tmp_path / "pool.npy", vectors)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    ids, distances = assign_clusters(mapped, centroids, block=64)
    plain = assign_clusters(vectors.astype(np.float32), centroids)
    assert (ids == plain[0]).all()
    # The sums of a product may be taken in another order in blocks of another size.
    assert distances == pytest.approx(plain[1], abs=1e-6)


def test_shards_are_assigned_like_one_array():
    vectors, centroids = random_unit(300, 8), random_unit(7, 8, 1)
    shards = ShardedVectors([vectors[:100].astype(np.float16), vectors[100:110], vectors[110:]])
    ids, distances = assign_clusters(shards, centroids, block=37)
    expected, far = assign_clusters(shards[:], centroids)
    assert (ids == expected).all()
    assert distances == pytest.approx(far, abs=1e-6)


def test_a_large_file_passes_through_a_few_blocks_of_memory(tmp_path):
    vectors, centroids = random_unit(40_000, 64), random_unit(50, 64, 1)
    np.save(tmp_path / "pool.npy", vectors)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    del vectors
    tracemalloc.start()
    assign_clusters(mapped, centroids, block=512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    results = 40_000 * 8
    assert peak < results + 512 * (64 + 2 * 50) * 8


def test_no_rows_give_no_clusters():
    ids, distances = assign_clusters(np.empty((0, 4), np.float32), random_unit(3, 4))
    assert len(ids) == len(distances) == 0


def test_neither_vectors_nor_centroids_are_changed():
    vectors, centroids = random_unit(50, 8), random_unit(5, 8, 1)
    before = vectors.copy(), centroids.copy()
    assign_clusters(vectors, centroids, block=7)
    assert (vectors == before[0]).all()
    assert (centroids == before[1]).all()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.nan, "NaN or infinite"),
        (np.inf, "NaN or infinite"),
        (0.0, "not of length 1"),
        (3.0, "not of length 1"),
    ],
)
def test_a_damaged_row_is_named_by_its_place_in_the_whole_file(value, kind):
    vectors = random_unit(100, 8)
    vectors[77] = value
    with pytest.raises(DataError, match=rf"E30 1 vectors are {kind} \(rows 77\).*embed"):
        assign_clusters(vectors, random_unit(3, 8, 1), block=10)


def test_of_many_damaged_rows_the_first_five_are_shown():
    vectors = np.zeros((30, 4), dtype=np.float32)
    with pytest.raises(DataError, match=r"30 vectors .*\(rows 0, 1, 2, 3, 4, …\)"):
        check_unit(vectors)


@pytest.mark.parametrize("shape", [(5,), (5, 7), (2, 5, 6)])
def test_vectors_of_another_encoder_are_refused(shape):
    with pytest.raises(DataError, match=r"E50 .*different encoders"):
        assign_clusters(np.ones(shape, dtype=np.float32), random_unit(3, 6))


def test_rounding_of_half_precision_is_not_damage():
    check_unit(random_unit(200, 384).astype(np.float16))


def test_leave_one_out_distance_is_that_to_the_mean_of_the_others():
    rng = np.random.default_rng(0)
    vectors, ids = random_unit(40, 5), rng.integers(0, 6, 40).astype(np.int32)
    ids[0], ids[1:] = 6, np.minimum(ids[1:], 5)
    found = leave_one_out_distances(vectors, ids, 7)
    for row, cluster in enumerate(ids):
        others = np.flatnonzero((ids == cluster) & (np.arange(40) != row))
        if len(others) == 0:
            assert found[row] == 1
            continue
        mean = vectors[others].astype(np.float64).sum(axis=0)
        expected = 1 - vectors[row] @ mean / np.linalg.norm(mean)
        assert found[row] == pytest.approx(expected, abs=1e-5)


def test_cluster_sums_add_up_the_rows_of_each_cluster():
    vectors, ids = random_unit(30, 4), np.arange(30) % 3
    sums = cluster_sums(vectors, ids, 4)
    for cluster in range(3):
        assert sums[cluster] == pytest.approx(vectors[ids == cluster].sum(axis=0), abs=1e-5)
    assert (sums[3] == 0).all()

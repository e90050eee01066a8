"""Clusters: recovery of planted groups, exact silhouette and DBCV, and every degenerate input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score, silhouette_score

from compass_core.errors import DataError
from compass_core.selection.clustering import (
    assign_clusters,
    fit_clusters,
    leave_one_out_distances,
    relevance_radii,
    silhouette_by_row,
)
from compass_core.selection.density import dbcv_score


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def planted(n_groups, n_rows, dimension=32, noise=0.12, seed=0):
    """`n_rows` unit vectors around `n_groups` random directions, and the group of each."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(n_groups, dimension)))
    groups = rng.permutation(np.arange(n_rows) % n_groups)
    return unit(centres[groups] + noise * rng.normal(size=(n_rows, dimension))), groups


def test_kmeans_finds_the_number_of_planted_groups_and_the_groups():
    vectors, groups = planted(12, 600)
    clusters = fit_clusters(vectors, n_clusters=(4, 8, 12, 16, 24), seed=3)
    assert clusters.n_clusters == 12
    assert clusters.chosen["n_clusters"] == 12
    assert adjusted_rand_score(groups, clusters.labels) > 0.99
    assert [entry["n_clusters"] for entry in clusters.curve] == [4, 8, 12, 16, 24]
    assert max(clusters.curve, key=lambda entry: entry["silhouette"]) == clusters.chosen


def test_hdbscan_finds_planted_groups_and_gives_noise_to_the_nearest_centroid():
    vectors, groups = planted(5, 300, noise=0.05)
    stray = unit(np.random.default_rng(9).normal(size=(10, 32)))
    clusters = fit_clusters(
        np.concatenate([vectors, stray]), method="hdbscan", min_cluster_sizes=(5, 15)
    )
    assert clusters.n_clusters == 5
    assert adjusted_rand_score(groups, clusters.labels[:300]) > 0.99
    assert (clusters.labels >= 0).all()
    assert {"dbcv", "noise_share"} <= set(clusters.curve[0])


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_labels_are_the_nearest_centroids_and_centroids_are_unit_vectors(method):
    vectors, _ = planted(6, 200, noise=0.3)
    clusters = fit_clusters(vectors, method=method, n_clusters=(6,), min_cluster_sizes=(5,))
    assert (assign_clusters(vectors, clusters.centroids)[0] == clusters.labels).all()
    assert np.linalg.norm(clusters.centroids, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert set(clusters.labels) == set(range(clusters.n_clusters))
    assert clusters.cohesion.shape == (clusters.n_clusters,)


def test_the_same_seed_gives_the_same_clusters_in_any_order_of_the_rows():
    vectors, _ = planted(8, 400, noise=0.4)
    shuffled = np.random.default_rng(1).permutation(400)
    first = fit_clusters(vectors, n_clusters=(8, 16), seed=5)
    second = fit_clusters(vectors[shuffled], n_clusters=(8, 16), seed=5)
    assert first.centroids.tobytes() == second.centroids.tobytes()
    assert (first.labels[shuffled] == second.labels).all()


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_a_second_fit_says_the_same_in_every_word(method):
    """The content of what is written names the later stages, so it holds no times."""
    vectors, _ = planted(4, 200, noise=0.2)
    asked = {"method": method, "n_clusters": (4, 8), "min_cluster_sizes": (5, 10)}
    first, second = (fit_clusters(vectors, **asked, seed=5) for _ in range(2))
    assert first.curve == second.curve
    assert first.chosen == second.chosen
    assert first.notes == second.notes


def test_a_fit_on_a_sample_still_labels_every_row():
    vectors, groups = planted(5, 500)
    clusters = fit_clusters(vectors, n_clusters=(5,), max_fit_rows=100)
    assert len(clusters.labels) == 500
    assert adjusted_rand_score(groups, clusters.labels) > 0.99
    assert "sample of 100 of 500" in clusters.notes[0]


def test_kmeans_is_as_good_as_scikit_learn():
    from sklearn.cluster import KMeans

    vectors, _ = planted(20, 1500, noise=0.25)
    ours = fit_clusters(vectors, n_clusters=(20,), seed=0)
    theirs = KMeans(20, n_init="auto", random_state=0).fit(vectors)
    ours_score = silhouette_score(vectors, ours.labels, metric="cosine")
    theirs_score = silhouette_score(vectors, theirs.labels_, metric="cosine")
    assert ours_score >= theirs_score - 0.01


def test_silhouette_equals_the_textbook_one():
    vectors, _ = planted(7, 150, noise=0.5)
    labels = np.random.default_rng(0).integers(0, 7, 150)
    labels[0] = 7
    found = silhouette_by_row(vectors, labels, 8).mean()
    assert found == pytest.approx(silhouette_score(vectors, labels, metric="cosine"), abs=1e-5)


def slow_dbcv(points, labels):
    """DBCV written from its definition, with Prim's algorithm and explicit loops."""
    distance = cdist(points, points)
    dimension = points.shape[1]
    core = np.zeros(len(points))
    members = {k: np.flatnonzero(labels == k) for k in set(labels.tolist()) if k >= 0}
    for rows in members.values():
        for i in rows:
            others = [distance[i, j] for j in rows if j != i]
            core[i] = np.mean(np.array(others) ** -float(dimension)) ** (-1 / dimension)

    def reach(i, j):
        return max(core[i], core[j], distance[i, j])

    sparseness, inner = {}, {}
    for k, rows in members.items():
        tree, inside, outside = [], [rows[0]], list(rows[1:])
        while outside:
            i, j = min(itertools.product(inside, outside), key=lambda e: (reach(*e), distance[e]))
            tree.append((i, j))
            inside.append(j)
            outside.remove(j)
        degree = {i: sum(i in edge for edge in tree) for i in rows}
        inner[k] = [i for i in rows if degree[i] > 1] or list(rows)
        edges = [e for e in tree if degree[e[0]] > 1 and degree[e[1]] > 1] or tree
        sparseness[k] = max(reach(*edge) for edge in edges)
    total = 0.0
    for k, rows in members.items():
        separation = min(reach(i, j) for o in members if o != k for i in inner[k] for j in inner[o])
        validity = (separation - sparseness[k]) / max(separation, sparseness[k])
        total += validity * len(rows) / len(points)
    return total


def test_dbcv_equals_its_definition_and_prefers_the_planted_groups():
    rng = np.random.default_rng(2)
    points = np.concatenate([rng.normal(c, 0.4, size=(15, 2)) for c in ((0, 0), (5, 0), (0, 5))])
    truth = np.repeat([0, 1, 2], 15)
    noisy = truth.copy()
    noisy[::7] = -1
    wrong = rng.integers(0, 3, 45)
    for labels in (truth, noisy, wrong):
        assert dbcv_score(points, labels) == pytest.approx(slow_dbcv(points, labels), abs=1e-9)
    assert dbcv_score(points, truth) > 0.3 > dbcv_score(points, wrong)
    assert dbcv_score(points, noisy) < dbcv_score(points, truth)


def test_dbcv_stays_finite_with_duplicates_and_many_dimensions():
    vectors, _ = planted(3, 60, dimension=300)
    points = np.concatenate([vectors, vectors]).astype(np.float64)
    labels = fit_clusters(vectors, n_clusters=(3,)).labels
    assert -1 <= dbcv_score(points, np.concatenate([labels, labels])) <= 1


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 7])
def test_few_rows_give_few_clusters_and_a_note(method, n_rows):
    vectors = unit(np.random.default_rng(0).normal(size=(n_rows, 8)))
    clusters = fit_clusters(vectors, method=method)
    assert 1 <= clusters.n_clusters <= max(1, n_rows // 2)
    assert len(clusters.labels) == n_rows
    assert clusters.notes


def test_candidates_that_leave_fewer_than_two_rows_per_cluster_are_dropped_with_a_note():
    vectors, _ = planted(4, 40)
    clusters = fit_clusters(vectors, n_clusters=(4, 20, 21, 100))
    assert [entry["n_clusters"] for entry in clusters.curve] == [4, 20]
    assert "not tried: 21, 100" in clusters.notes[0]


def test_a_stray_row_alone_in_its_cluster_is_an_ordinary_cluster():
    vectors, _ = planted(3, 60, noise=0.05)
    rows = np.concatenate([vectors, unit(np.random.default_rng(9).normal(size=(1, 32)))])
    clusters = fit_clusters(rows, n_clusters=(4,))
    alone = clusters.labels[-1]
    assert (clusters.labels == alone).sum() == 1
    assert clusters.cohesion[alone] == pytest.approx(1.0)
    left_out = leave_one_out_distances(rows, clusters.labels, clusters.n_clusters)
    assert left_out[-1] == 1.0
    # Its radius is that of all others: a cluster of one row knows nothing about its reach.
    radii = relevance_radii(left_out, clusters.labels, clusters.n_clusters, 0.9)
    assert radii[alone] == pytest.approx(np.quantile(left_out[:-1], 0.9))
    assert np.isfinite(silhouette_by_row(rows, clusters.labels, clusters.n_clusters)).all()


@pytest.mark.parametrize("choose_by", ["silhouette", "likelihood", "js"])
def test_usage_of_one_example_is_clustered_with_the_rest(choose_by):
    vectors, _ = planted(4, 61)
    clusters = fit_clusters(vectors, n_clusters=(2, 4), choose_by=choose_by, n_usage=1)
    assert clusters.n_clusters == 4
    assert clusters.labels[0] in range(4)


@pytest.mark.parametrize("n_usage", [-1, 7])
def test_more_usage_than_rows_is_refused(n_usage):
    with pytest.raises(DataError, match=r"the fit has 6\. Put the usage vectors first"):
        fit_clusters(unit(np.ones((6, 8))), n_usage=n_usage)


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_copies_of_one_row_are_one_cluster(method):
    vectors = np.repeat(unit(np.ones((1, 8))), 60, axis=0)
    clusters = fit_clusters(vectors, method=method, n_clusters=(5, 10))
    assert clusters.n_clusters == 1
    assert (clusters.labels == 0).all()


def test_more_clusters_than_different_rows_are_reduced_to_the_different_rows():
    vectors = np.repeat(unit(np.random.default_rng(0).normal(size=(3, 8))), 30, axis=0)
    clusters = fit_clusters(vectors, n_clusters=(10, 20))
    assert clusters.n_clusters == 3
    assert any("Only 3 different points" in note for note in clusters.notes)


def test_assignment_in_blocks_over_a_memory_map_equals_the_plain_product(tmp_path):
    vectors, _ = planted(9, 1000, noise=0.5)
    centroids = unit(np.random.default_rng(4).normal(size=(9, 32)))
    np.save(tmp_path / "pool.npy", vectors)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    ids, distances = assign_clusters(mapped, centroids, block=137)
    scores = vectors @ centroids.T
    assert (ids == scores.argmax(axis=1)).all()
    assert distances == pytest.approx(1 - scores.max(axis=1), abs=1e-6)
    assert (ids.dtype, distances.dtype) == (np.int32, np.float32)


def test_vectors_of_another_encoder_are_refused():
    with pytest.raises(DataError, match=r"E50 .*different encoders"):
        assign_clusters(unit(np.ones((4, 8))), unit(np.ones((2, 16))))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_rows_that_are_not_unit_vectors_are_named(value):
    vectors = unit(np.ones((6, 8)))
    vectors[4] = value
    with pytest.raises(DataError, match=r"1 vectors are .*\(rows 4\)"):
        fit_clusters(vectors)
    with pytest.raises(DataError, match=r"rows 4"):
        assign_clusters(vectors, unit(np.ones((2, 8))), block=3)


@pytest.mark.parametrize(
    "arguments", [{"n_clusters": ()}, {"n_clusters": (0,)}, {"method": "meanshift"}]
)
def test_impossible_settings_are_refused_by_their_config_name(arguments):
    with pytest.raises(DataError, match=r"clustering\.(n_clusters|method)"):
        fit_clusters(unit(np.ones((6, 8))), **arguments)


def test_radius_is_the_clusters_own_quantile_and_the_global_one_for_tiny_clusters():
    ids = np.array([0] * 10 + [1] * 2, dtype=np.int32)
    distances = np.array([*np.linspace(0.1, 1.0, 10), 0.2, 0.4], dtype=np.float32)
    radii = relevance_radii(distances, ids, 3, 0.5)
    assert radii[0] == pytest.approx(0.55)
    assert radii[1] == radii[2] == pytest.approx(np.median(distances))


def test_radius_of_quantile_zero_is_infinite_and_of_one_holds_every_fit_row():
    vectors, _ = planted(3, 90, noise=0.5)
    ids, distances = assign_clusters(vectors, unit(np.eye(32)[:3]))
    assert np.isinf(relevance_radii(distances, ids, 3, 0.0)).all()
    assert (distances <= relevance_radii(distances, ids, 3, 1.0)[ids]).all()


def test_radius_of_identical_rows_still_admits_another_copy():
    assert (relevance_radii(np.zeros(9, np.float32), np.zeros(9, np.int32), 1, 0.95) > 0).all()


def test_leaving_a_row_out_equals_computing_the_mean_without_it():
    vectors, groups = planted(4, 60, noise=0.4)
    groups[7] = 4
    found = leave_one_out_distances(vectors, groups.astype(np.int32), 5)
    for row in range(60):
        others = (groups == groups[row]) & (np.arange(60) != row)
        if not others.any():
            assert found[row] == 1.0
            continue
        mean = vectors[others].sum(axis=0)
        assert found[row] == pytest.approx(1 - vectors[row] @ mean / np.linalg.norm(mean), abs=1e-5)


def test_radii_of_left_out_rows_admit_new_rows_of_the_same_kind_at_the_stated_rate():
    # One set of topics, small clusters, many dimensions: fit on a half, look at the other half.
    vectors, _ = planted(20, 2000, dimension=128, noise=0.15)
    fit, new = vectors[:400], vectors[400:]
    clusters = fit_clusters(fit, n_clusters=(20,))
    ids, plain = assign_clusters(fit, clusters.centroids)
    left_out = leave_one_out_distances(fit, ids, 20)
    new_ids, new_distances = assign_clusters(new, clusters.centroids)

    def admitted(distances):
        return (new_distances <= relevance_radii(distances, ids, 20, 0.9)[new_ids]).mean()

    assert admitted(left_out) == pytest.approx(0.9, abs=0.06)
    assert admitted(plain) < 0.75


def test_left_out_distances_of_copies_are_zero():
    vectors = np.repeat(unit(np.ones((1, 8))), 6, axis=0)
    assert leave_one_out_distances(vectors, np.zeros(6, np.int32), 1) == pytest.approx(0, abs=1e-6)


def test_rows_alone_in_their_cluster_do_not_widen_the_common_radius():
    # Two clusters of three rows at distance .2, and four rows alone at the distance of strangers.
    ids = np.array([0, 0, 0, 1, 1, 1, 2, 3, 4, 5], dtype=np.int32)
    distances = np.where(ids < 2, 0.2, 1.0).astype(np.float32)
    np.testing.assert_allclose(relevance_radii(distances, ids, 6, 0.95), 0.2, atol=1e-6)
    alone = np.arange(4, dtype=np.int32)
    np.testing.assert_allclose(relevance_radii(np.ones(4, np.float32), alone, 4, 0.95), 1.0)

"""The space of one language: who takes part in the fit, who is assigned, what is centred."""

from dataclasses import replace

import numpy as np
import pytest

from compass_core.config import ClusteringConfig
from compass_core.selection.assignment import assign_clusters
from compass_core.selection.space import Vectors, build_space, locate

CONFIG = ClusteringConfig(n_clusters=(3,), relevance_quantile=0.95)


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def around(centre, n, rng, spread=0.05):
    return unit(np.eye(8)[centre] + spread * rng.standard_normal((n, 8)))


@pytest.fixture
def vectors():
    """Three directions of meaning; the pool has four, and rows of the target language."""
    rng = np.random.default_rng(0)
    pool = np.concatenate([around(c, 30, rng) for c in range(4)])
    languages = np.array(["swh_Latn" if i % 10 == 0 else "tur_Latn" for i in range(len(pool))])
    return Vectors(
        usage=np.concatenate([around(c, 20, rng) for c in range(3)]),
        coverage=around(0, 30, rng),
        pool=pool,
        pool_languages=languages,
    )


def build(vectors, config=CONFIG, **changes):
    return build_space("swh_Latn", vectors, config, **({"centre": False, "seed": 0} | changes))


def test_everybody_gets_the_cluster_of_their_meaning(vectors):
    space = build(vectors)
    assert space.n_clusters == 3
    assert len(set(space.usage_ids[:20].tolist())) == 1
    assert set(space.coverage_ids.tolist()) == set(space.usage_ids[:20].tolist())
    for centre in range(3):
        members = space.pool_ids[30 * centre : 30 * (centre + 1)]
        assert set(members.tolist()) == set(space.usage_ids[20 * centre : 20 * (centre + 1)])


def test_pool_rows_of_another_meaning_lie_outside_every_radius(vectors):
    space = build(vectors)
    strangers = slice(90, 120)
    assert (space.pool_distances[strangers] > space.radii[space.pool_ids[strangers]]).all()
    inside = space.pool_distances[:90] <= space.radii[space.pool_ids[:90]]
    assert inside.mean() > 0.8


def test_rows_of_the_target_language_are_marked(vectors):
    space = build(vectors)
    assert (space.foreign == (vectors.pool_languages != "swh_Latn")).all()


def test_without_coverage_the_pool_helps_to_fit(vectors):
    bare = Vectors(
        vectors.usage, np.zeros((0, 8), np.float32), vectors.pool, vectors.pool_languages
    )
    space = build(bare, ClusteringConfig(n_clusters=(4,)))
    assert len(space.coverage_ids) == 0
    assert len({*space.pool_ids.tolist()}) == 4, "the fourth meaning lives in the pool alone"


def test_pool_takes_part_in_the_fit_when_asked(vectors):
    config = ClusteringConfig(n_clusters=(4,), fit_on="usage+coverage+pool")
    assert len(set(build(vectors, config).pool_ids.tolist())) == 4


def test_usage_that_is_held_out_changes_no_centroid_and_no_radius(vectors):
    config = CONFIG.model_copy(update={"fit_on": "coverage+pool"})
    other = replace(vectors, usage=np.roll(vectors.usage, 3, axis=1)[:7])
    one, two = build(vectors, config), build(other, config)
    np.testing.assert_array_equal(one.clusters.centroids, two.clusters.centroids)
    np.testing.assert_array_equal(one.radii, two.radii)
    np.testing.assert_array_equal(one.coverage_ids, two.coverage_ids)
    assert len(two.usage_ids) == 7
    expected, _ = assign_clusters(vectors.usage, one.clusters.centroids)
    np.testing.assert_array_equal(one.usage_ids, expected)


def test_centring_takes_out_what_a_language_has_in_common(vectors):
    shift = np.zeros(8, np.float32)
    shift[7] = 3.0
    turkish = vectors.pool_languages == "tur_Latn"
    pool = vectors.pool.copy()
    pool[turkish] = unit(pool[turkish] + shift)
    moved = Vectors(vectors.usage, vectors.coverage, pool, vectors.pool_languages)
    plain, centred = build(moved), build(moved, centre=True)
    assert centred.means.keys() == {"swh_Latn", "tur_Latn"}
    assert plain.means == {}
    assert np.median(centred.pool_distances[turkish]) < np.median(plain.pool_distances[turkish])


def test_new_texts_are_placed_like_the_old_ones(vectors):
    for centre in (False, True):
        space = build(vectors, centre=centre)
        mean = space.means.get("swh_Latn")
        ids, _ = locate(vectors.usage.copy(), space.clusters.centroids, mean)
        assert (ids == space.usage_ids).all()


def test_same_seed_gives_the_same_space(vectors):
    first, second = build(vectors), build(vectors)
    assert (first.clusters.centroids == second.clusters.centroids).all()
    assert (first.pool_ids == second.pool_ids).all()


def test_one_cluster_and_thin_clusters_are_told(vectors):
    one = build(vectors, ClusteringConfig(n_clusters=(1,)))
    assert any("One cluster holds everything" in note for note in one.clusters.notes)
    thin = build(vectors, ClusteringConfig(n_clusters=(40,)))
    assert any("hold fewer than 5 of the 90 rows" in note for note in thin.clusters.notes)
    assert not build(vectors).clusters.notes

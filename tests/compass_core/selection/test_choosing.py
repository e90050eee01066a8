"""The number of clusters by usage that was held out: hand-checkable, reproducible, never worse."""

from __future__ import annotations

import numpy as np
import pytest

from compass_core.errors import DataError
from compass_core.selection.choosing import held_out_scores
from compass_core.selection.clustering import fit_clusters


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rows_of(topics, centres, noise, rng):
    return unit(centres[topics] + noise * rng.normal(size=(len(topics), centres.shape[1])))


@pytest.fixture(scope="module")
def skewed():
    """32 topics in 8 groups; usage asks for one topic of each group, the others for all."""
    rng = np.random.default_rng(0)
    groups = np.repeat(rng.normal(size=(8, 48)), 4, axis=0)
    centres = unit(groups + 0.4 * rng.normal(size=(32, 48)))
    usage = rows_of(
        rng.choice(32, 300, p=np.tile([0.85, 0.05, 0.05, 0.05], 8) / 8), centres, 0.06, rng
    )
    others = rows_of(rng.integers(0, 32, 600), centres, 0.06, rng)
    pool = rows_of(rng.integers(0, 32, 2000), centres, 0.06, rng)
    return usage, others, pool


def test_the_gain_of_telling_usage_from_the_pool_is_found_in_bits():
    # Two far directions, usage 3:1, reference 1:1: with two clusters the mean log ratio is
    # .75·log2 1.5 + .25·log2 .5 = .19, with one it is 0.
    rng = np.random.default_rng(0)
    centres = np.eye(8)[:2]
    usage = rows_of(np.repeat([0, 1], [3000, 1000]), centres, 0.01, rng)
    pool = rows_of(np.repeat([0, 1], 500), centres, 0.01, rng)
    one, two = held_out_scores(usage, pool[:0], pool, [1, 2], np.random.default_rng(1))
    assert one.likelihood == pytest.approx(0, abs=1e-6)
    assert two.likelihood == pytest.approx(0.75 * np.log2(1.5) + 0.25 * np.log2(0.5), abs=0.01)
    assert two.js < 0.02 < one.js - 0.02


def test_usage_like_the_reference_gains_nothing_from_any_number_of_clusters():
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(20, 32)))
    usage, others, pool = (
        rows_of(rng.integers(0, 20, n), centres, 0.1, rng) for n in (400, 800, 3000)
    )
    scores = held_out_scores(usage, others, pool, [2, 20, 80], np.random.default_rng(1))
    assert all(-0.3 < score.likelihood < 0.02 for score in scores)
    assert scores[0].likelihood > scores[2].likelihood


@pytest.mark.parametrize("criterion", ["likelihood", "js"])
def test_held_out_usage_sees_the_topics_that_the_silhouette_merges(skewed, criterion):
    usage, others, pool = skewed
    rows, grid = np.concatenate([usage, others]), (4, 8, 16, 32, 200)
    by_shape = fit_clusters(rows, n_clusters=grid)
    by_usage = fit_clusters(
        rows, n_clusters=grid, choose_by=criterion, n_usage=len(usage), reference=pool
    )
    assert by_shape.n_clusters < 32 <= by_usage.n_clusters < 200
    assert {"silhouette", "likelihood", "js"} <= set(by_usage.curve[0])
    assert "likelihood" not in by_shape.curve[0]
    assert by_usage.chosen in by_usage.curve
    assert [e["silhouette"] for e in by_usage.curve] == [e["silhouette"] for e in by_shape.curve]


def test_without_a_pool_the_other_rows_of_the_fit_are_the_reference(skewed):
    usage, others, _ = skewed
    clusters = fit_clusters(
        np.concatenate([usage, others]),
        n_clusters=(4, 8, 32),
        choose_by="likelihood",
        n_usage=len(usage),
    )
    assert clusters.n_clusters == 32


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_the_rows(skewed):
    usage, others, pool = skewed
    settings = {"n_clusters": (4, 8, 32), "choose_by": "js", "n_usage": len(usage), "seed": 3}
    first = fit_clusters(np.concatenate([usage, others]), reference=pool, **settings)
    again = fit_clusters(np.concatenate([usage, others]), reference=pool, **settings)
    turned = fit_clusters(
        np.concatenate([usage[::-1], others[::-1]]), reference=pool[::-1], **settings
    )

    def scores(clusters):
        return [(e["likelihood"], e["js"], e["silhouette"]) for e in clusters.curve]

    assert scores(first) == scores(again) == scores(turned)
    assert first.centroids.tobytes() == turned.centroids.tobytes()


@pytest.mark.parametrize(("n_usage", "n_others"), [(1, 60), (19, 60), (60, 0), (60, 5)])
def test_too_few_rows_to_hold_out_leave_the_choice_to_the_silhouette_and_say_so(n_usage, n_others):
    rows = unit(np.random.default_rng(0).normal(size=(n_usage + n_others, 16)))
    clusters = fit_clusters(rows, n_clusters=(4, 8), choose_by="likelihood", n_usage=n_usage)
    assert max(clusters.curve, key=lambda entry: entry["silhouette"]) == clusters.chosen
    assert any("the silhouette chose" in note for note in clusters.notes)


def test_a_single_candidate_is_taken_without_holding_anything_out(skewed):
    usage, others, pool = skewed
    rows = np.concatenate([usage, others])
    clusters = fit_clusters(
        rows, n_clusters=(8,), choose_by="js", n_usage=len(usage), reference=pool
    )
    assert clusters.n_clusters == 8
    assert "js" not in clusters.chosen
    assert not clusters.notes


def test_copies_of_few_prompts_do_not_break_the_held_out_scores():
    points = unit(np.random.default_rng(0).normal(size=(3, 16)))
    clusters = fit_clusters(
        np.repeat(points, 40, axis=0), n_clusters=(2, 3, 20), choose_by="js", n_usage=60
    )
    assert clusters.n_clusters <= 3
    assert np.isfinite([entry["js"] for entry in clusters.curve]).all()


def test_unknown_criterion_and_bad_reference_are_refused_with_the_reason():
    rows = unit(np.random.default_rng(0).normal(size=(60, 16)))
    with pytest.raises(DataError, match=r"clustering\.choose_by .*got 'elbow'"):
        fit_clusters(rows, choose_by="elbow")
    with pytest.raises(DataError, match="NaN"):
        fit_clusters(rows, choose_by="js", n_usage=30, reference=np.full((30, 16), np.nan))
    with pytest.raises(DataError, match=r"E50 .*different encoders"):
        fit_clusters(rows, choose_by="js", n_usage=30, reference=unit(np.ones((30, 8))))

"""Labels, terms, map and language similarity: what people see of a space."""

from __future__ import annotations

import numpy as np
import pytest

from compass_core.errors import DataError
from compass_core.selection.centring import centre_languages
from compass_core.selection.labels import label_clusters, nearest_examples
from compass_core.selection.projection import project_2d
from compass_core.selection.similarity import lexical_similarity
from compass_core.selection.words import terms, trigrams


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_words_keep_their_vowel_signs_and_unspaced_scripts_give_ngrams():
    assert list(terms("मुझे हिन्दी पसंद है")) == ["मुझे", "हिन्दी", "पसंद", "है"]
    assert list(terms("L'eau, don’t!")) == ["l'eau", "don’t"]
    assert "東京都" in list(terms("私は東京都に住む"))
    assert list(terms("!!! — …")) == []
    assert list(trigrams("")) == []


def test_labels_name_what_is_special_about_a_cluster():
    texts = [
        "the rain and the storm",
        "heavy rain after the storm",
        "the match and the goal",
        "a late goal won the match",
        "今日は雨が降る",
        "明日も雨が降る",
    ]
    labels = label_clusters(np.array([0, 0, 1, 1, 2, 2]), texts, n_terms=2)
    assert set(labels[0].split(" · ")) == {"rain", "storm"}
    assert set(labels[1].split(" · ")) == {"goal", "match"}
    assert "雨" in labels[2]
    assert "the" not in labels[0].split(" · ")


def test_clusters_without_words_keep_their_number_as_name():
    assert label_clusters(np.array([0, 2]), ["!!!", "rain"], n_clusters=4) == [
        "cluster 0",
        "cluster 1",
        "rain",
        "cluster 3",
    ]


def test_nearest_examples_come_nearest_first():
    rows = nearest_examples(np.array([1, 0, 1, 1]), np.array([0.3, 0.2, 0.1, 0.2]), n_clusters=3)
    assert rows == [[1], [2, 3, 0], []]


def test_label_and_text_counts_must_agree():
    with pytest.raises(DataError, match="2 texts came with 1"):
        label_clusters(np.array([0]), ["a", "b"])


def test_similarity_ranks_the_relative_before_the_neighbour_and_other_scripts_last():
    spanish = ["el tiempo de mañana será bueno", "la casa es grande y la calle es larga"] * 5
    others = {
        "por_Latn": ["o tempo de amanhã será bom", "a casa é grande e a rua é larga"] * 5,
        "fin_Latn": ["huomenna on hyvä sää", "talo on suuri ja katu on pitkä"] * 5,
        "rus_Cyrl": ["завтра будет хорошая погода", "дом большой и улица длинная"] * 5,
        "same": spanish,
        "empty": [],
    }
    found = lexical_similarity(spanish, others)
    assert found["same"] == pytest.approx(1.0)
    assert 1 > found["por_Latn"] > found["fin_Latn"] > found["rus_Cyrl"]
    assert found["rus_Cyrl"] < 0.1
    assert found["empty"] == 0.0


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_map_keeps_planted_groups_apart_and_is_the_same_every_time(method):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, 90)
    vectors = unit(np.eye(16)[groups] + 0.05 * rng.normal(size=(90, 16)))
    points = project_2d(vectors[:60], vectors[60:], seed=1, method=method)
    assert points.shape == (90, 2)
    assert points.dtype == np.float32
    centres = np.stack([points[:60][groups[:60] == g].mean(axis=0) for g in range(3)])
    nearest = np.linalg.norm(points[60:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == groups[60:]).mean() > 0.95
    assert (points == project_2d(vectors[:60], vectors[60:], seed=1, method=method)).all()


@pytest.mark.parametrize("n_rows", [1, 2, 9, 10])
def test_map_of_few_points_is_finite(n_rows):
    vectors = unit(np.random.default_rng(0).normal(size=(n_rows, 4)))
    assert np.isfinite(project_2d(vectors, seed=0)).all()


def test_centring_removes_what_a_language_shares_and_keeps_the_topic():
    rng = np.random.default_rng(0)
    topics, languages = rng.integers(0, 4, 400), rng.integers(0, 3, 400)
    offset = 2.0 * rng.normal(size=(3, 24))
    raw = unit(np.eye(24)[topics] + offset[languages] + 0.05 * rng.normal(size=(400, 24)))
    names = np.array(["aaa", "bbb", "ccc"])[languages]
    moved, means = centre_languages(raw, names)
    assert np.linalg.norm(moved, axis=1) == pytest.approx(1.0, abs=1e-5)
    scores = moved @ moved.T
    same_topic = topics[:, None] == topics[None, :]
    assert scores[same_topic].mean() > scores[~same_topic].mean() + 0.5
    again, _ = centre_languages(raw[:5], names[:5], means)
    assert again == pytest.approx(moved[:5], abs=1e-6)


def test_centring_a_language_of_one_row_leaves_no_zero_vector_and_does_not_touch_the_input():
    vectors = unit(np.ones((5, 4)))
    before = vectors.copy()
    moved, means = centre_languages(vectors, np.array(["a"] * 4 + ["b"]))
    assert np.linalg.norm(moved, axis=1) == pytest.approx(1.0)
    assert set(means) == {"a", "b"}
    assert (vectors == before).all()

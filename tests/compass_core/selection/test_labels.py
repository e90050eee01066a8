"""What people see of a cluster: terms per script, nearest examples, never an empty name."""

from __future__ import annotations

import numpy as np
import pytest

from compass_core.errors import DataError
from compass_core.selection.labels import describe_clusters, label_clusters

TEXTS = [
    "heavy rain after the storm",
    "the rain and the storm",
    "今日は大雨が降る",
    "明日も大雨が降る",
    "the match and the goal",
    "a late goal won the match",
    "試合は引き分けだった",
    "今日の試合の結果",
]
IDS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
LANGUAGES = ["eng_Latn", "eng_Latn", "jpn_Jpan", "jpn_Jpan"] * 2


def test_each_script_of_a_mixed_cluster_has_its_own_terms():
    rain, match = describe_clusters(IDS, TEXTS, languages=LANGUAGES)
    assert set(rain.terms) == {"Latn", "Jpan"}
    assert set(rain.terms["Latn"]) == {"rain", "storm"}
    assert any("大雨" in term for term in rain.terms["Jpan"])
    assert set(match.terms["Latn"]) == {"goal", "match"}
    assert any("試合" in term for term in match.terms["Jpan"])
    assert rain.label.count(" | ") == 1


def test_a_script_with_few_texts_is_not_described():
    texts = ["rain storm"] * 19 + ["大雨が降る"] + ["goal match"] * 20
    languages = ["eng_Latn"] * 19 + ["jpn_Jpan"] + ["eng_Latn"] * 20
    rain, _ = describe_clusters(np.repeat([0, 1], 20), texts, languages=languages)
    assert list(rain.terms) == ["Latn"]
    assert " | " not in rain.label


def test_the_script_of_most_texts_comes_first():
    texts = ["大雨が降る", "大雨だ", "heavy rain"]
    (only,) = describe_clusters(
        np.zeros(3, int), texts, languages=["jpn_Jpan", "jpn_Jpan", "eng_Latn"]
    )
    assert list(only.terms) == ["Jpan", "Latn"]


def test_examples_are_the_nearest_different_texts_nearest_first():
    texts = ["far", "near", "Near ", "middle", "", "other cluster"]
    ids = np.array([0, 0, 0, 0, 0, 1])
    distances = np.array([0.9, 0.1, 0.2, 0.3, 0.0, 0.0])
    first, second = describe_clusters(ids, texts, distances, n_examples=2)
    assert first.examples == ["near", "middle"]
    assert first.example_rows == [1, 3]
    assert first.n_texts == 5
    assert second.examples == ["other cluster"]


def test_long_examples_are_cut_to_one_line():
    (only,) = describe_clusters(np.zeros(1, int), ["word\nword " * 100])
    assert len(only.examples[0]) <= 160
    assert only.examples[0].endswith("…")
    assert "\n" not in only.examples[0]


def test_labels_are_those_of_the_descriptions_without_languages():
    described = describe_clusters(IDS, TEXTS)
    assert label_clusters(IDS, TEXTS) == [entry.label for entry in described]
    assert list(described[0].terms) == [""]


def test_empty_clusters_and_texts_without_words_keep_their_number_as_name():
    described = describe_clusters(np.array([0, 2]), ["!!!", "rain"], n_clusters=4)
    assert [entry.label for entry in described] == ["cluster 0", "cluster 1", "rain", "cluster 3"]
    assert [entry.n_texts for entry in described] == [1, 0, 1, 0]
    assert described[1].examples == []
    assert described[0].terms == {}


def test_the_description_does_not_depend_on_the_order_of_texts_at_different_distances():
    distances = np.linspace(0.1, 0.8, 8)
    order = np.random.default_rng(0).permutation(8)
    first = describe_clusters(IDS, TEXTS, distances, LANGUAGES)
    second = describe_clusters(
        IDS[order],
        [TEXTS[i] for i in order],
        distances[order],
        np.array(LANGUAGES)[order],
    )
    assert [(e.label, e.terms, e.examples) for e in first] == [
        (e.label, e.terms, e.examples) for e in second
    ]


def test_lengths_that_differ_are_refused():
    with pytest.raises(DataError, match="2 texts came with 1 cluster ids"):
        describe_clusters(np.array([0]), ["a", "b"])
    with pytest.raises(DataError, match="2 texts came with 1 languages"):
        describe_clusters(np.array([0, 0]), ["a", "b"], languages=["eng_Latn"])

"""The script guard: fires on spaces of scripts, stays quiet on spaces of meaning and on chance."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from compass_core.errors import DataError, ScriptGuardError
from compass_core.selection.centring import centre_languages
from compass_core.selection.clustering import assign_clusters, fit_clusters
from compass_core.selection.health import (
    check_script_guard,
    cluster_health,
)
from compass_core.selection.retrieval import translation_retrieval

DATA = Path(os.environ.get("COMPASS_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))


def assigned(n=2000, k=20, n_languages=8, follow=0.0, seed=0):
    """Clusters of which a share `follow` is decided by the language, the rest by chance."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_languages, n)
    by_language = codes + n_languages * rng.integers(0, max(k // n_languages, 1), n)
    ids = np.where(rng.random(n) < follow, by_language % k, rng.integers(0, k, n))
    return ids, np.array([f"lang{c}" for c in codes])


def test_independent_clusters_pass_without_a_warning():
    health = cluster_health(*assigned())
    assert health.median_mixing > 0.97
    assert health.nmi_language < 0.02
    assert check_script_guard(health) == []


def test_clusters_that_are_languages_are_refused_with_the_remedy():
    health = cluster_health(*assigned(follow=1.0))
    assert health.median_mixing == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ScriptGuardError, match=r"E61 .*centre_languages=true") as caught:
        check_script_guard(health, "refuse")
    assert "fit-encoder" in str(caught.value)


def test_mode_warn_says_the_same_and_mode_off_says_nothing():
    health = cluster_health(*assigned(follow=1.0))
    assert "follow the language" in check_script_guard(health, "warn")[0]
    assert check_script_guard(health, "off") == []


def test_mutual_information_alone_is_enough_to_refuse():
    # Every cluster mixes two languages of sixteen: entropy .25, but the cluster tells the pair.
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, 4000)
    health = cluster_health(codes // 2, codes.astype(str))
    assert health.median_mixing > 0.2
    assert health.nmi_language > 0.3
    with pytest.raises(ScriptGuardError):
        check_script_guard(health)


def test_weak_mixing_is_a_warning():
    # Three languages, 60 clusters, each with nine tenths of one language.
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 60, 8000)
    codes = np.where(rng.random(8000) < 0.85, ids % 3, rng.integers(0, 3, 8000))
    health = cluster_health(ids, codes.astype(str))
    assert 0.2 < health.median_mixing < 0.5
    assert health.nmi_language < 0.3
    assert "hardly mix" in check_script_guard(health)[0]


def test_single_language_pools_are_exempt_with_a_notice():
    health = cluster_health(np.arange(100) % 5, np.full(100, "eng_Latn"))
    assert check_script_guard(health) == [
        "The pool has one language: the script guard does not apply."
    ]
    assert health.to_dict()["median_mixing"] is None


def test_many_small_clusters_over_many_languages_are_not_mistaken_for_scripts():
    # 100 clusters of 8 examples over 26 languages: raw NMI is far above the threshold by chance.
    health = cluster_health(*assigned(n=800, k=100, n_languages=26))
    assert health.nmi_language_raw > 0.3
    assert health.nmi_language < 0.05
    assert check_script_guard(health) == []


def test_information_equals_scikit_learn_raw_and_corrected():
    ids, languages = assigned(follow=0.4)
    health = cluster_health(ids, languages, topics=[f"t{i % 5}" for i in ids])
    raw = normalized_mutual_info_score(languages, ids)
    assert health.nmi_language_raw == pytest.approx(raw, abs=1e-9)
    exact = adjusted_mutual_info_score(languages, ids)
    assert health.nmi_language == pytest.approx(exact, abs=0.01)
    assert health.nmi_topic > 0.6


def test_entropy_is_relative_to_the_pool_and_missing_topics_are_left_out():
    ids = np.repeat([0, 1], 50)
    languages = np.array(["a", "b"] * 25 + ["a"] * 50)
    health = cluster_health(
        ids, languages, topics=[""] * 100, usage_outside=np.array([True, False])
    )
    pool = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert health.language_entropy == pytest.approx((np.log(2) / pool, 0.0))
    assert health.nmi_topic is None
    assert health.usage_outside == 0.5
    json.dumps(health.to_dict(), allow_nan=False)


def test_a_pool_without_rows_is_refused():
    with pytest.raises(DataError, match="0 clusters and 0 languages"):
        cluster_health(np.empty(0, dtype=np.int32), [])


def test_retrieval_is_one_for_copies_and_chance_for_strangers():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    same = translation_retrieval(vectors, vectors)
    assert same["retrieval_at_1"] == 1.0
    assert same["matched_minus_random"] == pytest.approx(1.0, abs=0.02)
    assert translation_retrieval(vectors, vectors[::-1])["retrieval_at_1"] < 0.05


def sib200_rows(languages, per_language):
    path = DATA / "sib200.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"COMPASS_TEST_DATA has no sib200.jsonl.gz ({path})")
    rows = {code: [] for code in languages}
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            if len(rows.get(row["language"], range(per_language))) < per_language:
                rows[row["language"]].append(row)
    return [row for code in languages for row in rows[code]]


def test_character_ngrams_of_real_sentences_are_refused_and_centring_repairs_the_mixing():
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = sib200_rows(("en", "sw", "ru", "ar", "hi", "yo", "zh", "tr"), 120)
    languages = np.array([row["language"] for row in rows])
    features = TfidfVectorizer(analyzer="char", ngram_range=(1, 2))
    reduced = TruncatedSVD(48, random_state=0).fit_transform(
        features.fit_transform([row["text"] for row in rows])
    )
    vectors = (reduced / np.linalg.norm(reduced, axis=1, keepdims=True)).astype(np.float32)

    def health_of(space):
        clusters = fit_clusters(space, n_clusters=(16, 24))
        return cluster_health(assign_clusters(space, clusters.centroids)[0], languages)

    raw = health_of(vectors)
    assert raw.nmi_language > 0.5
    with pytest.raises(ScriptGuardError):
        check_script_guard(raw)
    centred = health_of(centre_languages(vectors, languages)[0])
    assert centred.nmi_language < raw.nmi_language - 0.2


def test_topics_as_numbers_give_what_their_names_give():
    ids, languages = assigned(follow=0.2)
    names = np.array([("", "a", "b", "c")[i % 4] for i in range(len(ids))])
    codes = np.array([(-1, 0, 1, 2)[i % 4] for i in range(len(ids))], dtype=np.int32)
    by_name = cluster_health(ids, languages, topics=names)
    assert cluster_health(ids, languages, topics=codes).nmi_topic == by_name.nmi_topic

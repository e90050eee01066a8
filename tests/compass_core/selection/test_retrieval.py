"""Do translations find each other? On hand-made spaces where the answer is known."""

import numpy as np
import pytest

from compass_core.errors import DataError
from compass_core.selection.health import check_reach, cluster_health
from compass_core.selection.retrieval import MIN_PARALLEL_ROWS, parallel_retrieval


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def corpus(n_items=40, languages=("swh_Latn", "tur_Latn", "hin_Deva"), noise=0.0, seed=0):
    """Every item once per language, its vector shared but for the noise."""
    rng = np.random.default_rng(seed)
    meaning = rng.standard_normal((n_items, 16))
    keys = np.tile(np.arange(1, n_items + 1, dtype=np.uint64), len(languages))
    names = np.repeat(np.array(languages), n_items)
    vectors = np.tile(meaning, (len(languages), 1))
    return keys, names, unit(vectors + noise * rng.standard_normal(vectors.shape))


def test_equal_vectors_of_translations_are_all_found():
    found = parallel_retrieval(*corpus(), first="swh_Latn")
    assert found["retrieval_at_1"] == 1.0
    assert found["n_candidates"] == 40
    assert found["n_pairs"] == 3
    assert found["matched_minus_random"] > 0.9


def test_vectors_that_know_nothing_find_a_chance_share():
    keys, names, _ = corpus()
    blind = unit(np.random.default_rng(1).standard_normal((len(keys), 16)))
    found = parallel_retrieval(keys, names, blind, first="swh_Latn")
    assert found["retrieval_at_1"] < 0.15
    assert abs(found["matched_minus_random"]) < 0.1


def test_pairs_with_the_target_language_go_first():
    keys, names, vectors = corpus()
    broken = vectors.copy()
    broken[names == "swh_Latn"] = broken[names == "swh_Latn"][::-1]
    assert (
        parallel_retrieval(keys, names, broken, first="swh_Latn", max_pairs=2)["retrieval_at_1"]
        < 0.1
    )
    assert parallel_retrieval(keys, names, broken, first="fin_Latn", max_pairs=1)[
        "retrieval_at_1"
    ] in (0.0, 1.0)


def test_rows_without_translations_say_nothing():
    keys, names, vectors = corpus()
    assert parallel_retrieval(np.zeros_like(keys), names, vectors, first="swh_Latn") is None
    few = keys * (keys < MIN_PARALLEL_ROWS)
    assert parallel_retrieval(few, names, vectors, first="swh_Latn") is None


def test_the_order_of_the_rows_does_not_matter():
    keys, names, vectors = corpus(noise=1.0)
    order = np.random.default_rng(3).permutation(len(keys))
    found = parallel_retrieval(keys, names, vectors, first="tur_Latn")
    again = parallel_retrieval(keys[order], names[order], vectors[order], first="tur_Latn")
    assert again == pytest.approx(found)


def health(retrieval=None, outside=0.0):
    ids = np.arange(40) % 4
    return cluster_health(
        ids,
        np.array([f"l{i % 5}" for i in range(40)]),
        usage_outside=np.arange(100) < 100 * outside,
        retrieval=retrieval,
    )


def test_a_blind_encoder_is_warned_about_and_refused_on_demand():
    blind = health({"retrieval_at_1": 0.05, "n_candidates": 200.0})
    (warning,) = check_reach(blind)
    assert "finds 5% of translations among 200 candidates" in warning
    with pytest.raises(DataError, match=r"E61 .*clustering.min_retrieval asks for 50%"):
        check_reach(blind, min_retrieval=0.5)
    assert check_reach(health({"retrieval_at_1": 0.7, "n_candidates": 200.0})) == []


def test_usage_beyond_every_radius_is_warned_about_and_refused_on_demand():
    (warning,) = check_reach(health(outside=0.4))
    assert "40% of usage lies beyond the radius" in warning
    with pytest.raises(DataError, match="max_usage_outside allows 10%"):
        check_reach(health(outside=0.4), max_usage_outside=0.1)
    assert check_reach(health(outside=0.05)) == []

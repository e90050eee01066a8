"""Importance resampling on hashed n-grams, against a slow twin and on planted words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils import murmurhash3_32

from compass_core.errors import DataError
from compass_core.selection.drawing import example_keys
from compass_core.selection.gap import GapTable
from compass_core.selection.hashed_ngrams import (
    bucket_weights,
    count_buckets,
    hash_texts,
    ngrams,
    text_weights,
)
from compass_core.selection.problem import SelectionProblem
from compass_core.selection.strategies import STRATEGIES, dsir

WORDS = [f"word{i}" for i in range(40)]
TEXTS = st.lists(st.text(alphabet="abcdé 東京都ไทย ", max_size=30), min_size=1, max_size=8)


def make_problem(share=0.1, n=600, seed=0):
    """A tenth of the pool speaks the words of usage; the rest does not."""
    rng = np.random.default_rng(seed)
    topical = rng.random(n) < share
    texts = [" ".join(rng.choice(WORDS[:20] if t else WORDS[20:], 6)) for t in topical]
    usage = [" ".join(rng.choice(WORDS[:20], 6)) for _ in range(50)]
    coverage = [" ".join(rng.choice(WORDS[20:], 6)) for _ in range(2_000)]
    clusters = rng.integers(0, 4, n)
    problem = SelectionProblem(
        language="swh_Latn",
        pool_keys=example_keys(f"{i}" for i in range(n)),
        pool_languages=np.full(n, "eng_Latn"),
        pool_cluster_ids=clusters,
        pool_distances=np.zeros(n),
        available=np.full(n, True),
        allowed=rng.random(n) < 0.9,
        gap=GapTable.from_assignments(clusters[:9], clusters[:0], clusters, 4),
        usage_texts=usage,
        coverage_texts=coverage,
        pool_texts=lambda: (texts[i : i + 97] for i in range(0, n, 97)),
    )
    return problem, topical


def slow_weights(texts, target, pool, n_buckets):
    """The log weights, one n-gram at a time."""

    def bucket(gram):
        return abs(murmurhash3_32(gram, seed=0)) % n_buckets

    def shares(some, pseudo):
        counts = [pseudo] * n_buckets
        for text in some:
            for gram in ngrams(text):
                counts[bucket(gram)] += 1
        return [count / sum(counts) for count in counts]

    p, q = shares(target, 0.0), shares(pool, 1.0)
    mixed = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return [
        sum(np.log(mixed[bucket(gram)] / q[bucket(gram)]) for gram in ngrams(text))
        for text in texts
    ]


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS)
def test_weights_equal_a_loop_over_ngrams(target, pool):
    if not any(ngrams(text) for text in target):
        return
    weights = bucket_weights(count_buckets([target], 64), count_buckets([pool, [], pool[:1]], 64))
    expected = slow_weights(pool, target, [*pool, *pool[:1]], 64)
    assert text_weights(pool, weights) == pytest.approx(expected, abs=1e-9)


def test_ngrams_of_scripts_without_spaces_are_characters():
    assert ngrams("東京都")[:3] == ["東京", "京都", "東京都"]
    assert hash_texts(["東京都"], 50).sum() == len(ngrams("東京都"))


def test_unseen_words_cost_at_most_log_two_each():
    weights = bucket_weights(np.array([4.0, 0.0, 0.0]), np.array([0.0, 9.0, 3.0]))
    assert weights.min() == pytest.approx(-np.log(2))
    assert weights[0] > 0


def test_a_target_without_words_is_refused():
    with pytest.raises(DataError, match="no words"):
        bucket_weights(np.zeros(3), np.ones(3))
    problem, _ = make_problem()
    with pytest.raises(DataError, match="needs the texts of usage"):
        STRATEGIES["dsir"](replace(problem, usage_texts=()), 5, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(5))
def test_texts_with_the_words_of_usage_are_over_represented(seed):
    problem, topical = make_problem(seed=seed)
    chosen = STRATEGIES["dsir"](problem, 40, np.random.default_rng(seed))
    assert topical[chosen.indices].mean() > 0.9
    assert chosen.details["mean_log_weight"] > chosen.details["mean_log_weight_of_pool"]


def test_the_switch_adds_coverage_to_the_target():
    problem, topical = make_problem()
    wider = replace(problem, dsir_target="usage+coverage")
    chosen = STRATEGIES["dsir"](wider, 40, np.random.default_rng(0))
    assert topical[chosen.indices].mean() < 0.3, "coverage speaks the other words, and more of them"


def test_it_samples_in_proportion_to_the_weights():
    """Two kinds of text of known weights: the share drawn first is that of the weights."""
    problem, topical = make_problem(share=0.5)
    keys = problem.pool_keys
    draws = np.array(
        [
            (
                np.array([3.0, 1.0])[topical.astype(int)],
                dsir._gumbel(keys, np.random.default_rng(i)),
            )
            for i in range(300)
        ]
    )
    first = (np.log(draws[:, 0]) + draws[:, 1]).argmax(axis=1)
    expected = (topical.sum()) / (topical.sum() + 3 * (~topical).sum())
    assert abs(topical[first].mean() - expected) < 0.08


def test_the_proposal_is_a_sample_by_key_where_the_pool_is_large(monkeypatch):
    problem, topical = make_problem()
    monkeypatch.setattr(dsir, "_PROPOSAL_TEXTS", 300)
    chosen = STRATEGIES["dsir"](problem, 40, np.random.default_rng(0))
    assert topical[chosen.indices].mean() > 0.9
    texts = [text for batch in problem.pool_texts() for text in batch]
    candidates = np.flatnonzero(problem.candidates)
    read = candidates[np.argsort(problem.pool_keys[candidates])][:300]
    expected = count_buckets([[texts[row] for row in read]])
    assert (dsir._proposal_counts(problem) == expected).all()

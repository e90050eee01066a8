"""Bags of hashed n-grams and the importance weights of texts made of them.

Words and pairs of neighbouring words (characters in scripts without spaces, see
``selection.words``) fall into buckets by their hash. A text's weight is how much more likely its
n-grams are among the target's texts than among the pool's (Xie et al. 2023, "Data Selection for
Language Models via Importance Resampling", section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.selection.words import terms

N_BUCKETS = 10_000
MAX_CHARACTERS = 10_000
"""Characters read of a text."""

Weights = NDArray[np.float64]


def ngrams(text: str) -> list[str]:
    """Return the words of `text` and the pairs of neighbouring words.

    Examples:
        >>> ngrams("One two three")
        ['one', 'two', 'three', 'one two', 'two three']
    """
    words = list(terms(text[:MAX_CHARACTERS]))
    return words + [f"{first} {second}" for first, second in pairwise(words)]


def hash_texts(texts: Sequence[str], n_buckets: int = N_BUCKETS) -> Any:
    """Return the (N, `n_buckets`) sparse matrix of how often each text's n-grams hit each bucket.

    The hash (MurmurHash3 of the n-gram's UTF-8, its absolute value modulo `n_buckets`) is the same
    in every process.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    hasher = HashingVectorizer(
        n_features=n_buckets, analyzer=ngrams, norm=None, alternate_sign=False
    )
    return hasher.transform(texts)


def count_buckets(batches: Iterable[Sequence[str]], n_buckets: int = N_BUCKETS) -> Weights:
    """Return (`n_buckets`,) how often the n-grams of all texts hit each bucket."""
    total = np.zeros(n_buckets)
    for texts in batches:
        if len(texts):
            total += np.asarray(hash_texts(texts, n_buckets).sum(axis=0)).ravel()
    return total


def bucket_weights(target_counts: Weights, pool_counts: Weights) -> Weights:
    """Return (K,) the log weight that one occurrence of each bucket adds to a text.

    log(p / q) with q the pool's shares (one pseudo-count a bucket) and p half the target's shares
    and half q. The mixture keeps the weight of an n-gram that the few target texts never show at
    −log 2: without it one unseen n-gram would outweigh everything else.

    Raises:
        DataError: the target's texts hold no n-gram.

    Examples:
        >>> bucket_weights(np.array([3.0, 0.0]), np.array([1.0, 1.0])).round(3).tolist()
        [0.405, -0.693]
    """
    if not target_counts.sum() > 0:
        raise DataError("The target's texts hold no words, so no text can resemble them.")
    proposal = (pool_counts + 1.0) / (pool_counts.sum() + len(pool_counts))
    target = 0.5 * target_counts / target_counts.sum() + 0.5 * proposal
    weights: Weights = np.log(target / proposal)
    return weights


def text_weights(texts: Sequence[str], weights: Weights) -> Weights:
    """Return (N,) log importance weights: the sum of `weights` over each text's n-grams."""
    if not len(texts):
        return np.zeros(0)
    summed: Weights = hash_texts(texts, len(weights)) @ weights
    return summed

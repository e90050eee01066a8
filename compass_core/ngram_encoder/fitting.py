"""Cross-lingual latent semantic indexing over character n-grams.

Rows that exist in several languages get a place in a shared space (the leading directions of the
sum of the languages' kernels), and per language ridge regression maps n-grams onto the places. An
n-gram of several languages gets the mixture of their maps, in proportion to where it occurs, and
loses the same mixture of the languages' means: so a text is encoded, and roughly centred, without
its language being known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse import csr_matrix, diags
from sklearn.preprocessing import normalize

from compass_core.encoder_fitting import ParallelTexts, save_encoder, usable_rows
from compass_core.ngram_encoder.features import ngram_matrix
from compass_core.ngram_encoder.module import HashedNgrams
from compass_core.seeding import derive_rng

Floats = NDArray[np.float64]

_MIN_TEXTS = 2
MAX_ROWS = 3_000
"""Parallel rows used at most: kernels grow with their square."""


@dataclass(frozen=True, slots=True)
class NgramRecipe:
    """How the table is fitted.

    Attributes:
        dim: Length of an embedding.
        n_bits: Buckets of n-grams, as a power of two.
        ridge: Penalty relative to unit-length texts, > 0; higher trusts rare n-grams less.
        spectrum: Exponent of the singular values that scale the directions: 0 treats all alike,
            which finds translations best; higher favours broad topics.
    """

    dim: int = 128
    n_bits: int = 18
    ridge: float = 1.0
    spectrum: float = 0.5


class _Language(NamedTuple):
    """One language's rows: (n, buckets) weighted n-grams, rows with each bucket, place of rows."""

    counts: csr_matrix
    frequency: NDArray[np.int64]
    keys: NDArray[np.int64]


def fit_ngram_encoder(
    parallel: ParallelTexts,
    out_dir: Path,
    *,
    recipe: NgramRecipe | None = None,
    seed: int = 0,
) -> Path:
    """Fit an encoder on translations and save it as a sentence-transformers folder.

    Args:
        parallel: Parallel id → language → text; keep rows you want to measure on out of it.
        out_dir: Folder to create or replace.
        recipe: Sizes; default `NgramRecipe()`.
        seed: Chooses `MAX_ROWS` rows where there are more.

    Returns:
        `out_dir`.

    Raises:
        InputError: fewer than two languages, or languages that share too few rows.
    """
    recipe = recipe or NgramRecipe()
    keys = sorted(parallel)
    chosen = derive_rng(seed, "encoder-rows").permutation(len(keys))[:MAX_ROWS]
    rows = usable_rows({keys[index]: parallel[keys[index]] for index in sorted(chosen.tolist())})
    table = fit_table(rows, recipe)
    save_encoder(HashedNgrams(torch.from_numpy(table)), out_dir)
    return out_dir


def fit_table(rows: Mapping[str, Mapping[str, str]], recipe: NgramRecipe) -> NDArray[np.float32]:
    """Return the (2^bits, dim) vectors of n-grams, root mean square length of used ones 1.

    Args:
        rows: Language → parallel id → text.
        recipe: Sizes.
    """
    keys = sorted({key for texts in rows.values() for key in texts})
    position = {key: index for index, key in enumerate(keys)}
    languages = [_count(texts, position, recipe.n_bits) for texts in rows.values()]
    total = np.sum([language.frequency for language in languages], axis=0)
    idf = [_idf(language, total) for language in languages]
    texts = [
        normalize(language.counts @ diags(weights))
        for language, weights in zip(languages, idf, strict=True)
    ]
    kernels = [_centred((matrix @ matrix.T).toarray()) for matrix in texts]
    places = _places(languages, kernels, len(keys), recipe)
    table = np.zeros((1 << recipe.n_bits, places.shape[1]))
    for language, weights, matrix, kernel in zip(languages, idf, texts, kernels, strict=True):
        share = language.frequency / np.maximum(total, 1)
        used = np.flatnonzero(language.frequency)
        own = matrix.T.tocsr()[used] @ _dual(kernel, places[language.keys], recipe.ridge)
        table[used] += (share * weights)[used, None] * own
    _take_off_means(table, languages, total)
    size = np.sqrt((table[total > 0] ** 2).sum(axis=1).mean())
    return np.asarray(table / max(size, 1e-12), dtype=np.float32)


def _count(texts: Mapping[str, str], position: Mapping[str, int], n_bits: int) -> _Language:
    counts = ngram_matrix(list(texts.values()), n_bits)
    frequency = np.bincount(counts.indices, minlength=1 << n_bits)
    return _Language(counts, frequency, np.array([position[key] for key in texts]))


def _idf(language: _Language, total: NDArray[np.int64]) -> Floats:
    """Return the weight of each bucket in one language; those of a single text say nothing."""
    n_rows = language.counts.shape[0]
    weights: Floats = np.where(total >= _MIN_TEXTS, np.log1p(n_rows / (1 + language.frequency)), 0)
    return weights


def _centred(kernel: Floats) -> Floats:
    kernel = kernel - kernel.mean(axis=0)
    centred: Floats = kernel - kernel.mean(axis=1, keepdims=True)
    return centred


def _places(
    languages: Sequence[_Language], kernels: Sequence[Floats], n_rows: int, recipe: NgramRecipe
) -> Floats:
    """Return (n_rows, dim) leading eigenvectors of the languages' kernels added up, scaled."""
    shared = np.zeros((n_rows, n_rows))
    for language, kernel in zip(languages, kernels, strict=True):
        shared[np.ix_(language.keys, language.keys)] += kernel
    rank = min(recipe.dim, n_rows - 1)
    values, vectors = eigh(shared, subset_by_index=[n_rows - rank, n_rows - 1])
    scale = np.maximum(values[::-1] / max(values[-1], 1e-12), 0.0) ** recipe.spectrum
    places = np.zeros((n_rows, recipe.dim))
    places[:, :rank] = vectors[:, ::-1] * scale
    return places


def _dual(kernel: Floats, places: Floats, ridge: float) -> Floats:
    """Return (n, dim) dual weights of centred ridge regression of `places` on texts."""
    dual = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), places - places.mean(axis=0))
    weights: Floats = dual - dual.mean(axis=0)
    return weights


def _take_off_means(
    table: Floats, languages: Sequence[_Language], total: NDArray[np.int64]
) -> None:
    """Subtract from each bucket, in place, the mixture of its languages' means per n-gram."""
    means = [
        np.asarray((language.counts @ table).sum(axis=0)) / language.counts.sum()
        for language in languages
    ]
    for language, mean in zip(languages, means, strict=True):
        used = np.flatnonzero(language.frequency)
        table[used] -= (language.frequency[used] / total[used])[:, None] * mean

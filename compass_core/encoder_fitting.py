"""Fit a small multilingual encoder on parallel rows, offline, in minutes on a CPU.

The encoder is a table of token vectors whose mean, scaled to unit length, embeds a text.  It comes
from cross-lingual latent semantic indexing (see `latent_token_vectors`) and may be refined so that
translations of one row are nearer than other rows of the same language.  What it costs: no word
order and no context; a pretrained encoder is better wherever one can be had.  It is saved in the
standard sentence-transformers format, safetensors only.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse import csr_matrix
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.preprocessing import normalize
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional

from compass_core.errors import InputError
from compass_core.seeding import derive_rng

logger = logging.getLogger(__name__)

ParallelTexts = Mapping[str, Mapping[str, str]]
"""parallel id → language → text."""

MIN_SHARED_ROWS = 16
"""Languages sharing fewer rows than this with any other teach nothing and are refused."""

MIN_CANDIDATES = 200
"""Translations a retrieval must choose from before its figure is counted."""

MAX_LATENT_ROWS = 3_000
"""Rows the latent start is computed from; the refinement sees all."""

FIRST_BATCH_SHARE = 0.05
"""Share of steps over which the learning rate rises."""


class TextEncoder(Protocol):
    """What measuring needs of an encoder; a `SentenceTransformer` has it."""

    def encode(self, sentences: list[str], **options: Any) -> Any:
        """Return one vector per text."""


@dataclass(frozen=True, slots=True)
class EncoderRecipe:
    """How an encoder is fitted; the defaults suit about a thousand sentences per language.

    Attributes:
        dim: Length of an embedding.
        vocab_size: Tokens kept; a table row each.
        n_steps: Contrastive steps after the start; 0 leaves the start as it is, which is best
            for a thousand rows.
        batch_size: Pairs per step; the other rows of the batch are the negatives.
        learning_rate: Of Adam; falls linearly to a fiftieth.
        temperature: Divides cosine similarities; lower separates near neighbours more.
        token_dropout: Share of tokens hidden from a text in training, in [0, 1).
        start: "lsi" or "random"; random needs many more steps and rows.
        group_weight: Share of the target given to rows of the same group, in [0, 1).
    """

    dim: int = 256
    vocab_size: int = 30_000
    n_steps: int = 0
    batch_size: int = 256
    learning_rate: float = 3e-3
    temperature: float = 0.1
    token_dropout: float = 0.3
    start: str = "lsi"
    group_weight: float = 0.0


def fit_encoder(
    parallel: ParallelTexts,
    out_dir: Path,
    *,
    recipe: EncoderRecipe | None = None,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """Fit an encoder on translations and save it as a sentence-transformers folder.

    Args:
        parallel: Rows to fit on; keep rows you want to measure on out of it.
        out_dir: Folder to create or replace.
        recipe: Sizes and schedule; default `EncoderRecipe()`.
        groups: Weak labels by parallel id (a list or section the row comes from); rows of one
            group attract each other by `EncoderRecipe.group_weight`.
        seed: Of start, pairs and token dropout.

    Returns:
        `out_dir`, loadable by ``SentenceTransformer(str(out_dir))``.

    Raises:
        InputError: Fewer than two languages, or languages that share too few rows.
    """
    recipe = recipe or EncoderRecipe()
    rows = usable_rows(parallel)
    tokenizer = _train_tokenizer(rows, recipe.vocab_size)
    tokens = _tokenize(tokenizer, rows)
    n_tokens = tokenizer.get_vocab_size()
    if recipe.start == "lsi":
        table = latent_token_vectors(_fit_sample(tokens, seed), n_tokens, recipe.dim)
    else:
        rng = derive_rng(seed, "encoder-start")
        table = 0.1 * rng.standard_normal((n_tokens, recipe.dim))
    weights = torch.tensor(table, dtype=torch.float32)
    weights = _refine(weights, tokens, recipe, groups or {}, seed)
    _save(tokenizer, weights, out_dir)
    return out_dir


def latent_token_vectors(
    tokens: Mapping[str, Mapping[str, Sequence[int]]],
    n_tokens: int,
    dim: int,
    *,
    ridge: float = 1.0,
) -> NDArray[np.float64]:
    """Return token vectors that predict a row's place in the space its translations share.

    Latent semantic indexing of rows with all their translations gives each row its coordinates;
    per language, ridge regression then maps a text's centred tf-idf vector onto them.  A token of
    several languages gets the mixture of their maps, in proportion to where it occurs, and loses
    the same mixture of the languages' means, so that a text's mean over tokens is centred without
    its language being known.

    Args:
        tokens: Language → parallel id → token ids.
        n_tokens: Size of the vocabulary.
        dim: Length of a vector; the rest is zero where there are fewer rows.
        ridge: Penalty relative to unit-length texts, > 0; higher trusts rare tokens less.

    Returns:
        (n_tokens, dim) vectors, root mean square length 1.
    """
    keys = sorted({key for rows in tokens.values() for key in rows})
    position = {key: index for index, key in enumerate(keys)}
    counts = [_count_matrix(list(rows.values()), n_tokens) for rows in tokens.values()]
    frequency = np.stack([np.asarray((matrix > 0).sum(axis=0))[0] for matrix in counts])
    n_texts = sum(len(rows) for rows in tokens.values())
    idf = np.log(1 + n_texts / (1 + frequency.sum(axis=0)))
    texts = [normalize(matrix.multiply(idf).tocsr()) for matrix in counts]
    row_ids = [[position[key] for key in rows] for rows in tokens.values()]
    places = _latent_places(texts, row_ids, len(keys), dim)
    origin = frequency / np.maximum(frequency.sum(axis=0), 1)
    vectors = np.zeros((n_tokens, dim))
    for share, matrix, ids in zip(origin, texts, row_ids, strict=True):
        vectors += share[:, None] * _ridge_map(matrix, places[ids], ridge)
    vectors *= idf[:, None]
    means = np.stack(
        [np.asarray((matrix @ vectors).sum(axis=0)) / matrix.sum() for matrix in counts]
    )
    vectors -= origin.T @ means
    return np.asarray(vectors / np.sqrt((vectors**2).sum(axis=1).mean()))


def _fit_sample(
    tokens: Mapping[str, Mapping[str, Sequence[int]]], seed: int
) -> dict[str, dict[str, Sequence[int]]]:
    """Return the tokens of at most `MAX_LATENT_ROWS` rows; kernels grow with their square."""
    keys = sorted({key for rows in tokens.values() for key in rows})
    order = derive_rng(seed, "encoder-rows").permutation(len(keys))[:MAX_LATENT_ROWS]
    kept = {keys[index] for index in order}
    sample = {
        code: {key: ids for key, ids in rows.items() if key in kept}
        for code, rows in tokens.items()
    }
    return {code: rows for code, rows in sample.items() if rows}


def _count_matrix(texts: Sequence[Sequence[int]], n_tokens: int) -> csr_matrix:
    """Return (texts, tokens) counts."""
    rows = np.repeat(np.arange(len(texts)), [len(ids) for ids in texts])
    columns = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in texts])
    return csr_matrix((np.ones(len(columns)), (rows, columns)), shape=(len(texts), n_tokens))


def _latent_places(
    texts: Sequence[csr_matrix], row_ids: Sequence[Sequence[int]], n_rows: int, dim: int
) -> NDArray[np.float64]:
    """Return (n_rows, dim) left singular vectors of all languages' tf-idf vectors side by side.

    They are the eigenvectors of the sum of the languages' kernels, which is far smaller.
    """
    kernel = np.zeros((n_rows, n_rows))
    for text, ids in zip(texts, row_ids, strict=True):
        kernel[np.ix_(ids, ids)] += (text @ text.T).toarray()
    rank = min(dim + 1, n_rows - 1)
    _, left = eigh(kernel, subset_by_index=[n_rows - rank, n_rows - 1])
    places = np.zeros((n_rows, dim))
    # Ascending order: the last direction is what all rows have in common, and is left out.
    places[:, : rank - 1] = left[:, -2::-1]
    return places


def _ridge_map(texts: csr_matrix, places: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Return (tokens, dim) weights of centred ridge regression of places on texts, dual form."""
    kernel = (texts @ texts.T).toarray()
    kernel -= kernel.mean(axis=0)
    kernel -= kernel.mean(axis=1, keepdims=True)
    kernel[np.diag_indices(len(kernel))] += ridge
    dual = np.linalg.solve(kernel, places - places.mean(axis=0))
    return np.asarray(texts.T @ (dual - dual.mean(axis=0)))


def measure_encoder(
    encoder: TextEncoder,
    parallel: ParallelTexts,
    topics: Mapping[str, str],
    *,
    n_clusters: int | None = None,
    centre_languages: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Measure how well an encoder puts meaning before language.

    Args:
        encoder: Encoder to measure.
        parallel: Rows it was not fitted on.
        topics: Topic of each parallel id.
        n_clusters: Clusters of the k-means; default the number of topics.
        centre_languages: Remove each language's mean first.
        seed: Of the k-means.

    Returns:
        ``retrieval_at_1`` (mean over ordered language pairs with at least 200 shared rows),
        ``n_candidates`` (their mean number), ``nmi_topic`` and ``nmi_language`` of the clusters.

    Raises:
        InputError: No two languages share 200 rows.
    """
    vectors = _embed_languages(encoder, parallel, centre_languages=centre_languages)
    hits, sizes = [], []
    for source, source_rows in vectors.items():
        for target, target_rows in vectors.items():
            shared = [key for key in source_rows if key in target_rows]
            if source == target or len(shared) < MIN_CANDIDATES:
                continue
            left = np.stack([source_rows[key] for key in shared])
            right = np.stack([target_rows[key] for key in shared])
            hits.append(np.mean((left @ right.T).argmax(axis=1) == np.arange(len(shared))))
            sizes.append(len(shared))
    if not hits:
        raise InputError(
            f"Cannot measure retrieval: no two languages share {MIN_CANDIDATES} rows. "
            "Give more parallel rows."
        )
    flat = [(topics[key], language) for language, rows in vectors.items() for key in rows]
    stacked = np.concatenate([np.stack(list(rows.values())) for rows in vectors.values()])
    k = n_clusters or len(set(topics.values()))
    ids = KMeans(k, n_init=4, random_state=seed).fit_predict(stacked)
    return {
        "retrieval_at_1": float(np.mean(hits)),
        "n_candidates": float(np.mean(sizes)),
        "nmi_topic": float(normalized_mutual_info_score([topic for topic, _ in flat], ids)),
        "nmi_language": float(normalized_mutual_info_score([code for _, code in flat], ids)),
    }


def usable_rows(parallel: ParallelTexts) -> dict[str, dict[str, str]]:
    """Return language → parallel id → text of rows that have a translation.

    Raises:
        InputError: fewer than two languages, or languages that share too few rows.
    """
    rows: dict[str, dict[str, str]] = {}
    for key in sorted(parallel):
        texts = {code: text for code, text in parallel[key].items() if text.strip()}
        if len(texts) > 1:
            for code in sorted(texts):
                rows.setdefault(code, {})[key] = texts[code]
    if len(rows) < 2:
        raise InputError(
            f"Cannot fit an encoder on {len(rows)} language(s) with translations. Give rows of at "
            "least two languages that share their parallel_id."
        )
    thin = [code for code, texts in rows.items() if len(texts) < MIN_SHARED_ROWS]
    if thin:
        raise InputError(
            f"Cannot fit an encoder: {', '.join(sorted(thin)[:5])} have fewer than "
            f"{MIN_SHARED_ROWS} rows with a translation. Leave these languages out or add rows."
        )
    return dict(sorted(rows.items()))


def _train_tokenizer(rows: Mapping[str, Mapping[str, str]], vocab_size: int) -> Tokenizer:
    """Train a BPE tokenizer on lower-cased text in decomposed form, so accents stand apart."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    texts = [text for texts in rows.values() for text in texts.values()]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _tokenize(
    tokenizer: Tokenizer, rows: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, list[int]]]:
    tokens: dict[str, dict[str, list[int]]] = {}
    for code, texts in rows.items():
        encoded = tokenizer.encode_batch(list(texts.values()))
        tokens[code] = {
            key: entry.ids for key, entry in zip(texts, encoded, strict=True) if entry.ids
        }
    return tokens


def _refine(
    weights: torch.Tensor,
    tokens: Mapping[str, Mapping[str, Sequence[int]]],
    recipe: EncoderRecipe,
    groups: Mapping[str, str],
    seed: int,
) -> torch.Tensor:
    """Pull translations together by a symmetric softmax over the rows of one language pair.

    Both sides of a step hold one language each, so the language itself never helps to tell rows
    apart and is not learned.
    """
    rng = derive_rng(seed, "encoder-pairs")
    table = torch.nn.EmbeddingBag.from_pretrained(weights.clone(), freeze=False, mode="mean")
    optimizer = torch.optim.AdamW(table.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    languages = sorted(tokens)
    warm_up = max(1, int(FIRST_BATCH_SHARE * recipe.n_steps))
    for step in range(recipe.n_steps):
        first, second = rng.choice(len(languages), size=2, replace=False)
        left, right = tokens[languages[first]], tokens[languages[second]]
        shared = [key for key in left if key in right]
        if len(shared) < 2:
            continue
        keys = [shared[index] for index in rng.permutation(len(shared))[: recipe.batch_size]]
        a = _embed_ids(table, [left[key] for key in keys], recipe.token_dropout, rng)
        b = _embed_ids(table, [right[key] for key in keys], recipe.token_dropout, rng)
        scores = a @ b.T / recipe.temperature
        gold = _targets(keys, groups, recipe.group_weight)
        loss = functional.cross_entropy(scores, gold) + functional.cross_entropy(scores.T, gold)
        rate = min((step + 1) / warm_up, max(0.02, 1 - step / recipe.n_steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(table.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            logger.info("encoder step %d of %d: loss %.3f", step, recipe.n_steps, loss.item() / 2)
    return table.weight.detach()


def _targets(keys: Sequence[str], groups: Mapping[str, str], group_weight: float) -> torch.Tensor:
    """Return (n, n) target shares: the translation, and a little to rows of the same group."""
    exact = torch.eye(len(keys))
    if not groups or group_weight == 0:
        return exact
    ids = {name: index for index, name in enumerate(sorted(set(groups.values())))}
    labels = torch.tensor([ids[groups[key]] for key in keys])
    same = (labels[:, None] == labels[None, :]).float()
    return (1 - group_weight) * exact + group_weight * same / same.sum(dim=1, keepdim=True)


def _embed_ids(
    table: torch.nn.EmbeddingBag,
    texts: Sequence[Sequence[int]],
    dropout: float,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Return (n, dim) unit vectors of token lists, hiding a share of the tokens."""
    lengths = np.array([len(ids) for ids in texts])
    flat = np.concatenate([np.asarray(ids) for ids in texts])
    owner = np.repeat(np.arange(len(texts)), lengths)
    kept = rng.random(len(flat)) >= dropout
    # A text that would lose all its tokens keeps its first one.
    kept[np.concatenate([[0], np.cumsum(lengths)[:-1]])] |= (
        np.bincount(owner[kept], minlength=len(texts)) == 0
    )
    counts = np.bincount(owner[kept], minlength=len(texts))
    offsets = np.concatenate([[0], np.cumsum(counts)[:-1]])
    pooled = table(torch.from_numpy(flat[kept]), torch.from_numpy(offsets))
    return functional.normalize(pooled, dim=-1)


def _embed_languages(
    encoder: TextEncoder, parallel: ParallelTexts, *, centre_languages: bool
) -> dict[str, dict[str, NDArray[np.float32]]]:
    texts: dict[str, dict[str, str]] = {}
    for key, translations in parallel.items():
        for code, text in translations.items():
            texts.setdefault(code, {})[key] = text
    vectors = {}
    for code, rows in sorted(texts.items()):
        matrix = np.asarray(
            encoder.encode(list(rows.values()), batch_size=256, show_progress_bar=False),
            dtype=np.float32,
        )
        if centre_languages:
            matrix = matrix - matrix.mean(axis=0)
        matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-9)
        vectors[code] = dict(zip(rows, matrix, strict=True))
    return vectors


def _save(tokenizer: Tokenizer, weights: torch.Tensor, out_dir: Path) -> None:
    save_encoder(StaticEmbedding(tokenizer, embedding_weights=weights), out_dir)


def save_encoder(module: Any, out_dir: Path) -> None:
    """Write `module`, followed by scaling to unit length, as a sentence-transformers folder.

    It is written beside its place and renamed there.
    """
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = out_dir.with_name(out_dir.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model = SentenceTransformer(modules=[module, Normalize()], device="cpu")
    model.save(str(temporary), create_model_card=False)
    for file in temporary.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files only their owner can read
    shutil.rmtree(out_dir, ignore_errors=True)
    temporary.rename(out_dir)

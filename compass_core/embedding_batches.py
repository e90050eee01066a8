"""Texts to unit vectors, fast: little padding, each distinct text once, the model's own modules.

Texts are tokenised in blocks of like length, the next block while the present one is computed.
Inside a block they are ordered by their number of tokens, which characters tell badly across
scripts, and cut into batches of about equal numbers of tokens. What enters the model is what its
own `preprocess` made, less columns that are padding in the whole batch; so masks, prompts, pooling
and all later modules stay the model's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compass_core.embedding import Encoder
from compass_core.errors import DataError

if TYPE_CHECKING:
    import torch

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Features = dict[str, Any]

TOKENS_PER_TEXT = 64
"""Tokens that one text stands for in a batch size given in texts."""
_CPU_BATCH_TOKENS = 1024
"""More does not fit the caches: 512 to 1,024 were fastest, 8,192 a third slower."""
_BLOCK_TEXTS = 2048
_MAX_SHOWN = 5


def encode_texts(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    prefix: str = "",
    batch_size: int = 256,
    numbers: NDArray[np.int64] | None = None,
    on_block: Callable[[int], None] | None = None,
) -> Vectors:
    """Return unit-norm vectors of `texts`, in their order.

    Equal texts are encoded once. A vector depends on its own text alone, but for rounding.

    Args:
        encoder: from `load_encoder`.
        texts: (N,) texts.
        prefix: put before every text (``query: `` for the e5 family); empty uses the model's own
            default prompt, if it has one.
        batch_size: texts per batch, counted as `TOKENS_PER_TEXT` tokens each: a batch holds more
            short or fewer long texts. On a CPU a smaller number of tokens is never exceeded.
        numbers: (N,) what to call the texts in an error; their positions if None.
        on_block: called with the number of distinct texts done, now and then.

    Returns:
        (N, d) float32.

    Raises:
        DataError: a text has no usable vector (nothing the tokenizer knows, or not finite).
    """
    if len(texts) == 0:
        return np.zeros((0, encoder.dimension), dtype=np.float32)
    place: dict[str, int] = {}
    inverse = np.array([place.setdefault(text, len(place)) for text in texts], dtype=np.int64)
    distinct = list(place)
    tokens = batch_size * TOKENS_PER_TEXT
    if encoder.device.startswith("cpu"):
        tokens = min(tokens, _CPU_BATCH_TOKENS)
    vectors = np.empty((len(distinct), encoder.dimension), dtype=np.float32)
    done = 0
    for rows, features in _tokenised_blocks(encoder, distinct, prefix or encoder.prompt):
        vectors[rows] = _encode_block(encoder, features, tokens)
        done += len(rows)
        if on_block is not None:
            on_block(done)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    _refuse_unusable(norms[:, 0], inverse, encoder.name, numbers)
    vectors /= norms
    return vectors if len(distinct) == len(texts) else vectors[inverse]


def _tokenised_blocks(
    encoder: Encoder, texts: list[str], prompt: str
) -> Iterator[tuple[Rows, Features]]:
    """Yield the rows and features of one block after the other, long texts first."""
    # Bytes follow the number of tokens more closely across scripts than characters do.
    sizes = np.array([len(text.encode()) for text in texts])
    by_size = np.argsort(-sizes, kind="stable")

    def tokenise(start: int) -> tuple[Rows, Features]:
        rows = by_size[start : start + _BLOCK_TEXTS]
        return rows, encoder.model.preprocess([texts[row] for row in rows], prompt=prompt or None)

    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as ahead:
        coming = ahead.submit(tokenise, 0)
        for start in range(_BLOCK_TEXTS, len(texts), _BLOCK_TEXTS):
            now, coming = coming, ahead.submit(tokenise, start)
            yield now.result()
        yield coming.result()


def _encode_block(encoder: Encoder, features: Features, batch_tokens: int) -> Vectors:
    """Return the vectors of one block, cut at d (a model may be told to), not yet of unit norm."""
    import torch

    with torch.inference_mode():
        order, batches = _batches(features, batch_tokens)
        made = [
            encoder.model(_to(batch, encoder.device))["sentence_embedding"] for batch in batches
        ]
        # One transfer per block: every transfer waits for all the work queued on a GPU.
        found = torch.cat(made).float().cpu().numpy()[:, : encoder.dimension]
    if order is None:
        return found
    vectors = np.empty_like(found)
    vectors[order] = found
    return vectors


def _batches(features: Features, batch_tokens: int) -> tuple[Rows | None, Iterator[Features]]:
    """Return the order of the texts over all batches, and the batches.

    Features without a mask (of a static encoder) hold no padding and are one batch, in order.
    """
    mask: torch.Tensor | None = features.get("attention_mask")
    if mask is None:
        return None, iter([features])
    lengths = mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    widths = lengths[order].tolist()

    def cut() -> Iterator[Features]:
        start = 0
        while start < len(widths):
            rows = order[start : start + max(1, batch_tokens // max(1, widths[start]))]
            yield _take(features, rows, mask)
            start += len(rows)

    return order.numpy(), cut()


def _take(features: Features, rows: torch.Tensor, mask: torch.Tensor) -> Features:
    """Return the features of `rows` without the columns that are padding in all of them."""
    columns = mask[rows].any(dim=0)
    taken = dict(features)
    for name, value in features.items():
        if getattr(value, "shape", ())[:1] == mask.shape[:1]:
            taken[name] = value[rows]
            if value.shape == mask.shape:
                taken[name] = taken[name][:, columns]
    return taken


def _to(features: Features, device: str) -> Features:
    return {
        name: value.to(device) if hasattr(value, "to") else value
        for name, value in features.items()
    }


def _refuse_unusable(
    norms: NDArray[np.float32], inverse: Rows, name: str, numbers: Rows | None
) -> None:
    usable = np.isfinite(norms) & (norms > 1e-6)
    if usable.all():
        return
    places = np.flatnonzero(~usable[inverse])
    rows = places if numbers is None else numbers[places]
    n_broken = int((~np.isfinite(norms[inverse])).sum())
    shown = ", ".join(str(row) for row in rows[:_MAX_SHOWN])
    more = f" and {len(rows) - _MAX_SHOWN} more" if len(rows) > _MAX_SHOWN else ""
    cause = (
        "not finite numbers: the weights or the half precision are at fault"
        if n_broken
        else "zero: these texts are empty or hold nothing the tokenizer knows"
    )
    raise DataError(
        f"The encoder {name} gives no usable vector for {len(rows)} texts (0-based rows "
        f"{shown}{more}). The vectors are {cause}. Remove these rows or use another encoder.",
        code="E30",
    )

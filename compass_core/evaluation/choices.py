"""Log-likelihoods of the choices of test items.

A choice's score is log P(choice | prompt), summed over the choice's tokens (the end of the turn is
not part of it). The prompt is computed once per item: its choices hang on it as branches, each
seeing the prompt and itself only. Choices of one token need no branch at all. Architectures whose
attention cannot take such a mask fall back to one row per distinct beginning of a choice, and every
scoring run proves the branches against those rows on its first items.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from compass_core.adaptation.forward import causal_model, logits_at
from compass_core.adaptation.rendering import encode_prompts, encode_responses
from compass_core.errors import DataError, bounded_list
from compass_core.records import Example

logger = logging.getLogger(__name__)

Normalise = Literal["none", "tokens", "bytes"]
OnProgress = Callable[[int, int], None]
"""(items done, items in total)."""

_PROOF_ITEMS = 4
_PROOF_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_LOOSE_TOLERANCE = 0.2
_MAX_LOGITS = 1 << 28


# --------------------------------------------------------------------------- layout
@dataclass(frozen=True)
class _Item:
    """A test item as tokens."""

    prompt: list[int]
    choices: list[list[int]]


@dataclass(frozen=True)
class _Row:
    """One row of a forward pass: a prompt, and branches that hang on its end.

    Attributes:
        ids: Tokens of the prompt and of all branches, one after the other.
        branch: (T,) 0 for the prompt, else the number of the branch.
        depth: (T,) position of each token in its own text.
        lookups: (choice, index into `ids`, token): the choice's token is predicted at the index.
        item: Item the row belongs to.
    """

    ids: list[int]
    branch: list[int]
    depth: list[int]
    lookups: list[tuple[int, int, int]]
    item: int


def _branched(item: _Item, number: int) -> list[_Row]:
    """Return the one row of `item` with all its choices as branches."""
    n_prompt = len(item.prompt)
    ids, branch, depth = list(item.prompt), [0] * n_prompt, list(range(n_prompt))
    lookups = []
    for choice, tokens in enumerate(item.choices):
        start = len(ids)
        ids.extend(tokens[:-1])
        branch.extend([choice + 1] * (len(tokens) - 1))
        depth.extend(range(n_prompt, n_prompt + len(tokens) - 1))
        for place, token in enumerate(tokens):
            lookups.append((choice, n_prompt - 1 if place == 0 else start + place - 1, token))
    return [_Row(ids, branch, depth, lookups, number)]


def _unrolled(item: _Item, number: int) -> list[_Row]:
    """Return one plain row per distinct input; a choice that continues another shares its row."""
    rows: list[_Row] = []
    n_prompt = len(item.prompt)
    for choice in sorted(range(len(item.choices)), key=lambda c: -len(item.choices[c])):
        tokens = item.choices[choice]
        ids = [*item.prompt, *tokens[:-1]]
        row = next((r for r in rows if r.ids[: len(ids)] == ids), None)
        if row is None:
            row = _Row(ids, [0] * len(ids), list(range(len(ids))), [], number)
            rows.append(row)
        row.lookups.extend((choice, n_prompt - 1 + k, token) for k, token in enumerate(tokens))
    return rows


def _batches(rows: Sequence[_Row], batch_tokens: int, vocab_size: int) -> Iterator[list[_Row]]:
    """Yield rows, longest first, in batches bounded by padded tokens and by logits."""
    ordered = sorted(rows, key=lambda row: -len(row.ids))
    batch: list[_Row] = []
    n_logits = 0
    for row in ordered:
        width = len(batch[0].ids) if batch else len(row.ids)
        full = (len(batch) + 1) * width > batch_tokens
        if batch and (full or n_logits + len(row.lookups) * vocab_size > _MAX_LOGITS):
            yield batch
            batch, n_logits = [], 0
        batch.append(row)
        n_logits += len(row.lookups) * vocab_size
    if batch:
        yield batch


# --------------------------------------------------------------------------- forward
def _score_rows(model: Any, rows: Sequence[_Row], pad_id: int) -> list[list[tuple[int, float]]]:
    """Return, per row, (choice, log-probability) of every looked-up token."""
    width = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    places: list[int] = []
    index: list[int] = []
    tokens: list[int] = []
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = row.ids
        # Choices that begin alike ask at the same place: the head is computed there once.
        seen: dict[int, int] = {}
        for _, place, token in row.lookups:
            if place not in seen:
                seen[place] = len(places)
                places.append(number * width + place)
            index.append(seen[place])
            tokens.append(token)
    device = model.device
    inputs = _branch_inputs(rows, width, model) if any(max(r.branch) for r in rows) else {}
    with torch.inference_mode():
        logits = logits_at(
            model,
            torch.from_numpy(ids).to(device),
            torch.tensor(places, device=device),
            **inputs,
        ).float()
        asked = torch.tensor(index, device=device)
        chosen = logits[asked, torch.tensor(tokens, device=device)]
        values = (chosen - torch.logsumexp(logits, dim=-1)[asked]).double().cpu().tolist()
    result: list[list[tuple[int, float]]] = []
    start = 0
    for row in rows:
        pairs = zip(row.lookups, values[start : start + len(row.lookups)], strict=True)
        result.append([(choice, value) for (choice, _, _), value in pairs])
        start += len(row.lookups)
    return result


def _branch_inputs(rows: Sequence[_Row], width: int, model: Any) -> dict[str, torch.Tensor]:
    """Return the mask (B, 1, T, T) and positions (B, T) that keep branches apart."""
    branch = np.zeros((len(rows), width), dtype=np.int64)
    depth = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        branch[number, : len(row.ids)] = row.branch
        branch[number, len(row.ids) :] = -1
        depth[number, : len(row.ids)] = row.depth
    own = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    seen = torch.from_numpy(own & np.tril(np.ones((width, width), dtype=bool)))
    dtype = model.dtype
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return {
        "attention_mask": mask[:, None].to(model.device),
        "position_ids": torch.from_numpy(depth).to(model.device),
    }


def _takes_branches(model: Any) -> bool:
    """Whether the architecture is known to use a mask as given, at every distance."""
    config = causal_model(model).config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    attention = getattr(config, "_attn_implementation", "")
    return (
        set(kinds) == {"full_attention"}
        and not getattr(config, "sliding_window", None)
        and attention in ("sdpa", "eager")
    )


def _logliks(
    model: Any,
    items: Sequence[_Item],
    layout: Callable[[_Item, int], list[_Row]],
    *,
    pad_id: int,
    batch_tokens: int,
    on_progress: OnProgress | None = None,
) -> list[list[float]]:
    """Return the summed log-probability of every choice of every item."""
    sums = [[0.0] * len(item.choices) for item in items]
    rows = [row for number, item in enumerate(items) for row in layout(item, number)]
    vocab_size = int(causal_model(model).config.get_text_config().vocab_size)
    done = 0
    for batch in _batches(rows, batch_tokens, vocab_size):
        for row, scores in zip(batch, _score_rows(model, batch, pad_id), strict=True):
            for choice, value in scores:
                sums[row.item][choice] += value
        done += len(batch)
        if on_progress is not None:
            on_progress(done * len(items) // len(rows), len(items))
    return sums


def _branches_agree(model: Any, items: Sequence[_Item], pad_id: int) -> bool:
    """Score a few items both ways and compare."""
    probe = [item for item in items if max(map(len, item.choices)) > 1][:_PROOF_ITEMS]
    if not probe:
        return True
    slow = _logliks(model, probe, _unrolled, pad_id=pad_id, batch_tokens=1)
    fast = _logliks(model, probe, _branched, pad_id=pad_id, batch_tokens=1)
    gap = max(
        abs(a - b) for x, y in zip(slow, fast, strict=True) for a, b in zip(x, y, strict=True)
    )
    tolerance = _PROOF_TOLERANCE.get(model.dtype, _LOOSE_TOLERANCE)
    if gap > tolerance:
        logger.info("Choices are scored one row each: branches differ by %.2g", gap)
    return gap <= tolerance


# --------------------------------------------------------------------------- choices
def _encode_items(items: Sequence[Example], tokenizer: Any, limit: int | None) -> list[_Item]:
    prompts = encode_prompts(items, tokenizer)
    flat = [choice for item in items for choice in item.choices]
    encoded = encode_responses(flat, tokenizer, ends=False)
    empty = [
        f"{item.id}: choice {number} of {len(item.choices)}"
        for item, start in zip(
            items, np.cumsum([0, *(len(i.choices) for i in items)]), strict=False
        )
        for number in range(len(item.choices))
        if not encoded[start + number]
    ]
    if empty:
        raise DataError(
            f"Choices without text cannot be scored:\n{bounded_list(empty)}\nFill them in.",
            code="E16",
        )
    result, start, n_cut = [], 0, 0
    for item, prompt in zip(items, prompts, strict=True):
        choices = encoded[start : start + len(item.choices)]
        start += len(item.choices)
        room = None if limit is None else max(1, limit - max(map(len, choices)) + 1)
        if room is not None and len(prompt) > room:
            prompt = prompt[-room:]  # noqa: PLW2901 - the end of a prompt holds the question
            n_cut += 1
        result.append(_Item(prompt, choices))
    if n_cut:
        logger.warning("%d of %d prompts were cut on the left to fit the model", n_cut, len(items))
    return result


def score_choices(
    model: Any,
    tokenizer: Any,
    items: Sequence[Example],
    *,
    batch_tokens: int = 16_384,
    normalise: Normalise = "none",
    on_progress: OnProgress | None = None,
) -> list[list[float]]:
    """Return log P(choice | prompt) in nats of every choice of every item.

    The result does not depend on `batch_tokens` beyond rounding (1e-4 in float32).

    Args:
        model: A causal LM or a peft model around one, in eval mode.
        tokenizer: Its tokenizer.
        items: Items with choices.
        batch_tokens: Padded tokens per forward pass.
        normalise: Divide by nothing, by the choice's tokens, or by its UTF-8 bytes.
        on_progress: Called after each forward pass.

    Raises:
        DataError: E16 an item without choices or with an empty choice.
    """
    if not items:
        return []
    lacking = [item.id for item in items if not item.choices]
    if lacking:
        raise DataError(
            f"Items without choices cannot be scored by choice:\n{bounded_list(lacking)}\n"
            "Give choices, or score them by generation.",
            code="E16",
        )
    positions = getattr(causal_model(model).config.get_text_config(), "max_position_embeddings", 0)
    encoded = _encode_items(items, tokenizer, positions or None)
    pad_id = int(tokenizer.pad_token_id)
    branches = _takes_branches(model) and _branches_agree(model, encoded, pad_id)
    sums = _logliks(
        model,
        encoded,
        _branched if branches else _unrolled,
        pad_id=pad_id,
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )
    return [
        [
            value / _length(normalise, tokens, text)
            for value, tokens, text in zip(values, item.choices, source.choices, strict=True)
        ]
        for values, item, source in zip(sums, encoded, items, strict=True)
    ]


def _length(normalise: Normalise, tokens: list[int], text: str) -> int:
    if normalise == "none":
        return 1
    return len(tokens) if normalise == "tokens" else len(text.encode())

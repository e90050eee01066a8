"""Scoring of test items: by log-likelihood of their choices, or by exact match of an answer.

Choices are scored in `compass_core.evaluation.choices`; items without choices are answered greedily
and compared after normalisation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from compass_core.adaptation.adapters import adapted
from compass_core.adaptation.bases import Base
from compass_core.adaptation.generation import generate_batch
from compass_core.adaptation.rendering import encode_prompts
from compass_core.config import EvaluationConfig
from compass_core.errors import DataError, bounded_list
from compass_core.evaluation.choices import OnProgress, score_choices
from compass_core.records import Example

__all__ = [
    "ITEM_SCHEMA",
    "answers_match",
    "check_items",
    "evaluate_items",
    "normalise_answer",
    "score_choices",
    "score_generations",
]

ITEM_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("predicted", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("logliks", pa.list_(pa.float64()), nullable=False),
        pa.field("n_choices", pa.int32(), nullable=False),
    ]
)
"""One row per test item; kind is ``choices`` or ``generation``."""


# --------------------------------------------------------------------------- generation
def normalise_answer(text: str) -> str:
    """Return `text` as compared: NFKC, case-folded, no punctuation at its ends, single spaces.

    Examples:
        >>> normalise_answer("  The  Answer. ")
        'the answer'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = re.sub(r"\s+", " ", folded).strip()
    while spaced and unicodedata.category(spaced[-1]).startswith("P"):
        spaced = spaced[:-1].rstrip()
    while spaced and unicodedata.category(spaced[0]).startswith("P"):
        spaced = spaced[1:].lstrip()
    return spaced


def answers_match(predicted: str, answer: str, *, rule: Literal["exact", "contains"]) -> bool:
    """Whether `predicted` answers with `answer`, both normalised; empty gold never matches.

    ``contains`` asks for the gold answer as whole words inside the prediction.

    Examples:
        >>> answers_match("It is Paris.", "paris", rule="contains")
        True
        >>> answers_match("It is Paris.", "paris", rule="exact")
        False
    """
    found, gold = normalise_answer(predicted), normalise_answer(answer)
    if not gold:
        return False
    return (
        found == gold
        if rule == "exact"
        else bool(re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", found))
    )


def score_generations(
    model: Any,
    tokenizer: Any,
    items: Sequence[Example],
    *,
    batch_tokens: int = 16_384,
    max_new_tokens: int = 64,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Return the greedy answer to every item, in order.

    Args:
        model: A causal LM or a peft model around one, in eval mode.
        tokenizer: Its tokenizer.
        items: Items with a prompt.
        batch_tokens: Padded tokens per batch, answers included.
        max_new_tokens: Tokens to generate at most.
        on_progress: Called after each batch.
    """
    prompts = encode_prompts(items, tokenizer)
    answers = [""] * len(items)
    order = sorted(range(len(items)), key=lambda number: -len(prompts[number]))
    start = 0
    while start < len(order):
        width = len(prompts[order[start]]) + max_new_tokens
        batch = order[start : start + max(1, batch_tokens // width)]
        texts = generate_batch(
            model, tokenizer, [prompts[number] for number in batch], max_new_tokens=max_new_tokens
        )
        for number, text in zip(batch, texts, strict=True):
            answers[number] = text.strip()
        start += len(batch)
        if on_progress is not None:
            on_progress(start, len(order))
    return answers


# --------------------------------------------------------------------------- items
def evaluate_items(
    base: Base,
    items: Sequence[Example],
    config: EvaluationConfig,
    adapter_folder: Path | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> pa.Table:
    """Score every item with the base, or with the adapter in `adapter_folder` on it.

    Items with choices are right when the gold choice has the highest score (ties: the first);
    the others when the greedy answer equals the gold `response` after `normalise_answer`.

    Returns:
        One row per item of `ITEM_SCHEMA`, in the order given.

    Raises:
        DataError: E03 no items, E16 an item without gold answer.
        ModelError: the adapter cannot be loaded, see `load_adapter`.
    """
    check_items(items)
    chosen = [item for item in items if item.choices]
    written = [item for item in items if not item.choices]
    with adapted(base, adapter_folder) as model:
        logliks = score_choices(
            model,
            base.tokenizer,
            chosen,
            batch_tokens=config.batch_tokens,
            normalise=config.normalise,
            on_progress=on_progress,
        )
        answers = score_generations(
            model,
            base.tokenizer,
            written,
            batch_tokens=config.batch_tokens,
            max_new_tokens=config.max_new_tokens,
            on_progress=on_progress,
        )
    scores, texts = iter(logliks), iter(answers)
    rows = [
        _choice_row(item, next(scores)) if item.choices else _generation_row(item, next(texts))
        for item in items
    ]
    return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)


def check_items(items: Sequence[Example]) -> None:
    """Refuse test items that cannot be scored.

    Raises:
        DataError: E03 no items; E16 items without a gold answer.
    """
    if not items:
        raise DataError("The test set has no items. Give at least one.", code="E03")
    lacking = [
        f"{item.id}: " + ("no valid answer_index" if item.choices else "no response to compare")
        for item in items
        if (
            item.answer_index is None or not 0 <= item.answer_index < len(item.choices)
            if item.choices
            else not item.response.strip()
        )
    ]
    if lacking:
        raise DataError(
            f"{len(lacking)} test items have no gold answer:\n{bounded_list(lacking)}\n"
            "Map the answer column (data.test.columns.answer) or remove them.",
            code="E16",
        )


def _choice_row(item: Example, logliks: list[float]) -> dict[str, Any]:
    assert item.answer_index is not None
    best = int(np.argmax(logliks))
    return {
        **_item_columns(item, "choices"),
        "correct": best == item.answer_index,
        "predicted": item.choices[best],
        "answer": item.choices[item.answer_index],
        "logliks": logliks,
    }


def _generation_row(item: Example, answer: str) -> dict[str, Any]:
    return {
        **_item_columns(item, "generation"),
        "correct": answers_match(answer, item.response, rule="exact"),
        "predicted": answer,
        "answer": item.response,
        "logliks": [],
    }


def _item_columns(item: Example, kind: str) -> dict[str, Any]:
    return {
        "id": item.id,
        "topic": item.topic,
        "language": item.language,
        "kind": kind,
        "n_choices": len(item.choices),
    }

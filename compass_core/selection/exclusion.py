"""Which pool rows may never be selected, whatever the strategy, and why.

Near-duplicates are not looked for here: only equal parallel ids and equal normalised texts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.selection.drawing import example_keys
from compass_core.selection.words import normalise

_SEPARATOR = "\x1f"


class Exclusions(NamedTuple):
    """Which rows may be used.

    Attributes:
        allowed: (N,) True where nothing speaks against the row.
        reasons: How many rows each reason removed; a row counts under its first reason.
    """

    allowed: NDArray[np.bool_]
    reasons: dict[str, int]


def forbidden_rows(
    pool: pa.Table,
    *,
    usage: pa.Table | None = None,
    test: pa.Table | None = None,
    coverage: pa.Table | None = None,
    licences: tuple[str, ...] = (),
) -> Exclusions:
    """Find the pool rows that repeat usage, test or coverage, each other, or lack a licence.

    A row is removed, in this order, when

    1. its `parallel_id` is that of a test item or a usage prompt (it is a translation of it);
    2. its prompt equals that of a test item or a usage prompt;
    3. its prompt and response equal those of a coverage row;
    4. its licence is not one of `licences` (where any are named);
    5. an earlier row of the pool has the same prompt and response, where "earlier" goes by a hash
       of the ids, so that no language is favoured and the order of the pool does not matter.

    Texts are compared in NFKC, case-folded, with white space collapsed.

    Args:
        pool: rows with ``id``, ``prompt``, ``response``, ``parallel_id`` and, where `licences` are
            named, ``licence``.
        usage: usage prompts (``prompt``, ``response``, ``parallel_id``).
        test: test items, the same columns.
        coverage: existing training rows (``prompt``, ``response``).
        licences: licences allowed; empty allows all.
    """
    prompts, pairs = _texts(pool)
    parallel = pool["parallel_id"].to_pylist()
    allowed = np.ones(pool.num_rows, dtype=np.bool_)
    reasons: dict[str, int] = {}

    def remove(reason: str, mask: list[bool]) -> None:
        nonlocal allowed
        hit = np.asarray(mask, dtype=np.bool_) & allowed
        reasons[reason] = int(hit.sum())
        allowed &= ~hit

    for role, table in (("test", test), ("usage", usage)):
        if table is not None:
            ids = set(table["parallel_id"].to_pylist()) - {"", None}
            remove(f"translation of {role}", [p in ids for p in parallel])
    for role, table in (("test", test), ("usage", usage)):
        if table is not None:
            texts = set(_texts(table)[0]) - {""}
            remove(f"same text as {role}", [p in texts for p in prompts])
    if coverage is not None:
        known = set(_texts(coverage)[1])
        remove("same text as coverage", [p in known for p in pairs])
    if licences:
        wanted = set(licences)
        remove("licence not allowed", [x not in wanted for x in pool["licence"].to_pylist()])
    remove("duplicate in pool", _repeats(pairs, pool["id"].to_pylist(), allowed))
    return Exclusions(allowed, reasons)


def _texts(table: pa.Table) -> tuple[list[str], list[str]]:
    """Return normalised prompts (the response of a plain-text row) and prompt-response pairs."""
    columns = table.select(["prompt", "response"]).to_pydict()
    prompts = [normalise(text) for text in columns["prompt"]]
    responses = [normalise(text) for text in columns["response"]]
    seen = [p or r for p, r in zip(prompts, responses, strict=True)]
    return seen, [p + _SEPARATOR + r for p, r in zip(prompts, responses, strict=True)]


def _repeats(pairs: list[str], ids: list[str], allowed: NDArray[np.bool_]) -> list[bool]:
    """Return which rows repeat an allowed row with a smaller key."""
    order = np.argsort(example_keys(ids), kind="stable")
    first: set[str] = set()
    repeated = [False] * len(pairs)
    for row in order[allowed[order]].tolist():
        repeated[row] = pairs[row] in first
        first.add(pairs[row])
    return repeated

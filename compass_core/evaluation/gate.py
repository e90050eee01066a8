"""The gate: a challenger replaces the champion only on evidence, never because its mean is higher.

Two conditions on the same items: the one-sided exact sign test finds more wins than losses at
`alpha`, and on the topics the training data already covered there is no significant loss (the same
test in the other direction). With 200 items and equal adapters "higher mean wins" promotes every
second time; this gate at most in `alpha` of the cases.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.config import PromotionConfig
from compass_core.errors import DataError
from compass_core.evaluation.comparison import sign_test_one_sided

_IDS_SHOWN = 5


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and why.

    Attributes:
        promote: Whether the challenger becomes champion.
        reasons: Sentences with the numbers behind the decision.
        n_items: Paired test items.
        wins: Items only the challenger answers.
        losses: Items only the champion answers.
        p_value: One-sided exact sign test of wins against losses.
        accuracy_before: The champion's share of right answers.
        accuracy_after: The challenger's.
        n_covered: Items on covered topics.
        covered_wins: Wins among them.
        covered_losses: Losses among them.
        covered_loss_p: One-sided exact sign test of covered losses against covered wins.
    """

    promote: bool
    reasons: tuple[str, ...]
    n_items: int
    wins: int
    losses: int
    p_value: float
    accuracy_before: float
    accuracy_after: float
    n_covered: int
    covered_wins: int
    covered_losses: int
    covered_loss_p: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "reasons": list(self.reasons)}


def decide(
    champion_items: pa.Table,
    challenger_items: pa.Table,
    covered: NDArray[np.bool_],
    config: PromotionConfig,
) -> Verdict:
    """Compare challenger and champion item by item.

    Args:
        champion_items: Columns ``id`` (string) and ``correct`` (bool), as `evaluate_items` gives.
        challenger_items: The same items, in any order.
        covered: (N,) whether the topic of each row of `champion_items` was covered before.
        config: Levels and minimum number of items.

    Raises:
        DataError: E48 no items; E17 an id twice; E47 the two tables hold different items or the
            mask is not as long.
    """
    ids, before, after = _pair(champion_items, challenger_items)
    mask = np.asarray(covered, dtype=np.bool_)
    if mask.shape != before.shape:
        raise DataError(
            f"The covered mask has shape {mask.shape} for {len(ids)} scored items. Build it from "
            "the same test set.",
            code="E47",
        )
    wins, losses = _wins_and_losses(before, after)
    covered_wins, covered_losses = _wins_and_losses(before[mask], after[mask])
    p_value = sign_test_one_sided(wins, losses)
    covered_loss_p = sign_test_one_sided(covered_losses, covered_wins)
    checks = [
        _enough_items(len(ids), config),
        _is_better(wins, losses, p_value, config),
        _keeps_covered(covered_wins, covered_losses, covered_loss_p, config),
    ]
    means = (
        f"Accuracy went from {before.mean():.1%} to {after.mean():.1%} on {len(ids)} paired items."
    )
    return Verdict(
        promote=all(passed for passed, _ in checks),
        reasons=(means, *(reason for _, reason in checks if reason)),
        n_items=len(ids),
        wins=wins,
        losses=losses,
        p_value=p_value,
        accuracy_before=float(before.mean()),
        accuracy_after=float(after.mean()),
        n_covered=int(mask.sum()),
        covered_wins=covered_wins,
        covered_losses=covered_losses,
        covered_loss_p=covered_loss_p,
    )


def _pair(
    champion: pa.Table, challenger: pa.Table
) -> tuple[list[str], NDArray[np.bool_], NDArray[np.bool_]]:
    before, after = _outcomes(champion, "champion"), _outcomes(challenger, "challenger")
    if set(before) != set(after):
        only = sorted(set(before) ^ set(after))
        raise DataError(
            f"Champion and challenger were scored on different items ({len(only)} differ, such as "
            f"{only[:_IDS_SHOWN]}). Score both on the same test set.",
            code="E47",
        )
    if not before:
        raise DataError("There are no scored items to compare. Give a test set.", code="E48")
    ids = list(before)
    return ids, np.array([before[i] for i in ids]), np.array([after[i] for i in ids])


def _outcomes(table: pa.Table, role: str) -> dict[str, bool]:
    ids = table.column("id").to_pylist()
    outcomes = dict(zip(ids, table.column("correct").to_pylist(), strict=True))
    if len(outcomes) != len(ids):
        doubled = sorted({item for item in ids if ids.count(item) > 1})
        raise DataError(
            f"Items of the {role} appear twice: {doubled[:_IDS_SHOWN]}. Ids must be unique.",
            code="E17",
        )
    return outcomes


def _wins_and_losses(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[int, int]:
    return int(np.sum(after & ~before)), int(np.sum(before & ~after))


def _enough_items(n_items: int, config: PromotionConfig) -> tuple[bool, str]:
    if n_items >= config.min_items:
        return True, ""
    return False, (
        f"Not promoted: {n_items} paired items are fewer than promotion.min_items="
        f"{config.min_items}. Add test items."
    )


def _is_better(wins: int, losses: int, p_value: float, config: PromotionConfig) -> tuple[bool, str]:
    counts = f"{wins} items won, {losses} lost (one-sided exact sign test p = {p_value:.3g}"
    if p_value <= config.alpha:
        return True, f"Better than the champion: {counts} <= {config.alpha:g})."
    return False, f"Not promoted, no significant gain: {counts}, needs <= {config.alpha:g})."


def _keeps_covered(
    wins: int, losses: int, p_value: float, config: PromotionConfig
) -> tuple[bool, str]:
    counts = (
        f"on covered topics {losses} items lost, {wins} won (one-sided exact sign test of a loss "
        f"p = {p_value:.3g}"
    )
    if p_value <= config.max_covered_loss_alpha:
        limit = config.max_covered_loss_alpha
        return False, f"Not promoted, significant loss: {counts} <= {limit:g})."
    return True, f"No significant loss: {counts})."

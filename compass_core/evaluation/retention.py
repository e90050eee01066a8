"""The gate of an update: better on the new slice, no worse on any older one nor in English.

A slice is a set of test items from one stage of an adapter's life. The new one must be won as the
main gate demands (`compass_core.evaluation.gate`). On every older slice, and on the retention set,
the same exact sign test looks the other way; Holm's correction over them keeps the chance of
refusing a harmless update at `max_loss_alpha` however many slices there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.config import PromotionConfig, UpdateConfig
from compass_core.errors import DataError
from compass_core.evaluation.comparison import holm, sign_test_one_sided

RETENTION = "retention"
"""Name of the retention set among the slices that must not be lost."""

Outcomes = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SliceResult:
    """Champion against challenger on one slice.

    Attributes:
        name: The slice.
        n_items: Items.
        wins: Items only the challenger answers.
        losses: Items only the champion answers.
        accuracy_before: The champion's share of right answers, in [0, 1].
        accuracy_after: The challenger's.
        p_value: One-sided exact sign test: of a gain on the new slice, of a loss on all others.
        p_corrected: After Holm's correction over the slices that must not be lost; the new slice's
            is not corrected.
    """

    name: str
    n_items: int
    wins: int
    losses: int
    accuracy_before: float
    accuracy_after: float
    p_value: float
    p_corrected: float

    @property
    def change(self) -> float:
        """Accuracy after minus before."""
        return self.accuracy_after - self.accuracy_before


@dataclass(frozen=True, slots=True)
class UpdateVerdict:
    """What the gate of an update decided, and why.

    Attributes:
        promote: Whether the challenger becomes champion.
        reasons: Sentences with the numbers behind the decision.
        new: The slice of the new usage.
        kept: Older slices, oldest first, and the retention set where there is one.
        forgetting: Mean over the older slices of accuracy before minus after; NaN without any.
    """

    promote: bool
    reasons: tuple[str, ...]
    new: SliceResult
    kept: tuple[SliceResult, ...]
    forgetting: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN as None."""
        return {
            "promote": self.promote,
            "reasons": list(self.reasons),
            "new": asdict(self.new),
            "kept": [asdict(result) for result in self.kept],
            "forgetting": None if np.isnan(self.forgetting) else self.forgetting,
            "n_items": self.new.n_items,
            "wins": self.new.wins,
            "losses": self.new.losses,
            "p_value": self.new.p_value,
            "accuracy_before": self.new.accuracy_before,
            "accuracy_after": self.new.accuracy_after,
        }


def decide_update(
    champion: pa.Table,
    challenger: pa.Table,
    slices: Mapping[str, frozenset[str]],
    new: str,
    promotion: PromotionConfig,
    update: UpdateConfig,
) -> UpdateVerdict:
    """Compare challenger and champion on every slice.

    Args:
        champion: Columns ``id`` (string) and ``correct`` (bool) over the items of all slices.
        challenger: The same items, in any order.
        slices: Ids of each slice's items, oldest slice first; `RETENTION` may be among them.
        new: Name of the slice that has to be won.
        promotion: Level of the gain, and how many items it needs.
        update: Level of a loss.

    Raises:
        DataError: E48 a slice has no items; E47 an item was not scored by both.
    """
    before, after = _outcomes(champion), _outcomes(challenger)
    results = {
        name: _compare(name, ids, before, after, gain=name == new) for name, ids in slices.items()
    }
    kept = [result for name, result in results.items() if name != new]
    corrected = holm([result.p_value for result in kept])
    kept = [_with(result, p) for result, p in zip(kept, corrected, strict=True)]
    won, told = _gained(results[new], promotion)
    lost = [result for result in kept if result.p_corrected <= update.max_loss_alpha]
    older = [result for result in kept if result.name != RETENTION]
    forgetting = -float(np.mean([r.change for r in older])) if older else float("nan")
    return UpdateVerdict(
        promote=won and not lost,
        reasons=(told, *_losses_told(kept, lost, forgetting, update)),
        new=results[new],
        kept=tuple(kept),
        forgetting=forgetting,
    )


def _outcomes(items: pa.Table) -> dict[str, bool]:
    ids = items.column("id").to_pylist()
    return dict(zip(ids, items.column("correct").to_pylist(), strict=True))


def _compare(
    name: str,
    ids: frozenset[str],
    before: Mapping[str, bool],
    after: Mapping[str, bool],
    *,
    gain: bool,
) -> SliceResult:
    if not ids:
        raise DataError(f"The slice {name} has no test items. Give test items.", code="E48")
    missing = sorted(ids - (before.keys() & after.keys()))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(ids)} items of the slice {name} were not scored by both "
            f"adapters, such as {missing[:3]}. Score both on the items of all slices.",
            code="E47",
        )
    ordered = sorted(ids)
    first = np.array([before[i] for i in ordered])
    second = np.array([after[i] for i in ordered])
    wins, losses = int(np.sum(second & ~first)), int(np.sum(first & ~second))
    p_value = sign_test_one_sided(wins, losses) if gain else sign_test_one_sided(losses, wins)
    return SliceResult(
        name=name,
        n_items=len(ordered),
        wins=wins,
        losses=losses,
        accuracy_before=float(first.mean()),
        accuracy_after=float(second.mean()),
        p_value=p_value,
        p_corrected=p_value,
    )


def _with(result: SliceResult, p_corrected: float) -> SliceResult:
    return SliceResult(**(asdict(result) | {"p_corrected": float(p_corrected)}))


def _gained(new: SliceResult, config: PromotionConfig) -> tuple[bool, str]:
    counts = (
        f"{new.accuracy_before:.1%} to {new.accuracy_after:.1%} on the {new.n_items} items of the "
        f"new usage: {new.wins} won, {new.losses} lost (one-sided exact sign test "
        f"p = {new.p_value:.3g}"
    )
    if new.n_items < config.min_items:
        needs = f"promotion.min_items={config.min_items}"
        return False, f"Not promoted, too few items: {counts}); {needs}. Add test items."
    if new.p_value > config.alpha:
        return False, f"Not promoted, no significant gain: {counts}, needs <= {config.alpha:g})."
    return True, f"Better on the new usage: {counts} <= {config.alpha:g})."


def _losses_told(
    kept: list[SliceResult], lost: list[SliceResult], forgetting: float, config: UpdateConfig
) -> list[str]:
    if not kept:
        return ["There is no older slice and no retention set, so forgetting was not tested."]
    told = [
        f"Not promoted, loss on {_called(r.name)}: {r.accuracy_before:.1%} to "
        f"{r.accuracy_after:.1%} ({r.losses} lost, {r.wins} won, p = {r.p_corrected:.3g} after "
        f"Holm <= {config.max_loss_alpha:g})."
        for r in lost
    ]
    if not lost:
        names = ", ".join(f"{_called(r.name)} {100 * r.change:+.1f}" for r in kept)
        told.append(f"No significant loss, in points: {names}.")
    if not np.isnan(forgetting):
        points = 100 * abs(forgetting)
        lost_or_won = (
            f"{points:.1f} points" if forgetting > 0 else f"none, they gained {points:.1f}"
        )
        told.append(f"Forgetting over the older slices: {lost_or_won}.")
    return told


def _called(name: str) -> str:
    return "the retention set" if name == RETENTION else f"slice {name}"

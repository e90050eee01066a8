"""From the alarms of single checks to a drift, for one language over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from compass_core.config import DriftConfig
from compass_core.monitoring.drift import Status


@dataclass(frozen=True, slots=True)
class Check:
    """What is remembered of one check.

    Attributes:
        start: Start of the window; checks are put in the order of their windows.
        status: insufficient, stable or alarm.
        p_value: Combined p-value; None where the window was insufficient.
        level: Level of the check.
        was_drift: Whether a drift was declared with it.
    """

    start: datetime
    status: Status
    p_value: float | None
    level: float
    was_drift: bool = False


@dataclass(frozen=True, slots=True)
class DriftDecision:
    """Whether the newest check makes a drift.

    Attributes:
        drift_detected: A drift is declared now.
        in_cooldown: A drift was declared so recently that none is declared again.
        n_consecutive: Alarms in a row up to now, since the last drift.
        reason: Why, in one sentence.
    """

    drift_detected: bool
    in_cooldown: bool
    n_consecutive: int
    reason: str


def decide_drift(checks: Sequence[Check], config: DriftConfig) -> DriftDecision:
    """Decide on the newest check of one language.

    A drift needs `consecutive` alarms in a row, or one where the level is spent over time. Alarms
    up to the last drift are used up. In the `cooldown` windows after a drift alarms count, but no
    drift is declared. Insufficient windows are as if they were not there: they neither count nor
    break a row, nor do they shorten the cool-down. Of two checks of one window the later given
    holds.

    Args:
        checks: History of the language, the newest window included; in any order.
        config: The rule.

    Examples:
        >>> from datetime import UTC
        >>> days = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2)]
        >>> alarms = [Check(day, "alarm", 0.001, 0.01) for day in days]
        >>> [decide_drift(alarms[:n], DriftConfig()).drift_detected for n in (1, 2)]
        [False, True]
    """
    ordered = [c for _, c in sorted({check.start: check for check in checks}.items())]
    if not ordered:
        return DriftDecision(False, False, 0, "There is no check yet.")
    newest, decided = ordered[-1], [c for c in ordered if c.status != "insufficient"]
    earlier = decided if newest.status == "insufficient" else decided[:-1]
    last = max((i for i, check in enumerate(earlier) if check.was_drift), default=None)
    since = decided if last is None else decided[last + 1 :]
    row = _row_length(since)
    in_cooldown = last is not None and len(since) <= config.cooldown
    needed = 1 if config.over_time == "spending" else config.consecutive
    if newest.status == "insufficient":
        return DriftDecision(False, in_cooldown, row, "The window is too small for a decision.")
    if newest.status == "stable":
        return DriftDecision(False, in_cooldown, 0, "The window shows no change.")
    if in_cooldown:
        reason = f"Window {len(since)} of {config.cooldown} after a drift: none is declared again."
        return DriftDecision(False, True, row, reason)
    if row < needed:
        return DriftDecision(False, False, row, f"Alarm {row} of {needed} in a row.")
    reason = f"{row} alarms in a row." if needed > 1 else "An alarm at the level of one check."
    return DriftDecision(True, False, row, reason)


def _row_length(checks: Sequence[Check]) -> int:
    """Return how many alarms end the sequence."""
    length = 0
    for check in reversed(checks):
        if check.status != "alarm":
            break
        length += 1
    return length

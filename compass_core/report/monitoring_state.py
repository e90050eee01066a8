"""The one word that says how a language is doing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from compass_core.report.monitoring_data import UpdatePoint, WatchedLanguage, WindowPoint

STATE_TEXT = {
    "unreadable": "✕ Unreadable",
    "drift": "◆ Drift",
    "updating": "↻ Update running",
    "update-failed": "✕ Update failed",
    "update-refused": "● Update refused",
    "alarm": "▲ Alarm",
    "insufficient": "○ Insufficient",
    "update-promoted": "✓ Update promoted",
    "stable": "= Stable",
    "no-window": "… No window yet",
    "no-champion": "○ No champion",
}
"""States from the one to look at first to the one that needs nothing."""

STATE_MEANING = {
    "unreadable": "what is on disk could not be read",
    "drift": "alarms in a row: usage has changed, and no update has answered it yet",
    "updating": "an update works on the drift",
    "update-failed": "the update ended with an error; the champion serves on",
    "update-refused": "the update did not pass the gate; the champion serves on",
    "alarm": "the last window differs, which by itself is not a drift yet",
    "insufficient": "the last window is too small for a decision",
    "update-promoted": "an updated adapter serves since the last window",
    "stable": "the last window looks like the reference",
    "no-window": "watched, but no window is closed yet",
    "no-champion": "nothing is watched: only the base serves",
}

_BY_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)Z/\d{1,4}[hdw](?:/empty(\d{1,6}))?")
_BY_COUNT = re.compile(r"n(\d{1,9})/(\d{1,9})")
_AFTER_UPDATE = {
    "promoted": "update-promoted",
    "retrained": "update-promoted",
    "refused": "update-refused",
    "failed": "update-failed",
    "running": "updating",
}


def seconds(text: str) -> float | None:
    """Return an ISO 8601 time as seconds since 1970, ``None`` where it is none; no zone is UTC."""
    try:
        when = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _order(text: str) -> float:
    when = seconds(text)
    return -math.inf if when is None else when


def in_order(windows: Iterable[WindowPoint]) -> list[WindowPoint]:
    """Return windows by their end, oldest first."""
    return sorted(windows, key=lambda window: (_order(window.end), window.name))


def closed_windows(language: WatchedLanguage) -> list[WindowPoint]:
    """Return the windows that are closed, oldest first."""
    return [window for window in in_order(language.windows) if window.status != "open"]


def window_name(window: WindowPoint) -> str:
    """Return the name of a window as people read it; names of other makes as they are.

    Examples:
        >>> def named(name): return window_name(WindowPoint(name=name, start="", end=""))
        >>> named("2026-11-13T00:00Z/1d"), named("2026-11-13T06:00Z/6h")
        ('2026-11-13', '2026-11-13 06:00')
        >>> named("2026-11-13T00:00Z/1d/empty3"), named("n1000/000007")
        ('2026-11-13, 3 in a row', 'no. 7 (1000 prompts)')
    """
    counted = _BY_COUNT.fullmatch(window.name)
    if counted:
        return f"no. {int(counted[2])} ({int(counted[1])} prompts)"
    timed = _BY_TIME.fullmatch(window.name)
    if not timed:
        return window.name
    clock = "" if timed[2] == "00:00" else f" {timed[2]}"
    several = f", {timed[3]} in a row" if int(timed[3] or 1) > 1 else ""
    return f"{timed[1]}{clock}{several}"


def updates_in_order(language: WatchedLanguage) -> list[UpdatePoint]:
    """Return the updates, oldest first."""
    return sorted(language.updates, key=lambda update: (_order(update.time), update.version))


def state_of(language: WatchedLanguage) -> str:
    """Return the key of `STATE_TEXT` that says how `language` is doing."""
    if language.error:
        return "unreadable"
    if not language.champion:
        return "no-champion"
    updates = [row for row in updates_in_order(language) if row.status != "superseded"]
    if language.event_state == "taken" or any(row.status == "running" for row in updates):
        return "updating"
    if language.event_state == "pending":
        failed = bool(updates) and updates[-1].status == "failed"
        return "update-failed" if failed and updates[-1].event == language.event else "drift"
    windows = closed_windows(language)
    if not windows:
        return "no-window"
    return _state_now(windows, updates[-1] if updates else None)


def _state_now(windows: Sequence[WindowPoint], update: UpdatePoint | None) -> str:
    """Return the state where no update is under way: the newer of last window and last update."""
    last = windows[-1]
    updated = _order(update.time) if update else -math.inf
    answered = _AFTER_UPDATE[update.status] if update else ""
    if answered and updated >= _order(last.end):
        return answered
    if last.status == "stable":
        return "stable"
    since = _since_stable(windows)
    if any(window.drift_detected and _order(window.end) > updated for window in since):
        return "drift"
    if answered in {"update-refused", "update-failed"} and updated >= _order(since[0].start):
        return answered
    return "alarm" if last.status == "alarm" else "insufficient"


def _since_stable(windows: Sequence[WindowPoint]) -> list[WindowPoint]:
    """Return the windows after the last stable one."""
    stable = [index for index, window in enumerate(windows) if window.status == "stable"]
    return list(windows[stable[-1] + 1 :] if stable else windows)


def by_urgency(languages: Iterable[WatchedLanguage]) -> list[WatchedLanguage]:
    """Return languages with the ones to look at first, then by p-value, then by name."""
    rank = {state: place for place, state in enumerate(STATE_TEXT)}

    def order(language: WatchedLanguage) -> tuple[int, float, str, str]:
        windows = closed_windows(language)
        p = windows[-1].p_value if windows else None
        known = 2.0 if p is None or math.isnan(p) else p
        return (rank[state_of(language)], known, language.name, language.language)

    return sorted(languages, key=order)

"""The outcome of a monitor in words: what was read, and what happens next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_REASONS = 3


def summary_line(outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one sentence about all languages, for the run's state.

    Examples:
        >>> summary_line({"swh_Latn": {"status": "drift"}, "tur_Latn": {"status": "stable"}})
        '2 languages: drift swh_Latn; stable tur_Latn'
    """
    by_status: dict[str, list[str]] = {}
    for language, outcome in outcomes.items():
        by_status.setdefault(str(outcome["status"]), []).append(language)
    ordered = sorted(by_status.items(), key=lambda item: (item[0] != "drift", item[0]))
    told = "; ".join(f"{status} {', '.join(codes)}" for status, codes in ordered)
    many = "" if len(outcomes) == 1 else "s"
    return f"{len(outcomes)} language{many}: {told}"[:2000]


def nothing_watched(outcomes: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say whether no language has a champion: a monitor like this guards nothing."""
    return all(outcome["status"] == "no champion" for outcome in outcomes.values())


def reading_text(outcome: Mapping[str, Any]) -> str:
    """Return what became of the records of the log; empty if none was read."""
    read = outcome.get("read")
    if not read:
        return ""
    parts = [f"{read['n_new']:,} new prompts"]
    counted = {
        "known": "n_known",
        "too late for their window": "n_late",
        "before the comparison": "n_before",
        "forgotten": "n_forgotten",
    }
    parts += [f"{read[name]:,} {what}" for what, name in counted.items() if read.get(name)]
    others = sum(read["other_languages"].values())
    if others:
        parts.append(f"{others:,} of other languages")
    if read["unknown_languages"]:
        named = ", ".join(list(read["unknown_languages"])[:_MAX_REASONS])
        parts.append(f"{sum(read['unknown_languages'].values()):,} of no language ({named})")
    if read["n_rejected"]:
        reasons = [f"{reason} {n:,}" for reason, n in read["rejected"].items()]
        more = "; …" * (len(reasons) > _MAX_REASONS)
        told = "; ".join(reasons[:_MAX_REASONS]) + more
        parts.append(f"{read['n_rejected']:,} unusable ({told})")
    return ", ".join(parts)


def next_step(outcome: Mapping[str, Any]) -> str:
    """Return what happens next, or what a person has to do."""
    fixed = {
        "failed": "repair what is said above and run `compass monitor` again",
        "busy": "nothing: another monitor is at work on this language",
        "no champion": "run `compass adapt` first; there is no adapter to compare with",
    }
    status = str(outcome["status"])
    if status in fixed:
        return fixed[status]
    if outcome["pending"]:
        return _pending_step(outcome)
    decided = [w for w in outcome["windows"] if w["status"] not in ("open", "empty")]
    if decided:
        newest = decided[-1]
        return f"{str(newest['reason']).rstrip('.')}; nothing to do"
    waiting = [w for w in outcome["windows"] if w["status"] == "open"]
    if waiting:
        newest = waiting[-1]
        return (
            f"wait: {newest['name']} is open and holds {newest['n_prompts']:,} prompts; nothing "
            "has closed since the last time"
        )
    return "wait: there is no new window since the last time"


def _pending_step(outcome: Mapping[str, Any]) -> str:
    event = outcome["pending"][-1]
    if event in outcome["sent"]:
        return f"the update was asked for (event {event})"
    by_hand = f"`compass update CONFIG --language {outcome['language']} --event {event}`"
    return f"the update is pending, because {outcome['unsent']}; by hand: {by_hand}"

from __future__ import annotations

import pytest

from compass_core.report.monitoring_data import UpdatePoint, WatchedLanguage, WindowPoint
from compass_core.report.monitoring_state import (
    STATE_MEANING,
    STATE_TEXT,
    by_urgency,
    seconds,
    state_of,
)


def windows(story: str) -> list[WindowPoint]:
    """Return one window a day: s(table), a(larm), d(rift), i(nsufficient), e(mpty), o(pen)."""
    kinds = {"s": "stable", "i": "insufficient", "e": "empty", "o": "open"}
    return [
        WindowPoint(
            name=f"w{day}",
            start=f"2026-10-{day:02}T00:00:00+00:00",
            end=f"2026-10-{day + 1:02}T00:00:00+00:00",
            status=kinds.get(letter, "alarm"),  # type: ignore[arg-type]
            drift_detected=letter == "d",
        )
        for day, letter in enumerate(story, start=1)
    ]


def watched(story: str, update: str = "", day: int = 1, **values: object) -> WatchedLanguage:
    """Return a language with `story`, and an update two hours into day `day`."""
    updates = [UpdatePoint(time=f"2026-10-{day:02}T02:00:00Z", status=update)] if update else []  # type: ignore[arg-type]
    return WatchedLanguage(
        language="swh_Latn",
        name="Swahili",
        **{"champion": "3", "windows": windows(story), "updates": updates, **values},  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("story", "state"),
    [
        ("", "no-window"),
        ("o", "no-window"),
        ("ss", "stable"),
        ("sa", "alarm"),
        ("sad", "drift"),
        ("sada", "drift"),
        ("sadi", "drift"),
        ("sads", "stable"),
        ("si", "insufficient"),
        ("se", "insufficient"),
        ("sado", "drift"),
        ("dsa", "alarm"),
    ],
)
def test_windows_alone_decide_where_nothing_was_updated(story: str, state: str) -> None:
    assert state_of(watched(story)) == state


@pytest.mark.parametrize(
    ("story", "update", "day", "state"),
    [
        ("sad", "promoted", 4, "update-promoted"),
        ("sad", "retrained", 4, "update-promoted"),
        ("sad", "refused", 4, "update-refused"),
        ("sad", "failed", 4, "update-failed"),
        ("sad", "running", 4, "updating"),
        ("sads", "promoted", 4, "stable"),
        ("sada", "refused", 4, "update-refused"),
        ("sadai", "refused", 4, "update-refused"),
        ("sads", "refused", 4, "stable"),
        ("sadsa", "refused", 4, "alarm"),
        ("sadad", "refused", 4, "drift"),
        ("sada", "promoted", 4, "alarm"),
        ("sads", "failed", 5, "update-failed"),
    ],
)
def test_an_update_holds_until_newer_windows_say_otherwise(
    story: str, update: str, day: int, state: str
) -> None:
    assert state_of(watched(story, update, day)) == state


def test_an_event_is_a_drift_until_an_update_takes_it() -> None:
    assert state_of(watched("ss", event="e", event_state="pending")) == "drift"
    assert state_of(watched("ss", event="e", event_state="taken")) == "updating"


def test_what_cannot_be_read_or_is_not_watched_says_so() -> None:
    assert state_of(watched("sad", champion="")) == "no-champion"
    assert state_of(watched("sad", error="E1")) == "unreadable"


def test_update_that_failed_keeps_its_event_but_says_so() -> None:
    failed = watched("sad", "failed", 4, event="", event_state="pending")
    assert state_of(failed) == "update-failed"
    assert state_of(watched("sad", "failed", 4, event="new", event_state="pending")) == "drift"


def test_update_that_another_champion_made_needless_changes_no_state() -> None:
    assert state_of(watched("sads", "superseded", 5)) == "stable"
    assert state_of(watched("sada", "superseded", 5)) == "drift"


def test_order_of_windows_in_the_data_changes_nothing() -> None:
    language = watched("sada", "refused", 4)
    back = watched("", champion="3", windows=list(reversed(language.windows)))
    assert state_of(back) == "drift"


def test_every_state_has_a_sign_and_a_meaning() -> None:
    assert STATE_TEXT.keys() == STATE_MEANING.keys()
    assert len({text[0] + text[2:] for text in STATE_TEXT.values()}) == len(STATE_TEXT)


def test_what_needs_a_look_comes_first() -> None:
    languages = [watched("ss"), watched("sa"), watched("sad"), watched("s", champion="")]
    assert [state_of(item) for item in by_urgency(languages)] == [
        "drift",
        "alarm",
        "stable",
        "no-champion",
    ]


def test_times_without_a_zone_are_utc_and_nonsense_is_no_time() -> None:
    assert seconds("1970-01-02T00:00:00") == 86_400.0
    assert seconds("1970-01-02T03:00:00+03:00") == 86_400.0
    assert seconds("yesterday") is None

"""Alarms over time: rows of alarms, spending, cool-down, insufficient windows."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.config import DriftConfig
from compass_core.monitoring.decisions import Check, decide_drift

START = datetime(2026, 3, 1, tzinfo=UTC)
LETTERS = {"a": "alarm", "s": "stable", "i": "insufficient"}
DEFAULT = DriftConfig()
SPENDING = DriftConfig(over_time="spending", max_permutations=99_999)


def play(letters, config=DEFAULT):
    """Return the history of a language whose checks are decided one after the other."""
    history = []
    for day, letter in enumerate(letters):
        start, status = START + timedelta(days=day), LETTERS[letter]
        p_value = None if letter == "i" else 0.001
        decision = decide_drift([*history, Check(start, status, p_value, 0.01)], config)
        history.append(Check(start, status, p_value, 0.01, was_drift=decision.drift_detected))
    return history


def drifts(letters, config=DEFAULT):
    return [day for day, check in enumerate(play(letters, config)) if check.was_drift]


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("ssss", []),
        ("assa", []),
        ("saa", [2]),
        ("sasaa", [4]),
        ("aia", [2]),  # an insufficient window is as if it were not there
        ("aiiia", [4]),
        ("iaia", [3]),
        ("aaaaa", [1]),  # cool-down: windows 2, 3, 4
        ("aaaaaa", [1, 5]),  # alarms in the cool-down count once it is over
        ("aassss", [1]),
        ("aasssaa", [1, 6]),
        ("aassaa", [1, 5]),  # window 5 is the fourth after the drift
        ("aaiaaa", [1]),  # insufficient windows do not shorten the cool-down
        ("aaiaaaa", [1, 6]),
    ],
)
def test_two_alarms_in_a_row_make_a_drift(letters, expected):
    assert drifts(letters) == expected


@pytest.mark.parametrize(
    ("letters", "expected"), [("sas", [1]), ("aaaa", [0]), ("aaaaa", [0, 4]), ("ii", [])]
)
def test_one_alarm_makes_a_drift_where_the_level_is_spent_over_the_year(letters, expected):
    assert drifts(letters, SPENDING) == expected


def test_number_of_alarms_in_a_row_is_a_setting():
    assert drifts("aaaa", DriftConfig(consecutive=3)) == [2]
    assert drifts("aaaa", DriftConfig(consecutive=1, cooldown=0)) == [0, 1, 2, 3]


def test_without_cool_down_a_row_starts_anew_after_each_drift():
    assert drifts("aaaaa", DriftConfig(cooldown=0)) == [1, 3]


@pytest.mark.parametrize(
    ("letters", "row", "cooling", "reason"),
    [
        ("a", 1, False, "Alarm 1 of 2 in a row."),
        ("aa", 2, False, "2 alarms in a row."),
        ("as", 0, False, "The window shows no change."),
        ("ai", 1, False, "too small for a decision"),
        ("aaa", 1, True, "Window 1 of 3 after a drift"),
        ("aai", 0, True, "too small for a decision"),
        ("aas", 0, True, "The window shows no change."),
    ],
)
def test_decision_says_why(letters, row, cooling, reason):
    history = play(letters)
    newest = history[-1]
    decision = decide_drift(history, DEFAULT)
    assert (decision.n_consecutive, decision.in_cooldown) == (row, cooling)
    assert decision.drift_detected == newest.was_drift
    assert reason in decision.reason


def test_nothing_checked_is_no_drift():
    assert not decide_drift([], DEFAULT).drift_detected


def test_second_check_of_a_window_replaces_the_first():
    first, second = Check(START, "alarm", 0.001, 0.01), Check(START, "stable", 0.5, 0.01)
    later = Check(START + timedelta(days=1), "alarm", 0.001, 0.01)
    assert decide_drift([first, later], DEFAULT).drift_detected
    assert not decide_drift([first, second, later], DEFAULT).drift_detected


HISTORIES = st.text("asi", min_size=1, max_size=30)
CONFIGS = st.builds(
    DriftConfig,
    consecutive=st.integers(1, 4),
    cooldown=st.integers(0, 5),
    over_time=st.sampled_from(["consecutive", "spending"]),
    max_permutations=st.just(99_999),
)


@given(HISTORIES, CONFIGS)
def test_a_drift_is_declared_with_an_alarm_only_and_after_enough_of_them(letters, config):
    decided = [letter for letter in letters if letter != "i"]
    needed = 1 if config.over_time == "spending" else config.consecutive
    for day in drifts(letters, config):
        assert letters[day] == "a"
        position = sum(letter != "i" for letter in letters[: day + 1])
        assert decided[position - needed : position] == ["a"] * needed


@given(HISTORIES, CONFIGS)
def test_drifts_keep_the_cool_down_apart(letters, config):
    positions = [sum(c != "i" for c in letters[:day]) for day in drifts(letters, config)]
    gaps = [later - first for first, later in itertools.pairwise(positions)]
    assert all(gap > config.cooldown for gap in gaps)


@given(HISTORIES, CONFIGS)
def test_insufficient_windows_change_nothing_but_the_dates(letters, config):
    without = [letter for letter in letters if letter != "i"]
    days = [day for day, letter in enumerate(letters) if letter != "i"]
    assert [days[position] for position in drifts(without, config)] == drifts(letters, config)


@given(HISTORIES, CONFIGS, st.randoms(use_true_random=False))
def test_order_in_which_the_history_comes_does_not_matter(letters, config, random):
    history = play(letters, config)
    mixed = random.sample(history, len(history))
    assert decide_drift(history, config) == decide_drift(mixed, config)


@given(st.text("si", max_size=30), CONFIGS)
def test_no_alarm_is_never_a_drift(letters, config):
    assert drifts(letters, config) == []


@given(HISTORIES, st.integers(1, 3))
def test_asking_for_more_alarms_never_brings_the_first_drift_forward(letters, consecutive):
    fewer = drifts(letters, DriftConfig(consecutive=consecutive))
    more = drifts(letters, DriftConfig(consecutive=consecutive + 1))
    assert not more or (fewer and fewer[0] < more[0])

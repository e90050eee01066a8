"""The dashboard over a real registry and the files that monitors and updates leave."""

import os

import pytest

from compass_core.monitoring.outbox import Outbox
from compass_core.report.monitoring_data import from_json
from compass_core.report.monitoring_state import state_of
from compass_core.storage import write_json
from tasks.dashboard import collect_monitoring, write_dashboard
from tests.tasks.served import CODE, NOW, decided, drift_event, promote, remember, updated


@pytest.fixture
def watched_home(mlflow_home, monkeypatch):
    monkeypatch.setenv("COMPASS_HOME", str(mlflow_home))
    return mlflow_home


def watched_language(code):
    [language] = collect_monitoring([code]).languages
    return language


def test_home_without_anything_gives_an_empty_page(watched_home):
    page = write_dashboard()
    assert "No language is watched yet" in page.read_text("utf-8")
    assert '<a href="monitoring.html"' in (watched_home / "runs" / "index.html").read_text("utf-8")


def test_windows_are_those_of_the_history_and_of_the_last_monitor(watched_home):
    promote(watched_home, 1)
    move = {"cluster": 3, "label": "a", "reference_share": None, "current_share": 0.2, "z": 5.0}
    remember(watched_home, decided(17), decided(18, "alarm", moved=[move | {"p": 0.001}]))
    last = {
        "space": "s",
        "windows": [
            decided(18, "alarm"),
            decided(19, "empty", n_prompts=0),
            decided(20, "open"),
        ],
        "read": {"rejected": {"no time zone": 3}},
        "notes": ["the space changed"],
    }
    write_json(watched_home / "usage" / CODE / "last.json", last)
    language = watched_language(CODE)
    assert [window.status for window in language.windows] == ["stable", "alarm", "empty", "open"]
    moved = language.windows[1].moved[0]
    assert (moved.label, moved.reference_share, moved.current_share) == ("a", None, 0.2)
    assert (language.unit, language.min_shown, language.n_clusters) == ("session", 7, 12)
    assert language.n_quarantined == {"no time zone": 3}
    assert language.notes == ["the space changed"]


def test_open_window_that_was_decided_since_is_shown_once(watched_home):
    remember(watched_home, decided(18))
    last = {"space": "s", "windows": [decided(18, "open")]}
    write_json(watched_home / "usage" / CODE / "last.json", last)
    assert [window.status for window in watched_language(CODE).windows] == ["stable"]


def test_accuracy_is_that_of_every_version_that_was_promoted(watched_home):
    promote(watched_home, 1, accuracy=0.4, accuracy_low=0.35, accuracy_high=0.45)
    promote(watched_home, 2, accuracy=0.5)
    language = watched_language(CODE)
    assert (language.champion, language.base) == ("2", "starter")
    scores = {p.version: (p.accuracy, p.low, p.high) for p in language.accuracy}
    assert scores == {"1": (0.4, 0.35, 0.45), "2": (0.5, None, None)}


def test_pending_event_is_a_drift_and_its_update_an_answer(watched_home):
    promote(watched_home, 1)
    remember(watched_home, decided(18, "alarm"), decided(19, "alarm", drift_detected=True))
    event = drift_event(watched_home)
    waiting = watched_language(CODE)
    assert (waiting.event, waiting.event_state, state_of(waiting)) == (event.id, "pending", "drift")
    outbox = Outbox(watched_home / "usage" / CODE / "events")
    with outbox.take(event.id, now=NOW):
        assert state_of(watched_language(CODE)) == "updating"
        outbox.finish(event.id, {"status": "refused"})
    updated(watched_home, event.id)
    answered = watched_language(CODE)
    assert (answered.event, state_of(answered)) == ("", "update-refused")
    [update] = answered.updates
    assert (update.event, update.version, update.run_id) == (event.id, "2", "u1")
    assert (update.accuracy_before, update.accuracy_after, update.forgetting) == (0.4, 0.5, 0.06)
    assert update.reasons == ["slice first lost"]


def test_update_whose_run_was_cleaned_away_is_known_from_its_event(watched_home):
    event = drift_event(watched_home)
    outcome = {
        "status": "promoted",
        "version": "2",
        "finished": NOW.isoformat(),
        "reasons": ["better"],
        "accuracy_before": 0.4,
        "accuracy_after": 0.5,
        "forgetting": 0.0,
    }
    Outbox(watched_home / "usage" / CODE / "events").finish(event.id, outcome)
    [update] = watched_language(CODE).updates
    assert (update.status, update.version, update.time) == ("promoted", "2", NOW.isoformat())


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ({"status": "promoted", "arm": "update"}, "promoted"),
        ({"status": "promoted", "arm": "retrain"}, "retrained"),
        ({"status": "superseded"}, "superseded"),
        ({"status": "odd"}, "failed"),
    ],
)
def test_outcome_of_an_update_has_a_word(watched_home, outcome, status):
    updated(watched_home, **outcome)
    assert [update.status for update in watched_language(CODE).updates] == [status]


def test_monitor_that_failed_is_told_until_one_does_not(watched_home):
    remember(watched_home, decided(18))
    last = watched_home / "usage" / CODE / "last.json"
    write_json(last, {"space": "s", "windows": [], "notes": ["seen"]})
    os.utime(last, (NOW.timestamp(), NOW.timestamp()))
    record = {"languages": {CODE: {"status": "failed", "error": "E50 the encoder changed"}}}
    path = watched_home / "runs" / "monitor.json"
    write_json(path, record | {"finished": "2026-11-20T03:00:00+00:00"})
    failed = watched_language(CODE)
    assert failed.checked == "2026-11-20T02:00:00+00:00"
    assert ["E50 the encoder changed" in note for note in failed.notes] == [True, False]
    write_json(path, record | {"finished": "2026-11-20T01:00:00+00:00"})
    assert watched_language(CODE).notes == ["seen"]


def test_update_that_died_is_told_with_its_error(watched_home):
    promote(watched_home, 1)
    remember(watched_home, decided(19, "alarm", drift_detected=True))
    event = drift_event(watched_home)
    outbox = Outbox(watched_home / "usage" / CODE / "events")
    with pytest.raises(RuntimeError), outbox.take(event.id, now=NOW):
        raise RuntimeError("no space left on the device")
    language = watched_language(CODE)
    assert state_of(language) == "update-failed"
    assert "no space left" in language.updates[0].reasons[0]


def test_damaged_files_of_one_language_hide_no_other(watched_home):
    remember(watched_home, decided(18))
    other = watched_home / "usage" / "tur_Latn"
    other.mkdir(parents=True)
    (other / "history.json").write_text("{")
    (watched_home / "runs" / "broken").mkdir(parents=True)
    (watched_home / "runs" / "broken" / "run.json").write_text("{")
    write_json(watched_home / "runs" / "odd" / "run.json", {"flow": "update-adapter"})
    states = {item.language: state_of(item) for item in collect_monitoring().languages}
    assert states == {CODE: "no-champion", "tur_Latn": "unreadable"}
    page = write_dashboard().read_text("utf-8")
    assert "Restore it" in page


def test_damaged_last_file_says_which_folder_and_what_to_do(watched_home):
    remember(watched_home, decided(18))
    (watched_home / "usage" / CODE / "last.json").write_text("[1")
    language = watched_language(CODE)
    assert state_of(language) == "unreadable"
    assert f"usage/{CODE}" in language.error
    assert "may be deleted" in language.error


def test_update_that_ran_again_after_a_kill_is_shown_once(watched_home):
    updated(watched_home, "e1", "promoted")
    updated(watched_home, "e1", "promoted", run="u2")
    updated(watched_home, run="u3")
    updated(watched_home, run="u4")
    assert [update.run_id for update in watched_language(CODE).updates] == ["u1", "u3", "u4"]


def test_folders_that_are_no_language_are_left_alone(watched_home):
    for name in ("lost+found", "secret", "xx", "swh_Latn"):
        (watched_home / "usage" / name).mkdir(parents=True)
    (watched_home / "usage" / "secret.key").write_bytes(b"k")
    assert [item.language for item in collect_monitoring().languages] == [CODE]


def test_language_that_serves_and_is_not_watched_is_on_the_page(watched_home):
    promote(watched_home, 1)
    report = collect_monitoring()
    assert [state_of(language) for language in report.languages] == ["no-window"]
    assert "made-up" not in " ".join(report.notes)
    assert any("Demonstration corpus" in note for note in report.notes)


def test_registry_that_does_not_answer_is_told_and_hides_nothing(watched_home, monkeypatch):
    remember(watched_home, decided(18))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    report = collect_monitoring()
    assert len(report.languages[0].windows) == 1
    assert "could not be asked" in report.notes[0]


def test_page_and_data_agree(watched_home):
    promote(watched_home, 1)
    remember(watched_home, decided(17), decided(18, "alarm"))
    page = write_dashboard()
    data = from_json(page.with_name("monitoring.json").read_text("utf-8"))
    assert [window.n_late for window in data.languages[0].windows] == [2, 2]
    assert "▲ Alarm" in page.read_text("utf-8")

"""The flow over several languages: one that fails stops nobody, a drift sends its event."""

import json
import time

import pytest
from prefect.client.orchestration import get_client

from compass_core.errors import DataError, TransientError
from flows.monitor_drift import monitor_drift
from flows.monitoring import run_monitor, show
from tasks import events, monitoring
from tasks.events import deliver, open_outbox
from tasks.monitoring_report import read_last
from tasks.monitoring_text import summary_line
from tests.tasks.watching import LANGUAGE, SHIFTED, Clock, FakeBaseline, at, make_config, write_day

NO_CHAMPION = "tur_Latn"
BROKEN = "ukr_Cyrl"


@pytest.fixture
def logs(prefect_backend, home, tmp_path, monkeypatch):
    """A log whose language drifts; another language has no champion, a third one is broken."""

    def open_baseline(_config, language, _folder):
        if language == BROKEN:
            raise DataError("the encoder changed", code="E50")
        return FakeBaseline() if language == LANGUAGE else None

    Clock.moment = at(3)
    monkeypatch.setattr(monitoring, "datetime", Clock)
    monkeypatch.setattr(monitoring, "open_baseline", open_baseline)
    folder = tmp_path / "logs"
    for day in range(3):
        write_day(folder, day, SHIFTED)
    return folder


def sent_events(event_id):
    """Return what the server knows of an event."""
    with get_client(sync_client=True) as client:
        body = {"filter": {"event": {"name": ["compass.drift"]}}, "limit": 50}
        found = client.request("POST", "/events/filter", json=body).json()["events"]
    return [event for event in found if event["payload"]["event"] == event_id]


def test_a_broken_language_and_one_without_a_champion_stop_nobody(logs):
    config = make_config(logs, (LANGUAGE, NO_CHAMPION, BROKEN), drift={"correct_languages": True})
    state = monitor_drift(config, return_state=True)
    assert state.name == "CompletedWithFailures"
    assert "E50 the encoder changed" in state.message
    outcomes = read_last()["languages"]
    statuses = {language: outcome["status"] for language, outcome in outcomes.items()}
    assert statuses == {LANGUAGE: "drift", NO_CHAMPION: "no champion", BROKEN: "failed"}
    assert outcomes[LANGUAGE]["windows"][0]["level"] == pytest.approx(0.01 / 3)
    (event,) = open_outbox(LANGUAGE).pending()
    assert len(event.sent) == 1
    page = (monitoring.compass_home() / "runs" / "monitoring.html").read_text(encoding="utf-8")
    assert "Swahili" in page
    assert "topic 7" in page


def test_all_broken_is_failed_and_nothing_watched_is_not_green(logs):
    state = monitor_drift(make_config(logs, (BROKEN,)), return_state=True)
    assert state.name == "Failed"
    state = monitor_drift(make_config(logs, (NO_CHAMPION,)), return_state=True)
    assert state.is_completed()
    assert state.name == "NoChampion"
    assert state.message.startswith("1 language: no champion tur_Latn. Nothing is watched")
    assert "MLFLOW_TRACKING_URI" in state.message
    state = monitor_drift(make_config(logs, (LANGUAGE, NO_CHAMPION)), return_state=True)
    assert state.name == "Completed"


def test_a_monitor_that_watches_nothing_exits_with_1(logs, tmp_path):
    path = tmp_path / "own.yaml"
    values = make_config(logs, (NO_CHAMPION,)).model_dump(mode="json")
    path.write_text(json.dumps(values), encoding="utf-8")
    assert run_monitor(path, [], as_json=True) == 1
    values = make_config(logs).model_dump(mode="json")
    path.write_text(json.dumps(values), encoding="utf-8")
    assert run_monitor(path, [], as_json=True) == 0


def test_the_event_is_at_the_server_with_language_and_payload(logs):
    state = monitor_drift(make_config(logs), return_state=True)
    assert state.message == f"1 language: drift {LANGUAGE}"
    (event,) = open_outbox(LANGUAGE).pending()

    for _ in range(60):
        arrived = sent_events(event.id)
        if arrived:
            break
        time.sleep(0.5)
    (found,) = arrived
    assert found["resource"]["prefect.resource.id"] == f"compass.language.{LANGUAGE}"
    assert found["payload"] == event.payload()
    assert found["related"], "the monitor's flow run is named"


def test_a_server_that_does_not_answer_leaves_the_event_pending(logs, monkeypatch):
    def unreachable(**_):
        raise OSError("connection refused")

    monitor_drift(make_config(logs, emit_events=False), return_state=True)
    (event,) = open_outbox(LANGUAGE).pending()
    monkeypatch.setattr(events, "get_client", unreachable)
    with pytest.raises(TransientError, match="stays pending"):
        deliver(event, "small")
    assert open_outbox(LANGUAGE).pending()[0].sent == ()


def test_the_terminal_says_what_moved_and_what_is_next(logs, capsys):
    monitor_drift(make_config(logs, (LANGUAGE, NO_CHAMPION, BROKEN)), return_state=True)
    show(read_last())
    text = capsys.readouterr().out
    assert "Swahili (swh_Latn)  champion 1, drift" in text
    assert "DRIFT" in text
    assert "topic 7 " in text
    assert "next: the update was asked for" in text
    assert "run `compass adapt` first" in text
    assert "E50 the encoder changed" in text


def test_the_record_is_plain_json(logs):
    monitor_drift(make_config(logs), return_state=True)
    record = read_last()
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_drifts_come_first_in_the_summary():
    outcomes = {"a": {"status": "busy"}, "b": {"status": "drift"}}
    assert summary_line(outcomes) == "2 languages: drift b; busy a"

"""What serves, since when, from what, and what needs somebody; over a real registry."""

import contextlib
import json
import shutil
import sqlite3
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from compass_core.report.monitoring_state import STATE_TEXT
from compass_core.report.status_data import (
    ATTENTION,
    Attention,
    LanguageStatus,
    StatusReport,
    in_order,
    to_json,
)
from compass_core.report.status_text import attention_text, detail_text, overview_rows
from compass_core.storage import write_json
from tasks import registry
from tasks.dashboard import write_index
from tasks.events import open_outbox
from tasks.migrations import HOME_VERSION
from tasks.status import collect_status
from tests.tasks.served import CODE, NAME, decided, drift_event, promote, remember

NOW = datetime(2026, 11, 20, 2, tzinfo=UTC)


@pytest.fixture
def status_home(mlflow_home, monkeypatch):
    monkeypatch.setenv("COMPASS_HOME", str(mlflow_home))
    write_json(mlflow_home / "HOME.json", {"home_version": HOME_VERSION})
    return mlflow_home


def status_of(code=CODE, **options):
    [found] = [s for s in collect_status(NOW, **options).languages if s.language == code]
    return found


def ran(home, code=CODE, status="failed", error="E15 no such column", run="20261119T000000-aaaaaa"):
    outcome = {"status": status, "error": error, "timings": {"cluster": 1.5}}
    record = {
        "run_id": run,
        "flow": "adapt-languages",
        "started": "2026-11-19T00:00:00+00:00",
        "finished": "2026-11-19T00:01:00+00:00",
        "languages": {code: outcome},
    }
    write_json(home / "runs" / run / "run.json", record)


def codes_of(status):
    return [item.code for item in status.attention]


def test_champion_is_told_with_its_accuracy_and_the_time_it_came_into_service(status_home):
    promote(status_home, 1, accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6)
    before = datetime.now(UTC) - timedelta(minutes=5)
    found = status_of()
    assert (found.champion, found.base, found.accuracy) == ("1", "starter", 0.5)
    assert datetime.fromisoformat(found.since) > before
    assert "50.0 [40–60]" in detail_text(found)


def test_rolled_back_champion_serves_since_the_rollback(status_home):
    promote(status_home, 1)
    promote(status_home, 2)
    registry.set_version_tags(NAME, "1", {"serving_since": "2020-01-01T00:00:00+00:00"})
    registry.rollback(NAME)
    found = status_of()
    assert found.champion == "1"
    assert found.since > "2026"


def test_home_without_anything_has_an_empty_status_and_gets_no_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPASS_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert collect_status(NOW).languages == []
    assert not (tmp_path / "mlflow.db").exists()


def test_alias_of_a_deleted_version_needs_somebody(status_home):
    promote(status_home, 1)
    with sqlite3.connect(status_home / "mlflow.db") as database:
        database.execute("UPDATE registered_model_aliases SET version = 9")
    assert codes_of(status_of()) == ["alias-broken"]


def test_champion_whose_files_are_gone_or_changed_needs_somebody(status_home):
    promote(status_home, 1)
    [weights] = status_home.glob("mlartifacts/**/adapter_model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"!")
    assert codes_of(status_of()) == []
    assert codes_of(status_of(verify=True)) == ["adapter-damaged"]
    weights.unlink()
    assert codes_of(status_of()) == ["adapter-damaged"]


def test_champion_whose_lineage_is_gone_needs_somebody(status_home):
    promote(status_home, 1, tags={"lineage_fingerprint": "f" * 32})
    assert codes_of(status_of()) == ["lineage-missing"]


def test_language_whose_last_run_failed_needs_somebody_until_one_succeeds(status_home):
    ran(status_home)
    found = status_of()
    assert codes_of(found) == ["run-failed"]
    assert "E15 no such column" in found.attention[0].text
    ran(status_home, status="kept", error="", run="20261120T000000-bbbbbb")
    assert codes_of(status_of()) == []


def test_trained_adapter_that_waits_for_the_registry_is_named_so(status_home):
    ran(status_home, error="E94 The adapter of swh_Latn is trained, scored and kept")
    assert codes_of(status_of()) == ["not-registered"]


def test_drift_waits_a_day_before_somebody_has_to_do_something(status_home):
    promote(status_home, 1)
    remember(status_home, decided(19, "alarm", drift_detected=True))
    event = drift_event(status_home)
    assert codes_of(status_of()) == ["drift"]
    late = collect_status(NOW + timedelta(days=2)).languages[0]
    assert codes_of(late) == ["event-waiting"]
    with contextlib.suppress(KeyError), open_outbox(CODE).take(event.id, now=NOW):
        assert status_of().updating
        raise KeyError("no disk")
    found = status_of()
    assert codes_of(found) == ["event-failed"]
    assert found.events_pending == 1
    assert event.id in found.attention[0].command


def test_monitor_that_did_not_look_for_two_windows_is_overdue(status_home):
    promote(status_home, 1)
    remember(status_home, decided(19))
    write_json(status_home / "usage" / CODE / "last.json", {"windows": []})
    now = datetime.now(UTC)
    assert collect_status(now).languages[0].attention == []
    [found] = collect_status(now + timedelta(days=3)).languages[0].attention
    assert found.code == "monitor-overdue"


def test_unreadable_history_is_told_in_its_place(status_home):
    promote(status_home, 1)
    promote(status_home, 2, language="tur_Latn")
    remember(status_home, decided(19))
    (status_home / "usage" / CODE / "history.json").write_text("{")
    report = collect_status(NOW)
    assert [row.language for row in report.languages] == [CODE, "tur_Latn"]
    assert codes_of(report.languages[0]) == ["unreadable"]


def test_lost_registry_is_noticed(status_home, monkeypatch):
    ran(status_home, status="promoted", error="")
    assert [item.code for item in collect_status(NOW).attention] == ["no-registry"]


def test_tracking_server_that_is_away_is_told_at_once(status_home, monkeypatch):
    ran(status_home, status="kept", error="")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    report = collect_status(NOW)
    assert [item.code for item in report.attention] == ["registry-unreachable"]
    assert [row.language for row in report.languages] == [CODE]


def test_42_languages_fit_80_columns_whatever_their_state():
    of_all = {"registry-unreachable", "no-registry", "upgrade-pending", "disk-low"}
    codes = [code for code in ATTENTION if code not in of_all]
    needs = [[Attention(code, "found", "do")] for code in codes]
    states = list(STATE_TEXT)
    rows = [
        LanguageStatus(
            language=f"l{i:02}",
            name=f"Language number {i} of a long name",
            champion="123",
            since="2026-01-01T00:00:00+00:00",
            accuracy=0.5614,
            accuracy_low=0.5,
            accuracy_high=0.62,
            drift=states[i % len(states)],
            attention=needs[i] if i < len(needs) else [],
        )
        for i in range(42)
    ]
    table = overview_rows(StatusReport(created=NOW.isoformat(), languages=in_order(rows)))
    widths = [max(len(row[column]) for row in table) for column in range(6)]
    assert sum(widths) + 5 <= 80
    signs = {"act": "✕", "watch": "▲"}
    assert [row[5] for row in table[: len(codes)]] == [
        f"{signs[ATTENTION[code][0]]} {code}" for code in codes
    ]


def test_attention_names_what_to_do(status_home):
    ran(status_home)
    text = attention_text(collect_status(NOW))
    assert "Swahili: run-failed" in text
    assert "→ the same command again" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_json_holds_every_field_of_the_handbook(status_home):
    promote(status_home, 1)
    [row] = json.loads(to_json(collect_status(NOW)))["languages"]
    assert set(row) == {item.name for item in fields(LanguageStatus)}
    handbook = (Path(__file__).parents[2] / "docs" / "handbook.md").read_text("utf-8")
    assert [name for name in row if f"`{name}`" not in handbook] == []
    assert [code for code in ATTENTION if f"`{code}`" not in handbook] == []


def test_index_page_says_what_serves_and_escapes_what_it_shows(status_home):
    promote(status_home, 1, tags={"base": "<script>alert(1)</script>"})
    ran(status_home, error="<img src=x onerror=alert(1)>")
    page = write_index().read_text("utf-8")
    assert "What serves" in page
    assert "run-failed" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_damaged_run_record_is_passed_over(status_home):
    ran(status_home)
    broken = status_home / "runs" / "20261121T000000-cccccc"
    shutil.copytree(status_home / "runs" / "20261119T000000-aaaaaa", broken)
    (broken / "run.json").write_text("{")
    (broken / "index.json").unlink(missing_ok=True)
    assert codes_of(status_of()) == ["run-failed"]


def test_status_that_cannot_be_told_costs_its_part_of_the_page_and_nothing_else(status_home):
    ran(status_home)
    (status_home / "HOME.json").write_text("{")
    page = write_index().read_text("utf-8")
    assert "What serves" not in page

"""The monitor of one language over a space known by heart: decisions, faults, kills."""

import json
import multiprocessing
import signal
import uuid
from collections import Counter

import numpy as np
import pytest

from compass_core.errors import DataError, TransientError
from compass_core.monitoring.history import History
from compass_core.storage import file_lock, read_json, read_table
from tasks import monitoring
from tasks.events import open_outbox, prefect_event
from tasks.monitoring_report import open_history
from tasks.monitoring_text import next_step, reading_text
from tasks.settings import compass_home, open_store, usage_folder
from tasks.update_data import _numbered_users
from tests.tasks.watching import (
    EVEN,
    LANGUAGE,
    SHIFTED,
    Clock,
    FakeBaseline,
    at,
    be_monitor,
    make_config,
    write_day,
)


@pytest.fixture
def watched(home, tmp_path, monkeypatch):
    """A monitor with a fake champion, a clock to set and a list of what was sent."""

    class Watched:
        def __init__(self):
            self.logs = tmp_path / "logs"
            self.baseline = FakeBaseline()
            self.sent = []

        def run(self, day, **settings):
            Clock.moment = at(day)
            return monitoring.monitor_language(LANGUAGE, make_config(self.logs, **settings), ".")

        def decisions(self):
            return [
                (e["name"][:10], e["status"], e["drift_detected"])
                for e in open_history(LANGUAGE).entries()
            ]

    case = Watched()
    monkeypatch.setattr(monitoring, "datetime", Clock)
    monkeypatch.setattr(monitoring, "open_baseline", lambda *_: case.baseline)
    monkeypatch.setattr(monitoring, "send_event", lambda _l, event, _p: case.sent.append(event))
    monkeypatch.setattr(monitoring, "server_address", lambda: "http://127.0.0.1:1/api")
    case.logs.mkdir()
    return case


def decided(outcome):
    return [w for w in outcome["windows"] if w["status"] not in ("open", "empty")]


# ------------------------------------------------------------------ decisions
def test_two_shifted_days_make_one_drift_one_event_and_one_artefact_each(watched):
    for day in range(5):
        write_day(watched.logs, day, EVEN if day < 3 else SHIFTED)
    outcome = watched.run(5)
    assert [w["status"] for w in decided(outcome)] == ["stable"] * 3 + ["alarm"] * 2
    assert [w["drift_detected"] for w in decided(outcome)] == [False] * 4 + [True]
    assert outcome["status"] == "drift"
    (event,) = open_outbox(LANGUAGE).pending()
    assert watched.sent == [event.id] == outcome["sent"]
    assert [name[:10] for name in event.windows] == ["2026-11-04", "2026-11-05"]
    assert event.payload()["windows"] == list(event.windows)
    assert len(open_store().refs("drift")) == 5
    assert "was asked for" in next_step(outcome)


def test_a_second_run_decides_nothing_again_and_sends_what_is_pending_again(watched):
    for day in range(5):
        write_day(watched.logs, day, EVEN if day < 3 else SHIFTED)
    watched.run(5)
    before = open_history(LANGUAGE).entries()
    again = watched.run(5)
    assert decided(again) == []
    assert again["read"]["n_new"] == 0
    assert open_history(LANGUAGE).entries() == before
    assert len(watched.sent) == 2
    open_outbox(LANGUAGE).finish(watched.sent[0], {"status": "promoted"})
    assert watched.run(5)["sent"] == []


def test_the_artefact_says_everything_and_no_small_cluster(watched):
    rare = [0.495, 0.005, *[0.5 / 6] * 6]
    write_day(watched.logs, 0, rare)
    (window,) = decided(watched.run(1))
    folder = open_store().root / window["ref"]["path"]
    kept = read_json(folder / "drift.json")
    assert kept["n_prompts"] == 600
    assert kept["level"] == 0.01
    assert kept["settings"]["n_permutations"] == 199
    counts = {row["cluster"]: row for row in read_table(folder / "counts.parquet").to_pylist()}
    assert counts[1]["n_current"] is None, "a handful of users is never shown"
    assert counts[1]["n_reference"] >= 20
    assert counts[-1]["n_current"] >= 20, "what is merged could be told from the total"
    moved = {move["cluster"]: move for move in kept["moved"]}
    assert moved[0]["label"] == "topic 0"
    assert moved[0]["current_share"] > moved[0]["reference_share"]
    assert moved[1]["current_share"] is None
    assert (moved[1]["z"], moved[1]["p"]) == (None, None), "the count would follow from them"
    assert moved[0]["z"] > 0
    assert moved[0]["p"] <= 0.01


def write_users(watched, user_of, **columns):
    rows = [
        {
            "id": i,
            "time": at(0).isoformat(),
            "prompt": f"c{i % 8} {i}",
            "language": LANGUAGE,
            "user": user_of(i),
        }
        | {name: value(i) for name, value in columns.items()}
        for i in range(640)
    ]
    (watched.logs / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("unit", ["session", "prompt"])
def test_many_sessions_or_prompts_of_few_users_are_not_shown(watched, unit):
    write_users(watched, lambda i: f"user {i % 8}", session=lambda i: f"session {i}")
    (window,) = decided(watched.run(1, drift={"unit": unit}))
    folder = open_store().root / window["ref"]["path"]
    rows = read_table(folder / "counts.parquet").to_pylist()
    assert {row["n_current"] for row in rows if row["cluster"] >= 0} == {None}


@pytest.mark.parametrize(
    ("n_known", "told"), [(620, None), (500, "level holds only if it is"), (160, "as unknown")]
)
def test_prompts_of_nobody_are_told(watched, n_known, told):
    write_users(watched, lambda i: f"user {i % 200}" if i < n_known else None)
    (window,) = decided(watched.run(1))
    notes = " ".join(window["notes"])
    assert ("no user and no session" in notes) == (told is not None)
    assert told is None or told in notes
    assert (window["n_units"] is None) == (n_known < 320)
    assert window["status"] == "stable"


def test_a_flood_of_one_prompt_by_one_user_or_by_many_is_no_alarm(watched):
    path = write_day(watched.logs, 0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    flood = [
        rows[0] | {"id": f"flood {i}", "user": f"bot {i}", "prompt": "c3 BUY  now"}
        for i in range(5_000)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *flood]))
    (window,) = decided(watched.run(1))
    assert window["status"] == "stable"
    assert window["n_prompts"] == 5_600
    assert window["n_counted"] == 601
    assert any("equal ones once" in note for note in window["notes"])


def test_the_flood_counts_where_that_is_configured(watched):
    path = write_day(watched.logs, 0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    flood = [
        rows[0] | {"id": f"flood {i}", "user": f"bot {i}", "prompt": "c3 BUY now"}
        for i in range(600)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *flood]))
    (window,) = decided(watched.run(1, drift={"duplicates": "count"}))
    assert window["status"] == "alarm"


def test_a_small_window_is_reported_and_not_decided(watched):
    write_day(watched.logs, 0, SHIFTED, n=60, n_users=50)
    outcome = watched.run(1)
    (window,) = decided(outcome)
    assert window["status"] == outcome["status"] == "insufficient"
    assert window["p_value"] is None
    assert not window["drift_detected"]
    assert "users; a decision needs 100" in " ".join(window["notes"])
    assert "too small" in next_step(outcome)


def test_days_without_a_prompt_are_told_and_never_frozen(watched):
    write_day(watched.logs, 0)
    outcome = watched.run(3)
    (empty,) = [w for w in outcome["windows"] if w["status"] == "empty"]
    assert empty["n_empty"] == 2
    assert [name for name, *_ in watched.decisions()] == ["2026-11-01"]
    write_day(watched.logs, 2, SHIFTED)
    assert decided(watched.run(3))[0]["name"].startswith("2026-11-03")


def test_without_any_log_line_the_monitor_waits(watched):
    outcome = watched.run(1)
    assert outcome["status"] == "waiting"
    assert next_step(outcome).startswith("wait")


def test_after_a_drift_no_other_is_declared_while_its_update_is_to_come(watched):
    for day in range(9):
        write_day(watched.logs, day, SHIFTED)
    outcomes = [watched.run(day, drift={"cooldown": 0}) for day in (2, 9)]
    drifts = [w["drift_detected"] for outcome in outcomes for w in decided(outcome)]
    assert drifts == [False, True] + [False] * 7
    outcome = outcomes[-1]
    assert "still to come" in decided(outcome)[-1]["reason"]
    assert len(open_outbox(LANGUAGE).all()) == 1
    open_outbox(LANGUAGE).finish(watched.sent[0], {"status": "refused"})
    for day in (9, 10):
        write_day(watched.logs, day, SHIFTED)
    outcome = watched.run(11, drift={"cooldown": 0})
    assert outcome["status"] == "drift"
    assert len(open_outbox(LANGUAGE).all()) == 2


def test_a_drift_of_the_past_that_newer_windows_contradict_asks_for_no_update(watched):
    for day in range(5):
        write_day(watched.logs, day, SHIFTED if day < 3 else EVEN)
    write_day(watched.logs, 5, SHIFTED, n=60, n_users=50)
    outcome = watched.run(6)
    statuses = [w["status"] for w in decided(outcome)]
    assert statuses == ["alarm"] * 3 + ["stable"] * 2 + ["insufficient"]
    assert not any(w["drift_detected"] for w in decided(outcome))
    assert "says whether it lasts" in decided(outcome)[1]["reason"]
    assert decided(outcome)[1]["reason"] in decided(outcome)[1]["notes"]
    assert open_outbox(LANGUAGE).all() == []


def test_of_several_windows_at_once_the_newest_large_enough_declares_the_drift(watched):
    for day in range(4):
        write_day(watched.logs, day, SHIFTED)
    write_day(watched.logs, 4, SHIFTED, n=60, n_users=50)
    outcome = watched.run(5)
    assert [w["drift_detected"] for w in decided(outcome)] == [False] * 3 + [True, False]
    assert outcome["status"] == "drift"
    (event,) = open_outbox(LANGUAGE).all()
    assert event.windows == tuple(w["name"] for w in decided(outcome)[:4])


def test_alarms_against_another_champion_are_no_row(watched):
    write_day(watched.logs, 0, SHIFTED)
    assert watched.run(1)["status"] == "alarm"
    watched.baseline = FakeBaseline(version="2", adapter_sha256="other")
    write_day(watched.logs, 1, SHIFTED)
    outcome = watched.run(2)
    assert outcome["status"] == "alarm"
    assert decided(outcome)[0]["n_consecutive"] == 1


def test_another_encoder_starts_a_new_comparison_and_leaves_the_old_one_aside(watched):
    for day in (0, 1):
        write_day(watched.logs, day, SHIFTED)
    assert watched.run(2)["status"] == "drift"
    watched.baseline = FakeBaseline(fingerprint="0ther", seed=1)
    write_day(watched.logs, 2, SHIFTED)
    outcome = watched.run(3)
    (window,) = decided(outcome)
    assert window["name"].startswith("2026-11-03")
    assert window["space"] == "0ther"
    assert outcome["read"]["n_before"] == 1_200
    assert "new comparison starts" in " ".join(outcome["notes"])
    assert "new comparison" not in " ".join(watched.run(3)["notes"]), "it is told once"
    assert [e["space"] for e in open_history(LANGUAGE).entries()] == ["5pace", "5pace", "0ther"]


def test_no_champion_is_an_outcome_and_no_failure(watched):
    watched.baseline = None
    outcome = watched.run(1)
    assert outcome["status"] == "no champion"
    assert "compass adapt" in next_step(outcome)


def test_an_event_that_was_written_before_a_kill_is_never_denied(watched, monkeypatch):
    for day in (0, 1):
        write_day(watched.logs, day, SHIFTED)

    add = History.add

    def die_after_the_event(history, entry):
        if "event" in entry:
            raise KeyboardInterrupt
        add(history, entry)

    with monkeypatch.context() as patched:
        patched.setattr(History, "add", die_after_the_event)
        with pytest.raises(KeyboardInterrupt):
            watched.run(2)
    (event,) = open_outbox(LANGUAGE).pending()
    watched.run(2, drift={"consecutive": 5})
    last = open_history(LANGUAGE).entries()[-1]
    assert (last["drift_detected"], last["event"]) == (True, event.id)


# ------------------------------------------------------------------ clocks
def test_a_clock_that_goes_backwards_decides_nothing_twice(watched):
    for day in range(3):
        write_day(watched.logs, day, SHIFTED)
    watched.run(3)
    before = watched.decisions()
    outcome = watched.run(1)
    assert watched.decisions() == before
    assert decided(outcome) == []
    assert any("clock went backwards" in note for note in outcome["notes"])
    assert len(open_outbox(LANGUAGE).all()) == 1


def test_prompts_that_come_after_the_decision_change_nothing_and_are_counted(watched):
    write_day(watched.logs, 0)
    watched.run(1)
    before = open_history(LANGUAGE).entries()
    write_day(watched.logs, 0, SHIFTED, n=300, prefix="x")
    outcome = watched.run(1)
    assert open_history(LANGUAGE).entries() == before
    assert outcome["read"]["n_late"] == 300
    assert "too late" in reading_text(outcome)


# ------------------------------------------------------------------ events
def test_an_event_that_cannot_be_sent_stays_pending(watched, monkeypatch):
    def refuse(_language, event, _project):
        raise TransientError(f"{event}: no connection")

    for day in (0, 1):
        write_day(watched.logs, day, SHIFTED)
    monkeypatch.setattr(monitoring, "send_event", refuse)
    outcome = watched.run(2)
    assert outcome["sent"] == []
    assert "no connection" in outcome["unsent"]
    assert "compass update" in next_step(outcome)
    assert len(open_outbox(LANGUAGE).pending()) == 1
    monkeypatch.setattr(monitoring, "send_event", lambda _l, event, _p: watched.sent.append(event))
    assert watched.run(2)["sent"] == watched.sent != []


def test_without_events_the_drift_is_only_written_down(watched):
    for day in (0, 1):
        write_day(watched.logs, day, SHIFTED)
    outcome = watched.run(2, emit_events=False)
    assert outcome["status"] == "drift"
    assert watched.sent == []
    assert "emit_events" in outcome["unsent"]


def test_nothing_is_sent_while_an_update_is_at_work(watched):
    for day in (0, 1):
        write_day(watched.logs, day, SHIFTED)
    watched.run(2)
    with open_outbox(LANGUAGE).take(watched.sent[0], now=at(2)):
        outcome = watched.run(2)
    assert outcome["sent"] == []
    assert "at work" in outcome["unsent"]


def test_one_sending_has_one_identity_and_the_next_another(watched):
    for day in (0, 1):
        write_day(watched.logs, day, SHIFTED)
    watched.run(2)
    outbox = open_outbox(LANGUAGE)
    event = outbox.get(watched.sent[0])
    assert prefect_event(event, "p").id == prefect_event(event, "p").id
    later = outbox.mark_sent(event.id, at(2))
    assert prefect_event(later, "p").id != prefect_event(event, "p").id
    resource = prefect_event(event, "p").resource
    assert resource.id == "compass.language.swh_Latn"
    assert resource["compass.project"] == "p"


# ------------------------------------------------------------------ processes
def monitor_process(home, logs, day, point=""):
    """Start a real process; it is forked from one that has the imports behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tasks.watching", "tasks.monitoring"])
    out = logs.parent / f"outcome-{uuid.uuid4().hex}.json"
    arguments = (str(home), str(logs), day, str(out), point)
    process = context.Process(target=be_monitor, args=arguments)
    process.start()
    return process, out


@pytest.mark.parametrize("point", ["publish", "put", "add", "mark", "send"])
def test_a_monitor_that_is_killed_anywhere_loses_nothing_and_does_nothing_twice(
    home, tmp_path, point
):
    logs = tmp_path / "logs"
    for day in range(4):
        write_day(logs, day, EVEN if day < 2 else SHIFTED)
    killed, _ = monitor_process(home, logs, 4, point)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL, point
    second, out = monitor_process(home, logs, 4)
    second.join(120)
    assert second.exitcode == 0
    entries = open_history(LANGUAGE).entries()
    assert [e["status"] for e in entries] == ["stable", "stable", "alarm", "alarm"]
    assert [e["drift_detected"] for e in entries] == [False, False, False, True]
    (event,) = open_outbox(LANGUAGE).all()
    assert read_json(out)["sent"] == [event.id]
    assert (tmp_path / "sent.txt").read_text().split() == [event.id]


def test_two_monitors_at_once_decide_every_window_once(home, tmp_path):
    logs = tmp_path / "logs"
    for day in range(6):
        write_day(logs, day, EVEN if day < 4 else SHIFTED)
    started = [monitor_process(home, logs, 6) for _ in range(3)]
    outcomes = []
    for process, out in started:
        process.join(120)
        assert process.exitcode == 0
        outcomes.append(read_json(out))
    names = Counter(w["name"] for outcome in outcomes for w in decided(outcome))
    assert len(names) == 6
    assert set(names.values()) == {1}
    assert len(open_outbox(LANGUAGE).all()) == 1
    assert {outcome["status"] for outcome in outcomes} <= {"drift", "waiting", "busy"}


def test_a_second_monitor_says_that_another_is_at_work(watched, monkeypatch):
    monkeypatch.setattr(monitoring, "WAIT_SECONDS", 0.1)
    write_day(watched.logs, 0)
    with file_lock(usage_folder(LANGUAGE) / "monitor.lock"):
        outcome = watched.run(1)
    assert outcome["status"] == "busy"
    assert "another monitor" in next_step(outcome)
    assert watched.run(1)["status"] == "stable"


# ------------------------------------------------------------------ the Python door, the update
def test_records_can_be_appended_from_python_and_count_once(watched):
    records = [
        {"id": i, "time": at(0).isoformat(), "prompt": f"c{i % 8} {i}", "language": "sw"}
        for i in range(400)
    ]
    Clock.moment = at(0.5)
    config = make_config(None)
    assert monitoring.append_usage(config, "Swahili", records)["n_new"] == 400
    again = monitoring.append_usage(config, "sw", [*records, {"id": "x"}])
    assert (again["n_new"], again["n_known"], again["n_rejected"]) == (0, 400, 1)
    Clock.moment = at(1)
    outcome = monitoring.monitor_language(LANGUAGE, config, ".")
    assert [w["status"] for w in decided(outcome)] == ["stable"]


def test_appended_records_that_were_decided_in_another_space_are_not_decided_again(watched):
    write_day(watched.logs, 0)
    watched.run(1)
    watched.baseline = FakeBaseline(fingerprint="0ther", seed=1)
    records = [
        {"id": i, "time": at(day).isoformat(), "prompt": f"c{i % 8} {i}", "language": "sw"}
        for i, day in enumerate([0] * 300 + [1] * 400)
    ]
    Clock.moment = at(2)
    report = monitoring.append_usage(make_config(None), "sw", records)
    assert (report["n_before"], report["n_new"]) == (300, 400)
    outcome = monitoring.monitor_language(LANGUAGE, make_config(None), ".")
    assert [w["name"][:10] for w in decided(outcome)] == ["2026-11-02"]


def test_appending_needs_a_champion(watched):
    watched.baseline = None
    with pytest.raises(DataError, match="compass adapt"):
        monitoring.append_usage(make_config(None), "sw", [])


def test_an_update_gets_the_usage_of_its_event_or_the_newest(watched):
    for day in range(6):
        write_day(watched.logs, day, SHIFTED if day in (1, 2) else EVEN)
    watched.run(3)
    watched.run(6)
    (event,) = open_outbox(LANGUAGE).all()
    config = make_config(watched.logs)
    of_event = monitoring.decided_samples(watched.baseline, config, event.id)
    newest = monitoring.decided_samples(watched.baseline, config, "")
    assert [len(sample) for sample in [*of_event, *newest]] == [600] * 4
    assert all((sample.cluster_ids == 7).mean() > 0.4 for sample in of_event)
    assert all((sample.cluster_ids == 7).mean() < 0.2 for sample in newest)
    other = FakeBaseline(fingerprint="0ther")
    assert monitoring.decided_samples(other, config, "") == []


def test_usage_of_several_windows_is_comparable_with_one_of_them(watched):
    for day in range(4):
        rows = [
            {
                "id": f"{day} {i}",
                "time": at(day).isoformat(),
                "prompt": f"c{i % 8} the same question of every day {i}",
                "language": LANGUAGE,
                "user": f"user {i % 100}",
            }
            for i in range(400)
        ]
        path = watched.logs / f"{day}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(watched.logs, drift={"consecutive": 4, "max_prompts_per_unit": 4})
    Clock.moment = at(4)
    monitoring.monitor_language(LANGUAGE, config, ".")
    samples = monitoring.decided_samples(watched.baseline, config, "")
    assert [len(sample) for sample in samples] == [400] * 4
    assert [np.bincount(sample.units).tolist() for sample in samples] == [[4] * 100] * 4
    merged = _numbered_users(samples)
    assert np.bincount(merged).tolist() == [4] * 400, "a user of two windows is one in each"


# ------------------------------------------------------------------ what is kept
def test_decided_windows_are_in_the_catalogue_once_and_survive_a_cleaning(watched):
    from compass_core.manifests import Catalog
    from compass_core.records import ArtifactRef
    from tasks.retention import plan_clean

    for day in (0, 1):
        write_day(watched.logs, day, SHIFTED)
    windows = decided(watched.run(2))
    catalog = Catalog(compass_home())
    refs = [ArtifactRef.from_dict(window["ref"]) for window in windows]
    assert catalog.add(refs).n_artifacts == 2
    assert catalog.add(refs).n_artifacts == 0
    rows = catalog.drift_windows(LANGUAGE)
    assert [row["drift_detected"] for row in rows] == [False, True]
    assert rows[1]["detail"]["name"] == rows[1]["window_name"] == windows[1]["name"]
    assert rows[1]["drift_threshold"] == pytest.approx(windows[1]["threshold"])
    assert catalog.rebuild().n_artifacts == 2
    assert catalog.drift_windows() == rows
    assert plan_clean(keep_runs=0).artefacts == []

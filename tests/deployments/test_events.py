"""From a drift event to the run of the update, on a real server with a real worker."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from compass_core.config import AdaptConfig
from compass_core.monitoring.outbox import DriftEvent
from tasks.deployments import (
    apply_automations,
    apply_deployments,
    prepare_deployments,
    read_automations,
)
from tasks.events import open_outbox, send_event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
POOL = "compass-test"
LANGUAGE = "tur_Latn"
UPDATE = "update-adapter/update-adapter"
NOW = datetime(2026, 11, 20, 6, tzinfo=UTC)


def deploy_stub(project):
    """Deploy a flow that only takes the event, and the automation that starts it."""
    config = AdaptConfig(languages=("swh_Latn", LANGUAGE), project=project)
    values = prepare_deployments(
        config, Path.cwd(), pool=POOL, scheduled=False, names=("update-adapter",)
    )
    values["deployments"][0]["entrypoint"] = "stub_update.update_adapter"
    apply_deployments(values)
    return apply_automations(read_automations())


def put_event(*windows):
    event = DriftEvent(LANGUAGE, "1", "5pace", windows, 0.001, 0.08, NOW.isoformat())
    return open_outbox(LANGUAGE).put(event).id


def run_of(server, event, number=1):
    """Return the newest run that was started for an event, once there are so many."""

    def started():
        runs = [r for r in server.runs_of(UPDATE) if r["parameters"].get("event") == event]
        return runs if len(runs) >= number else None

    runs = server.wait_for(started, f"run {number} of the update")
    assert len(runs) == number
    return max(runs, key=lambda run: run["created"])


def test_an_event_starts_the_update_of_its_language_once(connected, worker):
    assert set(deploy_stub("once").values()) <= {"created", "replaced"}
    assert set(deploy_stub("once").values()) == {"replaced"}, "applying again changes nothing"
    event = put_event("a", "b")
    send_event.fn(LANGUAGE, event)
    run = run_of(connected, event)
    assert run["parameters"]["language"] == LANGUAGE
    assert run["parameters"]["config"]["languages"] == ["swh_Latn", LANGUAGE]
    assert connected.wait_for_end(run["id"])["state"]["type"] == "COMPLETED"
    kept = open_outbox(LANGUAGE).get(event)
    assert (kept.state, len(kept.sent), len(kept.attempts)) == ("done", 1, 1)


def test_an_update_that_is_killed_is_started_again_by_the_next_sending(connected, worker):
    deploy_stub("dies-once")
    event = put_event("c", "d")
    send_event.fn(LANGUAGE, event)
    killed = connected.wait_for_end(run_of(connected, event)["id"])
    assert killed["state"]["type"] == "CRASHED"
    outbox = open_outbox(LANGUAGE)
    assert [e.id for e in outbox.pending()] == [event]
    assert not outbox.busy()
    send_event.fn(LANGUAGE, event)
    second = connected.wait_for_end(run_of(connected, event, 2)["id"])
    assert second["state"]["type"] == "COMPLETED"
    kept = outbox.get(event)
    assert (kept.state, len(kept.sent), len(kept.attempts)) == ("done", 2, 2)
    send_event.fn(LANGUAGE, event)
    third = connected.wait_for_end(run_of(connected, event, 3)["id"])
    assert third["state"]["type"] == "COMPLETED"
    assert outbox.get(event).attempts == kept.attempts, "the third run found it done"

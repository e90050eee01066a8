"""What the server does with runs that died, without a worker: states and events as they come."""

import shutil
import uuid
from datetime import UTC, datetime

import pytest

from compass_core.config import AdaptConfig
from tasks.deployments import FOLDER

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]


@pytest.fixture
def probe(connected, deploy, tmp_path):
    """A deployment that no worker serves, and automations with little patience; start its runs."""
    folder = tmp_path / "deployments"
    shutil.copytree(FOLDER, folder)
    path = folder / "automations.yaml"
    text = path.read_text("utf-8")
    assert "within: 150" in text
    assert "within: 60" in text
    text = text.replace("within: 150", "within: 20").replace("within: 60", "within: 10")
    path.write_text(text, "utf-8")
    config = AdaptConfig(languages=("sw",), project="probe")
    deploy({"update-adapter": None}, config, name="probe", folder=folder)
    flow = connected.post("/flows/", {"name": "probe"})
    body = {"name": "probe", "flow_id": flow["id"], "tags": ["compass"]}
    place = connected.post("/deployments/", body)["id"]
    yield lambda: connected.post(
        f"/deployments/{place}/create_flow_run", {"state": {"type": "SCHEDULED"}}
    )["id"]
    deploy({"update-adapter": None}, config, name="probe")  # the usual patience again


def become(server, run, state):
    body = {"state": {"type": state.upper(), "name": state}, "force": True}
    server.post(f"/flow_runs/{run}/set_state", body)


def give_sign_of_life(server, run):
    event = {
        "event": "prefect.flow-run.heartbeat",
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "related": [{"prefect.resource.id": "prefect.tag.compass", "prefect.resource.role": "tag"}],
    }
    server.post("/events", [event])


def names(server, run):
    return [state["name"] for state in server.states(run)]


def test_a_crashed_run_is_tried_twice_more_and_one_that_never_started_not_at_all(connected, probe):
    run, never = probe(), probe()
    become(connected, never, "Crashed")
    for attempt in (1, 2):
        become(connected, run, "Running")
        become(connected, run, "Crashed")
        connected.wait_for(
            lambda attempt=attempt: names(connected, run).count("AwaitingRetry") == attempt,
            f"retry {attempt}",
        )
    become(connected, run, "Running")
    become(connected, run, "Crashed")
    other = probe()
    become(connected, other, "Running")
    become(connected, other, "Crashed")
    connected.wait_for(
        lambda: names(connected, other)[-1] == "AwaitingRetry", "a later run's retry"
    )
    assert names(connected, run)[-1] == "Crashed", "the third attempt was the last"
    assert names(connected, never)[-1] == "Crashed"


def test_a_silent_run_crashes_and_one_that_ended_does_not(connected, probe):
    silent, ended = probe(), probe()
    for run in (ended, silent):
        become(connected, run, "Running")
        give_sign_of_life(connected, run)
    connected.post(
        f"/flow_runs/{ended}/set_state",
        {"state": {"type": "COMPLETED", "name": "CompletedWithFailures"}},
    )
    connected.wait_for(lambda: "AwaitingRetry" in names(connected, silent), "the retry")
    assert names(connected, silent)[-2:] == ["Crashed", "AwaitingRetry"]
    assert names(connected, ended)[-1] == "CompletedWithFailures"

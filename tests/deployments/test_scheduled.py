"""Runs on a real server with a real worker: scheduled, by the button, retried, after a death."""

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from compass_core.config import AdaptConfig
from compass_core.config_files import load_config
from tasks.deployments import FOLDER

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]
ADAPT, ONE = "adapt-languages/adapt-languages", "adapt-language/adapt-language"
POOL = "compass-scheduled"
EARLY = {"ingest", "embed", "cluster", "gap-score", "sample"}


def started(server, name, since=()):
    """Return the runs of a deployment that are not planned any more, without those of `since`."""
    known = {"SCHEDULED", "PENDING", *(run["id"] for run in since)}
    return [run for run in server.runs_of(name) if not known & {run["id"], run["state"]["type"]}]


def set_schedule(server, name, **changes):
    """Change the schedule of a deployment as the interface does."""
    deployment = server.get(f"/deployments/name/{name}")
    (schedule,) = deployment["schedules"]
    server.patch(f"/deployments/{deployment['id']}/schedules/{schedule['id']}", changes)


def cached_stages(server, run_id):
    """Return which early stages of the last attempt came out of the store."""
    cached = [t["name"] for t in server.task_runs(run_id) if t["state"]["name"] == "Cached"]
    return {stage for stage in EARLY if any(name.startswith(stage) for name in cached)}


def test_a_scheduled_run_adapts_and_the_button_finds_everything_cached(server, command, working):
    done = command("deploy", "--pool", POOL, "--replace")
    assert done.returncode == 0, done.stderr
    before = server.runs_of(ADAPT)
    every_minute = {"cron": "* * * * *", "timezone": "Etc/UTC"}
    set_schedule(server, ADAPT, schedule=every_minute, active=True)
    with working(POOL):
        server.wait_for(lambda: started(server, ADAPT, before), "a scheduled run")
        set_schedule(server, ADAPT, active=False)
        (scheduled,) = started(server, ADAPT, before)
        assert scheduled["auto_scheduled"]
        ended = server.wait_for_end(scheduled["id"])
        assert ended["state"]["name"] == "Completed", ended["state"]["message"]
        button = server.run_deployment(ADAPT)
        again = server.wait_for_end(button)
    sys.stdout.write(f"\n{server.trace(scheduled['id'], button)}")
    assert again["state"]["name"] == "Completed", again["state"]["message"]
    assert cached_stages(server, button) == EARLY


def test_a_language_that_failed_is_retried_alone_with_its_early_stages_cached(
    server, command, working, tmp_path
):
    done = command("deploy", "selection.budget=41", "--pool", POOL, "--replace", "--no-schedule")
    assert done.returncode == 0, done.stderr
    default = server.get(f"/deployments/name/{ONE}")["parameters"]["config"]
    fault = {"COMPASS_FAULT": "adapter-train.begin:raise", "COMPASS_FAULT_ONCE": str(tmp_path)}
    with working(POOL, **fault):
        run = server.run_deployment(ONE, {"config": default | {"language": "Swahili"}})
        failed = server.wait_for_end(run)
        assert failed["state"]["name"] == "Failed"
        assert "asked to fail" in failed["state"]["message"]
        server.retry(run)
        server.wait_for(lambda: server.flow_run(run)["run_count"] == 2, "the second attempt")
        ended = server.wait_for_end(run)
    sys.stdout.write(f"\n{server.trace(run)}")
    assert ended["state"]["name"] == "Completed", ended["state"]["message"]
    assert cached_stages(server, run) == EARLY


def with_children(pid):
    """Return a process and everything below it."""
    found = [pid]
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += with_children(int(child))
    return found


@pytest.fixture
def impatient(tmp_path):
    """The files, with as little patience for silent runs as heartbeats allow."""
    folder = tmp_path / "deployments"
    shutil.copytree(FOLDER, folder)
    path = folder / "automations.yaml"
    text = path.read_text("utf-8")
    assert "within: 150" in text
    path.write_text(text.replace("within: 150", "within: 45"), "utf-8")
    return folder


def test_a_run_that_died_with_its_worker_runs_again_and_ends_well(
    connected, deploy, working, small, impatient, tmp_path
):
    config = load_config(small, ["selection.budget=42"], AdaptConfig)
    flows = {"update-adapter": None, "adapt-language": None}
    deploy(flows, config, pool=POOL, folder=impatient)
    default = connected.get(f"/deployments/name/{ONE}")["parameters"]["config"]
    once = tmp_path / "once"
    once.mkdir()
    fault = {"COMPASS_FAULT": "adapter-train.begin:sleep", "COMPASS_FAULT_ONCE": str(once)}
    with working(POOL, **fault) as worker:
        run = connected.run_deployment(ONE, {"config": default | {"language": "Turkish"}})
        connected.wait_for(lambda: list(once.iterdir()), "the training")
        for pid in with_children(worker.pid):
            os.kill(pid, signal.SIGKILL)
        worker.wait()
    assert connected.flow_run(run)["state"]["name"] == "Running", "nobody knows yet"

    def retried():
        return "AwaitingRetry" in [state["name"] for state in connected.states(run)]

    connected.wait_for(retried, "the retry")
    with working(POOL, **fault):
        connected.wait_for(lambda: connected.flow_run(run)["run_count"] == 2, "the second attempt")
        ended = connected.wait_for_end(run)
    sys.stdout.write(f"\n{connected.trace(run)}")
    names = [state["name"] for state in connected.states(run)]
    assert names.index("Crashed") < names.index("AwaitingRetry")
    assert ended["state"]["name"] == "Completed", ended["state"]["message"]
    assert cached_stages(connected, run) == EARLY
    deploy(flows, config, pool=POOL)  # with the usual patience again

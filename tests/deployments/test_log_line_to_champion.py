"""From a log line to a new champion, or a stated refusal, with nobody in between.

A real server, a real worker, a real adapter on the demonstration corpus: `compass deploy` once,
then the monitor is started as the interface does it, and everything else happens by itself.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from compass_core.monitoring.outbox import Outbox
from compass_core.storage import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
POOL = "compass-test"
LANGUAGE = "swh_Latn"
MONITOR, UPDATE = "monitor-drift/monitor-drift", "update-adapter/update-adapter"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("production")


@pytest.fixture(scope="module")
def compass(server, folder):
    """The command line, connected to the server."""
    settings = ["languages=sw", "baselines=[]", "execution.trainers=0"]
    settings += [f"monitoring.log.path={folder / 'logs'}"]

    def run(*arguments):
        command, *options = arguments
        config = str(ROOT / "configs" / "starter.yaml")
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", command, config, *settings, *options],
            cwd=folder,
            env=server.env | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def trace(server, runs):
    """Return what happened when, as the server tells it."""
    rows = []
    for name, run in runs.items():
        for state in server.states(run["id"]):
            told = (state["message"] or "").split(". ")[0][:100]
            rows.append((state["timestamp"], f"{name:<16}{state['name']:<12}{told}"))
    for event in server.events("compass.drift"):
        told = f"{event['resource']['prefect.resource.id']} p={event['payload']['p_value']:.4g}"
        rows.append((event["occurred"], f"{'event':<16}{event['event']} {told}"))
    for event in server.events("prefect.automation.triggered"):
        name = event["resource"].get("prefect.resource.name", "")
        rows.append((event["occurred"], f"{'automation':<16}triggered {name}"))
    start = min(time for time, text in rows if text.startswith("monitor-drift"))
    return "".join(f"{time[11:19]}  {text}\n" for time, text in sorted(rows) if time >= start)


def test_a_log_line_becomes_a_new_champion_or_a_stated_refusal(server, worker, compass, folder):
    compass("adapt")
    compass("simulate-usage", "--out", str(folder / "logs"))
    told = compass("deploy", "--pool", POOL, "--replace")
    assert "daily 0 6 * * * Etc/UTC, next 20" in told
    assert "compass-update-after-drift" in compass("deploy", "--pool", POOL)
    known = {run["id"] for run in server.runs_of(UPDATE)}

    monitor = server.wait_for_end(server.run_deployment(MONITOR))
    assert monitor["state"]["name"] == "Completed", monitor["state"]["message"]
    assert f"drift {LANGUAGE}" in monitor["state"]["message"]

    def started():
        return [run for run in server.runs_of(UPDATE) if run["id"] not in known]

    (run,) = server.wait_for(started, "the update's run")
    update = server.wait_for_end(run["id"], 900)
    sys.stdout.write(f"\n{trace(server, {'monitor-drift': monitor, 'update-adapter': update})}")
    assert update["state"]["type"] == "COMPLETED", update["state"]["message"]

    outbox = Outbox(Path(server.env["COMPASS_HOME"]) / "usage" / LANGUAGE / "events")
    (event,) = outbox.all()
    sys.stdout.write(f"outbox: {event.state}, {event.outcome['status']}, ")
    sys.stdout.write(f"version {event.outcome['version']}\n")
    sys.stdout.write("".join(f"  {reason}\n" for reason in event.outcome["reasons"]))
    assert run["parameters"]["language"] == LANGUAGE
    assert run["parameters"]["event"] == event.id
    assert event.state == "done"
    assert event.outcome["status"] in ("promoted", "refused")
    assert event.outcome["reasons"]
    runs = Path(server.env["COMPASS_HOME"]) / "runs"
    assert event.id in (runs / "monitoring.json").read_text(encoding="utf-8")

    again = server.wait_for_end(server.run_deployment(MONITOR))
    outcome = read_json(runs / "monitor.json")["languages"][LANGUAGE]
    assert again["state"]["name"] == "Completed"
    assert (outcome["sent"], outcome["pending"]) == ([], [])
    repeated = server.wait_for_end(server.run_deployment(UPDATE, run["parameters"]))
    assert repeated["state"]["name"] == "AlreadyDone"

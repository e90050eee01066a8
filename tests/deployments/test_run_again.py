"""A failed language on a real server: it is seen at a glance, and a click runs it alone again."""

import json
import re
from urllib.parse import parse_qs, urlsplit

import pytest

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]
ADAPT = "adapt-languages/adapt-languages"
POOL = "compass-again"
GOOD, BAD = "swh_Latn", "tur_Latn"
EARLY = ("ingest", "embed", "cluster", "gap-score", "sample")


def artifacts_of(server, run_id):
    """Return the pages of a run by key."""
    body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}, "limit": 100}
    return {page["key"]: page for page in server.post("/artifacts/filter", body)}


def states_of_tasks(server, run_id):
    return {task["name"]: task["state"]["name"] for task in server.task_runs(run_id)}


def parameters_behind(link):
    """Return what the interface fills the form with that a link opens."""
    return json.loads(parse_qs(urlsplit(link).query)["parameters"][0])


def test_the_outcome_names_the_failed_language_and_its_link_runs_it_alone(
    server, command, working, tmp_path
):
    done = command("deploy", "selection.budget=43", "--pool", POOL, "--replace", "--no-schedule")
    assert done.returncode == 0, done.stderr
    fault = f"adapter-train.begin@{BAD}:raise"
    with working(POOL, COMPASS_FAULT=fault, COMPASS_FAULT_ONCE=str(tmp_path)):
        first = server.run_deployment(ADAPT)
        ended = server.wait_for_end(first)
        assert ended["state"]["name"] == "CompletedWithFailures"
        assert ended["state"]["message"].startswith(
            "1 of 2 languages failed: Turkish (tur_Latn). tur_Latn: "
        )
        assert states_of_tasks(server, first)[f"adapt-{BAD}"] == "Failed"
        pages = artifacts_of(server, first)
        assert pages["outcome-small"]["description"] == f"1 of 2 languages done; failed: {BAD}"
        assert pages["progress-small"]["description"] == "1 of 2 languages done, 1 failed"
        assert {"gap-swh-latn", "evaluation-swh-latn", "report"} <= pages.keys()
        (link,) = re.findall(r"\((/v2/deployments/[^)]*)\)", pages["outcome-small"]["data"])
        assert server.get(f"/deployments/name/{ADAPT}")["id"] in link
        again = server.run_deployment(ADAPT, parameters_behind(link))
        ended = server.wait_for_end(again)
    assert ended["state"]["name"] == "Completed", ended["state"]["message"]
    states = states_of_tasks(server, again)
    assert not [name for name in states if GOOD in name], "the other language is left alone"
    assert states[f"adapter-train {BAD}"] == "Completed"
    for stage in EARLY:
        found = {name: state for name, state in states.items() if name.startswith(stage)}
        assert found, stage
        assert set(found.values()) == {"Cached"}, found
    assert artifacts_of(server, again)["progress-small"]["description"] == "1 of 1 languages done"

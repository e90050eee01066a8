"""One deployment run per language, on a real server with a real worker."""

import time
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from compass_core.config import AdaptConfig
from compass_core.errors import ConfigError
from flows.fanout import check_fan_out
from tasks.reporting import read_run
from tests.deployments.conftest import POOL, SMALL

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]
PARENT, CHILD = "adapt-languages/fleet", "adapt-language/fleet"
GOOD, UNKNOWN = "swh_Latn", "kin_Latn"


def fleet(**values):
    execution = {"trainers": 0, "max_parallel": 2, "fan_out": "deployments"}
    execution["language_deployment"] = CHILD
    return AdaptConfig.model_validate(SMALL | {"project": "fleet", "execution": execution} | values)


def deploy(pool, name, *flows):
    from prefect.client.orchestration import get_client

    from tasks.deployments import FOLDER, Wanted, apply_deployments, prepare_deployments
    from tasks.work_pools import read_pool_kind

    wanted = Wanted(fleet(), pool, read_pool_kind(FOLDER, "process", Path.cwd(), name=name), name)
    with get_client(sync_client=True) as client:
        apply_deployments(client, prepare_deployments(wanted, only=flows), wanted, replace=True)


@pytest.fixture
def deployed(connected):
    """Both flows, deployed under a name of their own."""
    if not is_deployed(connected, CHILD):
        deploy(POOL, "fleet", "adapt-languages", "adapt-language")
    return connected


def is_deployed(server, name):
    return httpx.get(f"{server.url}/deployments/name/{name}", timeout=60).is_success


def start(server, config):
    return server.run_deployment(PARENT, {"config": config.model_dump(mode="json")})


def children(server, parent):
    """Return the runs of one parent by language."""
    found = [
        run for run in server.runs_of(CHILD) if (run["idempotency_key"] or "").startswith(parent)
    ]
    return {run["parameters"]["config"]["language"]: run for run in found}


def test_every_language_is_a_run_and_the_parent_reports_them_all(deployed, worker):
    parent = start(deployed, fleet(languages=[GOOD, UNKNOWN, "tur_Latn"]))
    ended = deployed.wait_for_end(parent, 1200)
    assert ended["state"]["name"] == "CompletedWithFailures", ended["state"]["message"]
    runs = children(deployed, parent)
    # Nothing is started for a language that cannot work.
    assert set(runs) == {GOOD, "tur_Latn"}
    assert {run["state"]["type"] for run in runs.values()} == {"COMPLETED"}
    assert all(run["parent_task_run_id"] for run in runs.values())
    record = read_run(deployed_run(parent))
    assert record["languages"][UNKNOWN]["error"].startswith("E51")
    for language in (GOOD, "tur_Latn"):
        outcome = record["languages"][language]
        assert outcome["status"] in {"promoted", "kept"}
        assert outcome["artifacts"]["gap-score"]["fingerprint"]
    # The pool was embedded by the parent alone: what a child ran of it came from the store.
    shared = [t for run in runs.values() for t in deployed.task_runs(run["id"])]
    pool = [t["state"]["name"] for t in shared if t["name"] == "embed all languages"]
    assert pool
    assert set(pool) == {"Cached"}


def deployed_run(parent):
    """Return the id of the run's folder."""
    from compass_core.storage import read_json
    from tasks.settings import runs_folder

    found = [read_json(path) for path in runs_folder().glob("*/run.json")]
    return next(r["run_id"] for r in found if r["prefect_flow_run_id"] == parent)


def test_cancelling_the_parent_cancels_its_languages(deployed, worker):
    training = SMALL["training"] | {"min_steps": 100_000, "max_steps": 100_000}
    parent = start(deployed, fleet(training=training))

    def both_run():
        states = [run["state"]["type"] for run in children(deployed, parent).values()]
        return states == ["RUNNING"] * 2

    deployed.wait_for(both_run, "the start of both languages", 900)
    time.sleep(5)
    body = {"state": {"type": "CANCELLING"}}
    deployed.post(f"/flow_runs/{parent}/set_state", body)
    assert deployed.wait_for_end(parent)["state"]["type"] == "CANCELLED"
    for run in children(deployed, parent).values():
        assert deployed.wait_for_end(run["id"])["state"]["type"] == "CANCELLED"


def test_a_language_that_is_cancelled_is_a_failure_of_that_language(deployed, worker):
    training = SMALL["training"] | {"min_steps": 100_000, "max_steps": 100_000}
    parent = start(deployed, fleet(languages=[GOOD], training=training))

    def runs():
        return children(deployed, parent).get(GOOD)

    child = deployed.wait_for(runs, "the start of the language", 900)
    body = {"state": {"type": "CANCELLING"}}
    deployed.post(f"/flow_runs/{child['id']}/set_state", body)
    ended = deployed.wait_for_end(parent)
    assert ended["state"]["type"] == "FAILED"
    assert "E96" in ended["state"]["message"]


def test_a_deployment_that_does_not_exist_is_told(connected):
    with (
        temporary_settings({PREFECT_API_URL: connected.url}),
        pytest.raises(ConfigError, match=r"adapt-language/nobody.*compass deploy"),
    ):
        check_fan_out("adapt-language/nobody")


def test_a_pool_without_workers_is_a_warning(connected, caplog):
    deploy("lonely", "lonely", "adapt-language")
    check_fan_out("adapt-language/lonely")
    assert "prefect worker start --pool lonely" in caplog.text

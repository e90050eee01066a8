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

pytestmark = pytest.mark.slow
POOL = "compass-test"
NOW = datetime(2026, 11, 20, 6, tzinfo=UTC)


@pytest.fixture
def deployed(connected, worker):
    """The stub of the update, deployed twice: applying again changes nothing."""
    config = AdaptConfig(languages=("swh_Latn", "tur_Latn"))
    values = prepare_deployments(config, Path.cwd(), pool=POOL, scheduled=False, names=())
    (stub,) = [d for d in values["deployments"] if d["name"] == "update-adapter"]
    stub["entrypoint"] = "stub_update.update_adapter"
    values["deployments"] = [stub]
    apply_deployments(values)
    assert apply_automations(read_automations()) == {"compass-update-after-drift": "created"}
    assert apply_automations(read_automations()) == {"compass-update-after-drift": "replaced"}
    return connected


def test_an_event_starts_the_update_of_its_language_once(deployed):
    outbox = open_outbox("swh_Latn")
    put = outbox.put(DriftEvent("swh_Latn", "1", "s", ("a", "b"), 0.001, 0.08, NOW.isoformat()))
    send_event.fn("swh_Latn", put.id)
    (run,) = deployed.wait_for(
        lambda: deployed.runs_of("update-adapter/update-adapter"), "the update's run"
    )
    assert run["parameters"]["language"] == "swh_Latn"
    assert run["parameters"]["event"] == put.id
    assert run["parameters"]["config"]["languages"] == ["swh_Latn", "tur_Latn"]
    ended = deployed.wait_for_end(run["id"])
    assert ended["state"]["type"] == "COMPLETED"
    assert outbox.get(put.id).state == "done"

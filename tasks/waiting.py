"""Waiting in line: a run whose language is taken gives its worker back and comes again later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateDetails, StateType
from prefect.exceptions import Abort
from prefect.runtime import deployment, flow_run

WAIT_SECONDS = 60


def wait_in_line(why: str, *, seconds: float = WAIT_SECONDS) -> None:
    """Let the server start this run again later, as it does at a deployment's own limit.

    Prefect's limits are per deployment and cannot tell languages apart. Nothing happens to a run
    that no worker started, because nobody would start it again.

    Raises:
        Abort: the run was given back; its process ends without a result.
    """
    run_id = flow_run.get_id()
    if not (run_id and deployment.id):
        return
    when = datetime.now(UTC) + timedelta(seconds=seconds)
    later: State[None] = State(
        type=StateType.SCHEDULED,
        name="AwaitingConcurrencySlot",
        message=why,
        state_details=StateDetails(scheduled_time=when),
    )
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, later)
    raise Abort(why)

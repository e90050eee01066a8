"""Call a flow from the command line, with a server that may be down, or go away meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed

from compass_core.errors import TransientError
from flows.terminal import ERR
from tasks.local_server import guard_temporary_server
from tasks.outage import is_outage, note_outage, quieten, server_answers

LOST = (
    "The Prefect server went away: its page of this run is not up to date and will not be. The "
    "results are complete."
)


def call_flow(call: Callable[[], State[Any]], is_written: Callable[[], bool]) -> State[Any]:
    """Call a flow and return its state; what a lost server could not be told is no failure.

    Args:
        call: Runs the flow, with ``return_state=True``.
        is_written: Whether the flow has written its record, which comes last.

    Raises:
        TransientError: the server does not answer, or went away before the record was written.
    """
    guard_temporary_server()
    if not os.environ.get("COMPASS_DEBUG"):
        quieten()
    try:
        return call()
    except Exception as error:
        if not is_outage(error) or server_answers():
            raise
        note_outage(error)
        if not is_written():
            raise TransientError(
                "The Prefect server went away and the run could not go on. Start it again and run "
                "the same command: finished work is kept.",
                code="E93",
            ) from error
    ERR.print(LOST, markup=False)
    return Completed(message=LOST)

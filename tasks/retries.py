"""Which failures deserve another attempt."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from compass_core.errors import TransientError

RETRIES = 2
RETRY_DELAYS_SECONDS = [2.0, 20.0]


def retry_if_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry what the outside world did to us; never what the caller must fix."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, TransientError)

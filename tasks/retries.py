"""Which failures deserve another attempt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from compass_core.errors import TransientError
from tasks.interruption import sleep_or_stop

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
RETRIES = 2
RETRY_DELAYS_SECONDS = [2.0, 20.0]


def retry_if_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry what the outside world did to us; never what the caller must fix."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, TransientError)


class _Options(TypedDict):
    retries: int
    retry_delay_seconds: list[float]
    retry_condition_fn: Callable[[Task[..., Any], TaskRun, State[Any]], bool]


RETRIED: _Options = {
    "retries": RETRIES,
    "retry_delay_seconds": RETRY_DELAYS_SECONDS,
    "retry_condition_fn": retry_if_transient,
}
"""Options of a task that is repeated after what may pass."""


def with_retries(call: Callable[[], T]) -> T:
    """Return what `call` returns; repeat what may pass as often as a task is repeated."""
    for delay in RETRY_DELAYS_SECONDS[:RETRIES]:
        try:
            return call()
        except TransientError as error:
            _LOG.warning("%s Tried again in %g s.", error, delay)
            sleep_or_stop(delay)
    return call()

"""The global limit on trainings: a slot that every training holds, on whatever machine it runs.

Processes and machines know nothing of each other, so the Prefect server counts. A slot is a lease:
its holder renews it, and what a killed holder held is free again once the lease has run out.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.runtime import task_run

from compass_core.config import ExecutionConfig
from compass_core.errors import ConfigError, TransientError
from tasks.interruption import go_on_or_raise, sleep_or_stop
from tasks.progress import beat

_LOG = logging.getLogger(__name__)
LEASE_SECONDS = 60
"""The server's shortest; a killed holder's slot is free up to 15 s after that."""
_LOCKED = 423
_LONGEST_WAIT_SECONDS = 5.0


def check_training_limit(execution: ExecutionConfig) -> None:
    """Ask for the limit before anything expensive starts.

    Raises:
        ConfigError: the server has no such limit, or its slots are none.
        TransientError: the server did not answer.
    """
    name = execution.training_limit
    if not name:
        return
    try:
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        raise _no_limit(name) from None
    except httpx.HTTPError as error:
        raise TransientError(f"The Prefect server did not answer: {error}") from error
    if limit.active and limit.limit < 1:
        raise ConfigError(
            f"execution.training_limit={name}: the limit is {limit.limit}, so no training would "
            f"ever start. Raise it: prefect gcl update {name} --limit 1"
        )


def _no_limit(name: str) -> ConfigError:
    return ConfigError(
        f"execution.training_limit={name}: the Prefect server has no global concurrency limit of "
        f"that name. Create it, with as many slots as there are GPUs: "
        f"prefect gcl create {name} --limit 1"
    )


@contextlib.contextmanager
def training_slot(execution: ExecutionConfig, language: str, stage: str) -> Iterator[None]:
    """Hold a slot of `execution.training_limit` while the block runs; wait for one first.

    A server that is away never ends a training: what is nearly done is worth more than the limit,
    and another training may then run beside it.

    Raises:
        ConfigError: the limit was removed.
        TransientError: the server did not answer.
        CompassError: the run was asked to stop while it waited.
    """
    name = execution.training_limit
    if not name:
        yield
        return

    def tell() -> None:
        beat(language, stage, "running", detail=f"waits for {name}")

    with global_slot(name, tell):
        yield


@contextlib.contextmanager
def global_slot(name: str, tell: Callable[[], None]) -> Iterator[None]:
    """Hold a slot of a global limit while the block runs; call `tell` once if it has to wait.

    Raises:
        ConfigError: there is no such limit.
        TransientError: the server did not answer.
        CompassError: the run was asked to stop while it waited.
    """
    held = contextlib.ExitStack()
    _wait_for_slot(held, name, tell)
    try:
        yield
    finally:
        try:
            held.close()
        except Exception as error:
            _LOG.warning("The slot of %s is freed by its lease: %s", name, error)


def _wait_for_slot(held: contextlib.ExitStack, name: str, tell: Callable[[], None]) -> None:
    """Enter the limit; asked again and again, because Prefect's own wait cannot be interrupted."""
    told = False
    while True:
        go_on_or_raise()
        try:
            held.enter_context(_slot(name))
        except Exception as error:
            pause = _pause(name, error)
        else:
            return
        if not told:
            tell()
            told = True
        sleep_or_stop(pause)


def _slot(name: str) -> contextlib.AbstractContextManager[None]:
    run = task_run.id
    return concurrency(
        name,
        strict=True,
        max_retries=0,
        lease_duration=LEASE_SECONDS,
        raise_on_lease_renewal_failure=False,
        holder=ConcurrencyLeaseHolder(type="task_run", id=run) if run else None,
    )


def _pause(name: str, error: Exception) -> float:
    """Return the seconds until the next attempt if the slots are taken.

    Raises:
        ConfigError: there is no such limit.
        TransientError: whatever else kept the server from granting the slot.
    """
    cause = error.__cause__
    if isinstance(cause, httpx.HTTPStatusError):
        if cause.response.status_code == _LOCKED:
            wanted = float(cause.response.headers.get("Retry-After", 1.0))
            return min(wanted, _LONGEST_WAIT_SECONDS)
    elif "must be created" in str(error):
        raise _no_limit(name) from None
    raise TransientError(f"No slot of {name} could be taken: {error} ({cause})") from error

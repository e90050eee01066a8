"""One run at a time per language: a second one waits, and then finds everything done.

Nothing depends on it for its correctness, because an artefact is published once whoever makes it.
It saves two trainings of the same adapter, and keeps promotions of a language in their order.

A lock of the kernel in the store's folder serves all processes of one machine and, on a shared
folder, of all machines; it vanishes with its process. On object storage there are no locks: then a
slot of the Prefect server, ``compass-language-<code>``, is held as well. Locks are always taken in
this order: an update's outbox, the language, a stage, a training slot; so none can wait for another
in a circle.
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.exceptions import MissingContextError, ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings

from compass_core.errors import ConfigError, TransientError
from compass_core.languages import language_name
from compass_core.object_store import is_url
from tasks.interruption import sleep_or_stop
from tasks.limits import global_slot
from tasks.settings import store_address, store_root

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_TELL_AGAIN_SECONDS = 600.0
_held: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("held", default=frozenset())


@contextlib.contextmanager
def language_slot(language: str) -> Iterator[None]:
    """Hold a language (canonical code) while the block runs; wait for another holder first.

    Inside a block that holds the language already nothing happens.

    Raises:
        CompassError: the run was asked to stop while it waited.
    """
    if language in _held.get():
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_machine_lock(language))
        if is_url(store_address()):
            stack.enter_context(_server_slot(language))
        token = _held.set(_held.get() | {language})
        try:
            yield
        finally:
            _held.reset(token)


@contextlib.contextmanager
def _machine_lock(language: str) -> Iterator[None]:
    path = store_root() / "locks" / f"language-{language}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _wait_for_lock(descriptor, path, language)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(descriptor)  # the file stays: unlinking it would race with a waiter


def _wait_for_lock(descriptor: int, path: Path, language: str) -> None:
    tell_at = 0.0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            return
        if time.monotonic() >= tell_at:
            _say(
                logging.INFO,
                "%s is being worked on by %s; this run waits for it.",
                _named(language),
                _holder(path),
            )
            tell_at = time.monotonic() + _TELL_AGAIN_SECONDS
        sleep_or_stop(_POLL_SECONDS)


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"


@contextlib.contextmanager
def _server_slot(language: str) -> Iterator[None]:
    """Hold the language among all machines, as far as there is a server that all of them share."""
    name = f"compass-language-{language}"
    with contextlib.ExitStack() as held:
        if not get_current_settings().api.url:
            why = "PREFECT_API_URL names no server that machines share"
            _say(logging.WARNING, _ALONE, _named(language), why)
        else:
            try:
                _create_limit(name)
                held.enter_context(global_slot(name, lambda: _tell_waiting(language, name)))
            except (TransientError, ConfigError, httpx.HTTPError) as error:
                _say(logging.WARNING, _ALONE, _named(language), error)
        yield


_ALONE = (
    "Another machine may work on %s at the same time (%s). Results stay right: of artefacts made "
    "twice one is kept."
)


def _tell_waiting(language: str, name: str) -> None:
    _say(
        logging.INFO,
        "%s is being worked on by a run on another machine, which holds %s; this run waits for it.",
        _named(language),
        name,
    )


def _create_limit(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            limit = GlobalConcurrencyLimitCreate(name=name, limit=1, active=True)
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(limit)


def _named(language: str) -> str:
    return f"{language_name(language)} ({language})"


def _say(level: int, message: str, *values: object) -> None:
    try:
        get_run_logger().log(level, message, *values)
    except MissingContextError:
        _LOG.log(level, message, *values)

"""Whether the run was asked to stop, for everything that would otherwise start more work."""

from __future__ import annotations

import threading
import time

from compass_core.errors import CompassError

_stopped = threading.Event()


def request_stop() -> None:
    """Let no stage and no job of this process start from now on."""
    _stopped.set()


def allow_work() -> None:
    """Forget an earlier request; called when a run starts."""
    _stopped.clear()


def stop_requested() -> bool:
    """Return whether the run was asked to stop."""
    return _stopped.is_set()


def go_on_or_raise() -> None:
    """Return if the run may go on.

    Raises:
        CompassError: the run was asked to stop; finished work is kept.
    """
    if _stopped.is_set():
        raise CompassError("The run was interrupted; finished work is kept.", code="E92")


def sleep_or_stop(seconds: float) -> None:
    """Sleep, but not through a request to stop.

    Raises:
        CompassError: the run was asked to stop.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        go_on_or_raise()
        time.sleep(min(left, 0.25))

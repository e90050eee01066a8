"""Whether the run was asked to stop, for everything that would otherwise start more work."""

from __future__ import annotations

import threading

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

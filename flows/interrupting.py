"""Ctrl-C and SIGTERM: heavy work stops at once, the run is reported, and nothing is left behind.

Whatever is finished lies in the store already, so ending at any moment loses nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from tasks.interruption import request_stop

GRACE_SECONDS = 10.0
"""Time for stages that run inside this process, and for the report to Prefect."""
_asked = threading.Event()
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


def handle_signals() -> None:
    """Handle Ctrl-C and SIGTERM in this process from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
    if _asked.is_set():  # the second Ctrl-C means now
        _leave(code)
    _asked.set()  # not `stop_requested`: Prefect ends the run first, which stops the work, too
    request_stop()
    # Not sys.stderr: the signal may have interrupted a write to it.
    os.write(2, b"\nInterrupted. Run the same command again: finished work is kept.\n")
    compute = sys.modules.get("tasks.compute")
    if compute is not None:
        compute.kill_trainers()
    timer = threading.Timer(GRACE_SECONDS, _leave, (code,))
    timer.daemon = True
    timer.start()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(code)


def leave_without_server(code: int) -> None:
    """End now if the Prefect server was lost; Prefect would try for minutes to tell it the rest."""
    outage = sys.modules.get("tasks.outage")
    if outage is not None and outage.server_is_lost():
        _leave(code)


def _leave(code: int) -> None:
    """End without waiting for anybody; child processes notice and end too."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

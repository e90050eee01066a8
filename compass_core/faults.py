"""Named points at which a test may make a process fail; without `COMPASS_FAULT` they do nothing.

    COMPASS_FAULT=cluster.built:kill                  this process ends as by kill -9
    COMPASS_FAULT=cluster.begin@swh_Latn:raise        RuntimeError, in one language
    COMPASS_FAULT=sample.built:full,embed.begin:stop  a full disk; SIGSTOP, until SIGCONT

With `COMPASS_FAULT_ONCE` (a folder) each entry strikes once, whichever process comes first, so that
a run that is retried with the same environment gets past it.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

FAULT = "COMPASS_FAULT"
FAULT_ONCE = "COMPASS_FAULT_ONCE"


def fault_point(name: str, language: str = "") -> None:
    """Fail here if the environment asks for it.

    Args:
        name: ``stage.point``, for example ``cluster.built``.
        language: Canonical code of the language at work; empty where there is none.
    """
    asked = os.environ.get(FAULT)
    if not asked:
        return
    for entry in asked.split(","):
        place, _, action = entry.strip().partition(":")
        point, _, only = place.partition("@")
        if point == name and only in ("", language) and _is_first(entry.strip()):
            _strike(action or "kill", name)


def _is_first(entry: str) -> bool:
    folder = os.environ.get(FAULT_ONCE)
    if not folder:
        return True
    try:
        (Path(folder) / entry.replace("/", "_")).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _strike(action: str, name: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "raise":
        raise RuntimeError(f"asked to fail at {name}")
    else:
        raise ValueError(f"{FAULT} knows kill, stop, raise and full (got {action!r})")

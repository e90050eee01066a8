"""Benchmark arms in processes of their own, with their peak memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_EVERY_S = 0.005
_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)


def run_child(script: str, *arguments: str, threads: int = 0) -> tuple[dict[str, Any], float]:
    """Run `script` and return the JSON object it prints last, and its peak RssAnon in MiB.

    RssAnon is what the process itself holds: heap and stacks, without pages of mapped files.

    Args:
        script: path of the script.
        arguments: its command line.
        threads: threads of the linear algebra; 0 leaves the choice to it.
    """
    environment = dict(os.environ)
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    child = subprocess.Popen(
        [sys.executable, script, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while child.poll() is None:
        peak = max(peak, anonymous_kib(child.pid))
        time.sleep(_EVERY_S)
    printed = child.communicate()[0]
    if child.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} ended with {child.returncode}")
    return json.loads(printed.splitlines()[-1]), peak / 1024


def anonymous_kib(pid: int) -> int:
    """Return RssAnon of a process in KiB; 0 when it has just ended."""
    try:
        found = _ANONYMOUS.search(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0

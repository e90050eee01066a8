"""The real `update-adapter`, of which only the work between its locks is a stub.

By the configuration's project: `dies-once` is killed with SIGKILL in its first attempt while it
holds the event; `takes-long` works until it is told to end, and writes down from when to when.
"""

import os
import signal
import time
from datetime import UTC, datetime

from flows import update_adapter as real
from tasks.events import open_outbox
from tasks.settings import compass_home

PATIENCE_SECONDS = 240


def stub(config, language, event):
    """Decide nothing."""
    if config.project == "dies-once" and len(open_outbox(language).get(event).attempts) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.project == "takes-long":
        work_until_told(language)
    return {
        "status": "refused",
        "registry": {"name": "", "version": "", "run_id": ""},
        "verdict": {"promote": False, "reasons": ["a stub decides nothing"]},
    }


def work_until_told(language):
    """Be at work until the test says that it has seen enough."""
    start = datetime.now(UTC)
    (compass_home() / f"at-work-{language}").touch()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (compass_home() / "enough").exists():
        assert time.monotonic() < deadline, "nobody said that it is enough"
        time.sleep(0.2)
    with (compass_home() / "intervals.txt").open("a") as lines:
        lines.write(f"{language} {start.isoformat()} {datetime.now(UTC).isoformat()}\n")


real._update = stub
real.write_dashboard = lambda: None
update_adapter = real.update_adapter

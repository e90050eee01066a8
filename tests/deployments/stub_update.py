"""A flow with the signature of `update-adapter` that takes the event and finishes it at once.

In the project `dies-once` the first attempt is killed with SIGKILL while it holds the event.
"""

import os
import signal
from datetime import UTC, datetime

from prefect import flow

from compass_core.config import AdaptConfig
from tasks.events import open_outbox


@flow(name="update-adapter")
def update_adapter(config: AdaptConfig, language: str, event: str = "") -> str:
    """Take the event, note the outcome."""
    outbox = open_outbox(language)
    with outbox.take(event, now=datetime.now(UTC)) as taken:
        if taken is None:
            return "done already"
        if config.project == "dies-once" and len(taken.attempts) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        outbox.finish(event, {"status": "refused", "reasons": ["a stub decides nothing"]})
    return "done"

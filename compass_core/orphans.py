"""No process of ours outlives the one that started it."""

from __future__ import annotations

import os
import threading
import time

_POLL_SECONDS = 1.0


def exit_with_parent(parent: int) -> None:
    """End this process within a second or two of its parent's end, however that came about.

    A killed parent runs no clean-up, and a trainer would go on computing for nobody.

    Args:
        parent: Process id of the parent, taken there.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()

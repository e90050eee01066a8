"""What is going on right now, for whoever watches: the terminal, a log, a Prefect artifact.

Tasks report into one board per process; a watcher is any function that takes a `Beat`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Beat:
    """One piece of news.

    Attributes:
        language: Canonical code; empty for work shared by all languages.
        stage: Stage or arm, for example ``cluster`` or ``adapter-train compass``.
        state: ``running``, ``done``, ``cached`` (kept from an earlier run), ``failed``, or
            ``finished`` for the end of the language.
        fraction: Share of the stage that is done, in [0, 1].
        detail: A few words for a person.
    """

    language: str
    stage: str
    state: str
    fraction: float = 0.0
    detail: str = ""


Watcher = Callable[[Beat], None]
_watchers: list[Watcher] = []
_guard = threading.Lock()
_work = threading.local()


def note_work() -> None:
    """Remember that this thread made an artefact, instead of finding it."""
    _work.pieces = pieces_of_work() + 1


def pieces_of_work() -> int:
    """Return how many artefacts this thread has made."""
    return getattr(_work, "pieces", 0)


def watch(watcher: Watcher) -> Callable[[], None]:
    """Call `watcher` with every beat from now on; the returned function ends that."""
    with _guard:
        _watchers.append(watcher)

    def stop() -> None:
        with _guard:
            _watchers.remove(watcher)

    return stop


def beat(language: str, stage: str, state: str, fraction: float = 0.0, detail: str = "") -> None:
    """Tell every watcher."""
    news = Beat(language, stage, state, fraction, detail)
    with _guard:
        watchers = list(_watchers)
    for watcher in watchers:
        watcher(news)

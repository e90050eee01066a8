"""The progress of a run in Prefect's interface: a table per run, and a log line per stage.

The table is an artifact that a thread of its own brings up to date. It is for people: a server that
is slow or away makes it late, never the run.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import MissingContextError
from prefect.runtime import flow_run

from compass_core.languages import language_name
from compass_core.report.markup import duration
from compass_core.report.progress import Board
from tasks.events import server_address
from tasks.progress import Beat, watch

_LOG = logging.getLogger(__name__)
_INTERVAL_SECONDS: Final = 2.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
_LAST_POST_SECONDS: Final = 3.0
"""How long the end of a run waits for the table to be brought up to date."""
_TIMEOUT_SECONDS: Final = 10.0

Post = Callable[[str, str], None]
"""Shows the table with this description, as one artifact from first to last."""


@contextlib.contextmanager
def live_progress(name: str, languages: Sequence[str]) -> Iterator[Board]:
    """Show the progress of this run in the interface while the block runs.

    Args:
        name: What the key of the table ends with: the project, or the language.
        languages: Canonical codes, in the order of the run.
    """
    board = Board(languages)
    loggers = _run_logger()

    def told(beat: Beat) -> None:
        board.tell(beat.language, beat.stage, beat.state, beat.fraction, beat.detail)
        for logger in loggers:
            _log(logger, board, beat)

    stop = watch(told)
    run_id = flow_run.get_id()
    # Nobody looks into the server of one command, which ends with it.
    with (
        Poster(board, _artifact(f"progress-{name}", run_id))
        if run_id and server_address()
        else (contextlib.nullcontext())
    ):
        try:
            yield board
            board.finish()
        finally:
            stop()


class Poster:
    """Posts a board when it has changed, at most every `interval_seconds`, until the block ends.

    Args:
        board: What to show.
        post: Shows it; whatever it raises is logged, and the pause before the next try doubles.
        interval_seconds: Least time between two posts.
    """

    def __init__(
        self, board: Board, post: Post, interval_seconds: float = _INTERVAL_SECONDS
    ) -> None:
        self._board, self._post, self._interval = board, post, interval_seconds
        self._started = time.monotonic()
        self._over = threading.Event()
        # Prefect's settings travel with the context.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._follow,), name="live-progress", daemon=True
        )

    def __enter__(self) -> Poster:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(_LAST_POST_SECONDS)

    def _follow(self) -> None:
        shown, pause = -1, self._interval
        while not self._over.is_set():
            version = self._board.version
            if version != shown:
                done = self._show(over=False)
                shown = version if done else shown
                pause = self._interval if done else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            self._over.wait(pause)
        self._show(over=True)

    def _show(self, *, over: bool) -> bool:
        try:
            text = self._board.markdown(
                elapsed=duration(time.monotonic() - self._started),
                updated=f"{datetime.now(UTC):%H:%M:%S} UTC",
                over=over,
            )
            self._post(text, self._board.headline(over=over))
        except Exception as error:
            _LOG.debug("The progress could not be shown: %s", error)
            return False
        return True


def _artifact(key: str, run_id: str | None) -> Post:
    """Return what posts a table as one artifact of this run."""
    made: list[UUID] = []

    def post(markdown: str, description: str) -> None:
        with get_client(sync_client=True, httpx_settings={"timeout": _TIMEOUT_SECONDS}) as client:
            if made:
                news = ArtifactUpdate(data=markdown, description=description)
                client.update_artifact(made[0], news)
                return
            first = ArtifactCreate(
                key=key,
                type="markdown",
                data=markdown,
                description=description,
                flow_run_id=UUID(run_id) if run_id else None,
            )
            made.append(client.create_artifact(first).id)

    return post


def _run_logger() -> list[Any]:
    try:
        return [get_run_logger()]
    except MissingContextError:
        return []


def _log(logger: Any, board: Board, beat: Beat) -> None:
    """Write a line per stage that was worked on, and one per language that ended."""
    name = f"{language_name(beat.language)} ({beat.language})" if beat.language else "All languages"
    if beat.state == "done":
        logger.info("%s: %s done in %s", name, beat.stage, beat.detail)
    elif beat.state == "failed":
        logger.error("%s: %s FAILED %s", name, beat.stage, beat.detail)
    elif beat.state == "finished":
        kept, made = board.kept_and_made(beat.language)
        logger.info("%s; %d stages kept from earlier runs, %d made", beat.detail, kept, made)

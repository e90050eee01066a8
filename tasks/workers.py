"""A language's work in another process, such as a worker of a Dask or Ray cluster.

There it needs what it finds by itself in the flow's own process: where state lies, trainer
processes, somebody who is told of progress, and somebody who says when to stop.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from compass_core.errors import CompassError
from tasks import progress
from tasks.compute import close_trainers, kill_trainers
from tasks.interruption import allow_work, request_stop
from tasks.progress import Beat
from tasks.settings import compass_home, has_credentials, prepare_environment, tracking_uri

_IDLE_SECONDS = 15.0
"""Time that a worker keeps its trainers for the next language."""
_POLL_SECONDS = 0.5
_OF_A_RUN = ("COMPASS_HOME", "COMPASS_STORE", "MLFLOW_TRACKING_URI")
_own: dict[str, str | None] = {}
"""What the worker itself was started with."""

_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_idle: list[threading.Timer] = []


@dataclass(frozen=True, slots=True)
class Site:
    """What a run tells the workers that take part in it.

    Attributes:
        environment: Where state and registry are.
        news: Folder that progress is written to, one file per language.
        quiet: Whether the run's own process keeps the logs of runs out of its terminal.
    """

    environment: tuple[tuple[str, str], ...]
    news: str
    quiet: bool


def open_site(news: Path) -> Site:
    """Return this run's site; nothing in it is a secret.

    An address of MLflow with credentials stays here, because a cluster shows what a task was given:
    it has to be set where the workers are started.
    """
    found = {"COMPASS_HOME": str(compass_home())}
    for name, address in (
        ("COMPASS_STORE", os.environ.get("COMPASS_STORE", "")),
        ("MLFLOW_TRACKING_URI", tracking_uri()),
    ):
        if address and not has_credentials(address):
            found[name] = address
    quiet = not all(logging.getLogger(name).propagate for name in _RUN_LOGGERS)
    return Site(tuple(found.items()), str(news), quiet)


@contextlib.contextmanager
def at(site: Site | None, language: str) -> Iterator[None]:
    """Settle in where the work of `language` happens; without a site that is the flow's process.

    Raises:
        RuntimeError: in place of an error that could not travel back.
    """
    if site is None:
        yield
        return
    _settle(site)
    stop_watching = _watch_abandonment()
    unfollow = progress.watch(_writer(Path(site.news) / f"{language}.jsonl"))
    try:
        yield
    except Exception as error:
        raise travelling(error) from None
    finally:
        unfollow()
        stop_watching()
        _close_when_idle()


def _settle(site: Site) -> None:
    for timer in _idle:
        timer.cancel()
    _idle.clear()
    for name in _OF_A_RUN:
        before = _own.setdefault(name, os.environ.get(name))  # nothing of the run before
        os.environ.pop(name, None) if before is None else os.environ.update({name: before})
    os.environ.update(dict(site.environment))
    prepare_environment()
    for name in _RUN_LOGGERS:
        logging.getLogger(name).propagate = not site.quiet
    allow_work()
    # Dask marks its workers as daemons, which may have no children. A trainer ends with its parent
    # by itself (compass_core/orphans.py), so what the mark protects from cannot happen.
    multiprocessing.current_process()._config.pop("daemon", None)  # type: ignore[attr-defined]


def travelling(error: Exception) -> Exception:
    """Return the error if it is known to survive the way back, else one that says the same."""
    if isinstance(error, CompassError) or type(error).__module__ == "builtins":
        return error
    told = RuntimeError(f"{type(error).__name__}: {error}")
    told.__dict__["finished"] = getattr(error, "finished", {})
    return told


# ------------------------------------------------------------------ progress
def _writer(path: Path) -> Callable[[Beat], None]:
    """Return a watcher that appends every beat to `path`; a full disk stops no training."""
    guard = threading.Lock()

    def write(beat: Beat) -> None:
        line = json.dumps(asdict(beat), ensure_ascii=False) + "\n"
        with guard, contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line)

    return write


class News:
    """Passes on what workers write into a folder, for as long as the block runs.

    Attributes:
        heard: Languages that something was heard of; none where the folder is not shared.
    """

    def __init__(self, folder: Path) -> None:
        self.heard: set[str] = set()
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="news", daemon=True)

    def __enter__(self) -> News:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            self.pass_on()
        self.pass_on()

    def pass_on(self) -> None:
        """Tell this process's watchers what is new."""
        for path in sorted(self._folder.glob("*.jsonl")):
            with contextlib.suppress(OSError), path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read[path] = self._read.get(path, 0) + len(line)
                    self.heard.add(path.stem)
                    progress.beat(**json.loads(line))


# ------------------------------------------------------------------ the end
def _watch_abandonment() -> Callable[[], None]:
    """Stop the work once nobody waits for it any more; the returned function ends the watch.

    Dask lets a task that was cancelled, or whose client is gone, run to its end. Ray ends the
    worker process itself.
    """
    abandoned = _dask_task()
    over = threading.Event()
    if abandoned is None:
        return over.set

    def watch() -> None:
        while not over.wait(_POLL_SECONDS):
            if abandoned():
                request_stop()
                kill_trainers()
                return

    threading.Thread(target=watch, name="abandonment", daemon=True).start()
    return over.set


def _dask_task() -> Callable[[], bool] | None:
    """Return what tells whether the Dask task of this thread was given up; None outside of Dask."""
    try:
        from distributed import get_worker

        worker = get_worker()
        key = worker.get_current_task()
    except (ImportError, ValueError):
        return None

    def abandoned() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state in {"cancelled", "released", "forgotten"}

    return abandoned


def _close_when_idle() -> None:
    timer = threading.Timer(_IDLE_SECONDS, close_trainers)
    timer.daemon = True
    timer.start()
    _idle.append(timer)

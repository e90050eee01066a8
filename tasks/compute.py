"""Trainer processes: heavy work runs beside the flow, never inside it.

There is one spawned process per slot, started when first needed. It keeps the frozen base loaded
and takes one job after the other by reference. A process that dies (killed, out of memory) fails
only its own job, with an error that may be retried, and is replaced; the job then resumes from its
checkpoint.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import queue
import signal
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from compass_core.config import ExecutionConfig
from compass_core.errors import TransientError
from compass_core.orphans import exit_with_parent
from compass_core.storage import read_json
from tasks.interruption import go_on_or_raise
from tasks.logs import context, in_context
from tasks.progress import beat
from tasks.settings import compass_home

Job = Callable[[dict[str, Any]], dict[str, Any]]
_POLL_SECONDS = 0.25


class TrainerPool:
    """A fixed number of slots, each with at most one spawned process."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free: queue.Queue[int] = queue.Queue()
        self._executors: dict[int, ProcessPoolExecutor] = {}
        for slot in range(slots):
            self._free.put(slot)

    def run(
        self,
        job: Job,
        spec: dict[str, Any],
        on_wait: Callable[[], None],
        about: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run ``job(spec)`` in the next free process, calling `on_wait` while it works.

        Args:
            job: Importable function.
            spec: Its argument.
            on_wait: Called now and then.
            about: Language, stage and run, for the logs of that process.

        Raises:
            TransientError: the process died; a retry starts a new one.
        """
        slot = self._free.get()
        future: Future[dict[str, Any]] | None = None
        try:
            go_on_or_raise()
            future = self._executor(slot).submit(in_context, job, spec, about or {})
            while not _finished(future):
                go_on_or_raise()
                on_wait()
            return future.result()
        except BrokenProcessPool as error:
            self._stop(slot)
            go_on_or_raise()  # killed on purpose: no reason to try again
            raise TransientError(
                f"The trainer process ended during {job.__name__}, probably killed or out of "
                "memory. It is started again; finished work and checkpoints are kept.",
                code="E91",
            ) from error
        except BaseException:
            if future is not None and not future.done():
                self._stop(slot)
            raise
        finally:
            self._free.put(slot)

    def kill(self) -> None:
        """End every process at once; their jobs fail."""
        for executor in list(self._executors.values()):
            for process in list((executor._processes or {}).values()):
                process.kill()

    def close(self) -> None:
        """Stop every process: the idle ones in good order, a busy one at once."""
        idle = set(self._free.queue)
        for slot, executor in list(self._executors.items()):
            if slot in idle:
                executor.shutdown(wait=True)
                self._executors.pop(slot, None)
            else:
                self._stop(slot)

    def _executor(self, slot: int) -> ProcessPoolExecutor:
        if slot not in self._executors:
            self._executors[slot] = ProcessPoolExecutor(
                max_workers=1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_settle_in,
                initargs=(os.getpid(),),
            )
        return self._executors[slot]

    def _stop(self, slot: int) -> None:
        executor = self._executors.pop(slot, None)
        if executor is None:
            return
        for process in list((executor._processes or {}).values()):
            process.kill()
        executor.shutdown(wait=True, cancel_futures=True)


def _settle_in(parent: int) -> None:
    """Prepare a trainer process: Ctrl-C is its parent's business, and so is its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent(parent)


def _finished(future: Future[dict[str, Any]]) -> bool:
    try:
        future.exception(timeout=_POLL_SECONDS)
    except TimeoutError:
        return future.done()
    return True


_pool: TrainerPool | None = None
_pool_guard = threading.RLock()  # a signal may arrive while it is held


def _shared_pool(slots: int) -> TrainerPool:
    global _pool  # noqa: PLW0603 - one pool per process is the point
    with _pool_guard:
        if _pool is None or _pool.slots != slots:
            if _pool is not None:
                _pool.close()
            _pool = TrainerPool(slots)
            atexit.register(_pool.close)
        return _pool


def close_trainers() -> None:
    """Stop the trainer processes of this process, if there are any."""
    global _pool  # noqa: PLW0603 - see above
    with _pool_guard:
        if _pool is not None:
            _pool.close()
            _pool = None


def kill_trainers() -> None:
    """End the trainer processes in the middle of their jobs; safe in a signal handler."""
    if _pool is not None:
        _pool.kill()


def run_job(
    job: Job, spec: dict[str, Any], execution: ExecutionConfig, *, language: str, stage: str
) -> dict[str, Any]:
    """Run one heavy job by reference and report its progress.

    Args:
        job: Importable function from plain values to plain values.
        spec: Its argument; `threads` and `progress_path` are added.
        execution: Slots and threads; 0 slots runs the job here.
        language: For the progress report.
        stage: For the progress report.
    """
    go_on_or_raise()
    progress_path = compass_home() / "store" / "tmp" / f"progress-{uuid.uuid4().hex}.json"
    progress_path.parent.mkdir(parents=True, exist_ok=True)
    spec = spec | {"threads": execution.threads_per_trainer, "progress_path": str(progress_path)}
    try:
        if execution.trainers == 0:
            return job(spec)
        pool = _shared_pool(execution.trainers)
        about = context() | {"language": language, "stage": stage}
        return pool.run(job, spec, lambda: _report(progress_path, language, stage), about)
    finally:
        progress_path.unlink(missing_ok=True)


def _report(path: Path, language: str, stage: str) -> None:
    try:
        news = read_json(path)
        total = max(int(news["total"]), 1)
        detail = f"loss {news['loss']:.3f}" if "loss" in news else ""
        beat(language, stage, "running", news["step"] / total, detail)
    except (OSError, ValueError, KeyError, TypeError):
        return

"""How a run looks in a terminal: a bar per language, or a line per step where there is no TTY."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from compass_core.languages import language_name
from tasks.logs import log_progress, wants_json
from tasks.progress import Beat, watch

OUT = Console()
ERR = Console(stderr=True)
SHARED = "Pool"
_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


@contextlib.contextmanager
def follow(languages: tuple[str, ...], n_steps: int) -> Iterator[None]:
    """Show the progress of a run while the block runs.

    Args:
        languages: Canonical codes.
        n_steps: Steps of one language, over all its seeds.
    """
    if wants_json():
        with _log_lines():
            yield
        return
    if not os.environ.get("COMPASS_DEBUG"):
        keep_run_logs_out()
    if sys.stdout.isatty():
        with _bars(languages, n_steps):
            yield
    else:
        with _lines():
            yield


def keep_run_logs_out() -> None:
    """Leave the logs of runs to the Prefect interface; failures are said once, by ourselves."""
    for name in _RUN_LOGGERS:
        logging.getLogger(name).propagate = False


@contextlib.contextmanager
def _log_lines() -> Iterator[None]:
    stop = log_progress()
    try:
        yield
    finally:
        stop()


@contextlib.contextmanager
def _bars(languages: tuple[str, ...], n_steps: int) -> Iterator[None]:
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[step]}"),
    )
    with Progress(*columns, console=OUT) as progress:
        bars: dict[str, TaskID] = {
            code: progress.add_task(
                language_name(code) if code else SHARED, total=n_steps if code else 2, step=""
            )
            for code in ("", *languages)
        }
        done: dict[str, int] = dict.fromkeys(bars, 0)
        guard = threading.Lock()

        def show(beat: Beat) -> None:
            if beat.language not in bars:
                return
            with guard:
                done[beat.language] += beat.state in ("done", "cached")
                part = beat.fraction if beat.state == "running" else 0.0
                text = f"{beat.stage} {beat.detail}" if beat.state != "failed" else "[red]failed"
                progress.update(
                    bars[beat.language], completed=done[beat.language] + part, step=text
                )

        stop = watch(show)
        try:
            yield
        finally:
            stop()


@contextlib.contextmanager
def _lines() -> Iterator[None]:
    started = time.monotonic()

    def show(beat: Beat) -> None:
        if beat.state == "running":
            return
        name = language_name(beat.language) if beat.language else SHARED
        mark = "FAILED" if beat.state == "failed" else ""
        elapsed = time.monotonic() - started
        OUT.print(
            f"{elapsed:6.1f} s  {name:<14} {beat.stage} {mark} {beat.detail}".rstrip(),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    stop = watch(show)
    try:
        yield
    finally:
        stop()

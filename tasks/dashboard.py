"""The pages that people open: usage over time, and the index with what serves where.

Nothing is kept here, so both can be written again any time.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

from compass_core.errors import CompassError
from compass_core.report.monitoring_page import PAGE_NAME, write_monitoring
from compass_core.report.page import render_index
from compass_core.storage import file_lock, write_text
from tasks.run_index import run_lines
from tasks.settings import runs_folder
from tasks.status import collect_status
from tasks.watched import RECORD_NAME, collect_monitoring

__all__ = [
    "RECORD_NAME",
    "collect_monitoring",
    "write_dashboard",
    "write_index",
]

_LOG = logging.getLogger(__name__)
_PROBLEMS = (CompassError, OSError, ValueError, KeyError, TypeError)


def write_dashboard() -> Path:
    """Write ``monitoring.html`` over every language that is served or watched; return the page."""
    runs_folder().mkdir(parents=True, exist_ok=True)
    with file_lock(runs_folder() / ".monitoring.lock"):
        page = write_monitoring(collect_monitoring(), runs_folder())
    write_index()
    return page


def write_index(*, rebuild: bool = False) -> Path:
    """Write ``index.html``: what serves each language, and all runs, newest first.

    Args:
        rebuild: Whether to make the line of every run anew.
    """
    lines = run_lines(rebuild=rebuild)
    watched = PAGE_NAME if (runs_folder() / PAGE_NAME).is_file() else ""
    try:
        status = collect_status(datetime.now(UTC), lines=lines)
    except _PROBLEMS:
        # A page that cannot be told in full is no reason for a run to fail.
        _LOG.warning("What serves could not be told on the index page", exc_info=True)
        status = None
    pages = [line.page for line in lines if line.page is not None]
    write_text(runs_folder() / "index.html", render_index(pages, monitoring=watched, status=status))
    return runs_folder() / "index.html"

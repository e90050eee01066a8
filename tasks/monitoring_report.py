"""What a monitor leaves for people: its record, Prefect's tables, the page over time."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from compass_core.languages import language_name
from compass_core.monitoring.history import History
from compass_core.records import ArtifactRef
from compass_core.report.monitoring_data import WatchedLanguage
from compass_core.report.monitoring_page import PAGE_NAME
from compass_core.report.monitoring_text import monitoring_markdown
from compass_core.storage import read_json, write_json
from tasks.dashboard import RECORD_NAME, collect_monitoring, write_dashboard
from tasks.monitoring_text import next_step, reading_text
from tasks.outage import tell_server
from tasks.reporting import now
from tasks.settings import open_catalog, runs_folder, usage_folder

LAST_NAME = "last.json"
"""Outcome of the last monitor of a language, beside its history."""

_HISTORY_NAME = "history.json"


def open_history(language: str) -> History:
    """Return the decided windows of a language (canonical code)."""
    return History(usage_folder(language) / _HISTORY_NAME)


@task(name="report-usage", cache_policy=NO_CACHE)
def finish_monitoring(outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Write the page, show every language in the interface, and keep the record of the monitor."""
    told = {}
    for language, outcome in outcomes.items():
        named = {"name": language_name(language), "windows": [], "notes": []} | dict(outcome)
        told[language] = named | {"told": reading_text(outcome), "next": next_step(outcome)}
    record = {
        "run_id": f"monitor-{uuid.uuid4().hex[:12]}",
        "flow": "monitor-drift",
        "finished": now(),
        "prefect_flow_run_id": str(flow_run.get_id() or ""),
        "page": str(runs_folder() / PAGE_NAME),
        "languages": told,
    }
    write_json(runs_folder() / RECORD_NAME, record)
    windows = [window for outcome in told.values() for window in outcome["windows"]]
    refs = [ArtifactRef.from_dict(window["ref"]) for window in windows if "ref" in window]
    if refs:
        open_catalog().add(refs)
    for watched in collect_monitoring(list(outcomes)).languages:
        _publish(watched)
    page = write_dashboard()
    tell_server(
        create_link_artifact, page.as_uri(), link_text="Usage over time", key="usage-over-time"
    )
    return record


def read_last() -> dict[str, Any] | None:
    """Return the record of the monitor that ended last, or None."""
    path = runs_folder() / RECORD_NAME
    if not path.is_file():
        return None
    record: dict[str, Any] = read_json(path)
    return record


def _publish(watched: WatchedLanguage) -> None:
    tell_server(
        create_markdown_artifact,
        monitoring_markdown(watched),
        key=f"usage-{watched.language.lower().replace('_', '-')}",
        description=f"Usage over time, {watched.name}",
    )

"""What people see of usage over time: the page, Prefect's tables, the record of a monitor.

Everything is read from what monitors and updates left behind, so it can be written again any time.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from compass_core.errors import CompassError
from compass_core.languages import language_name
from compass_core.manifests import Catalog
from compass_core.monitoring.history import Entry, History
from compass_core.monitoring.outbox import DriftEvent
from compass_core.report.monitoring_data import (
    AccuracyPoint,
    MonitoringReport,
    MovedCluster,
    UpdatePoint,
    WatchedLanguage,
    WindowPoint,
)
from compass_core.report.monitoring_page import write_monitoring
from compass_core.report.monitoring_text import monitoring_markdown
from compass_core.storage import file_lock, read_json, write_json
from tasks.events import open_outbox
from tasks.monitoring_text import next_step, reading_text
from tasks.reporting import now
from tasks.settings import compass_home, runs_folder, usage_folder

LAST_NAME = "last.json"
"""Outcome of the last monitor of a language, beside its history."""

_HISTORY_NAME = "history.json"
_RECORD_NAME = "monitor.json"
_UPDATE_FLOW = "update-adapter"
_REFUSED = frozenset({"refused", "superseded"})
_LOG = logging.getLogger(__name__)


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
        _publish(language, outcome)
    page = refresh_dashboard()
    create_link_artifact(page.as_uri(), link_text="Usage over time", key="usage-over-time")
    record = {
        "run_id": f"monitor-{uuid.uuid4().hex[:12]}",
        "flow": "monitor-drift",
        "finished": now(),
        "prefect_flow_run_id": str(flow_run.get_id() or ""),
        "page": str(page),
        "languages": told,
    }
    write_json(runs_folder() / _RECORD_NAME, record)
    return record


def read_last() -> dict[str, Any] | None:
    """Return the record of the monitor that ended last, or None."""
    path = runs_folder() / _RECORD_NAME
    if not path.is_file():
        return None
    record: dict[str, Any] = read_json(path)
    return record


def refresh_dashboard() -> Path:
    """Write ``monitoring.html`` over every language that was ever watched; return the page."""
    with file_lock(runs_folder() / ".monitoring.lock"):
        watched = sorted(p.name for p in (compass_home() / "usage").glob("*") if p.is_dir())
        report = MonitoringReport(created=now(), languages=[watched_language(c) for c in watched])
        return write_monitoring(report, runs_folder())


def _publish(language: str, outcome: Mapping[str, Any]) -> None:
    page = monitoring_markdown(watched_language(language))
    if outcome.get("error"):
        page += f"\n{outcome['error']}\n"
    create_markdown_artifact(
        page,
        key=f"usage-{language.lower().replace('_', '-')}",
        description=f"Usage over time, {language_name(language)}",
    )


def watched_language(language: str) -> WatchedLanguage:
    """Return everything that is shown about one language; a problem is told in its place."""
    try:
        return _watched(language)
    except (CompassError, OSError, ValueError, KeyError) as error:
        _LOG.warning("What is known of %s cannot be shown: %s", language, error)
        return WatchedLanguage(language=language, name=language_name(language), error=str(error))


def _watched(language: str) -> WatchedLanguage:
    entries = open_history(language).entries()
    last_file = usage_folder(language) / LAST_NAME
    last = read_json(last_file) if last_file.is_file() else {}
    outbox = open_outbox(language)
    events = outbox.all()
    waiting = [event for event in events if event.state != "done"]
    newest: Entry = entries[-1] if entries else {}
    undecided = [w for w in last.get("windows", ()) if w["status"] in ("open", "empty")]
    return WatchedLanguage(
        language=language,
        name=language_name(language),
        champion=last.get("champion", ""),
        windows=[window_point(entry) for entry in (*entries, *undecided)],
        updates=update_points(language, events),
        accuracy=_accuracy(language),
        event=waiting[-1].id if waiting else "",
        event_state=("taken" if outbox.busy() else "pending") if waiting else "",
        n_quarantined=dict(last.get("read", {}).get("rejected", {})),
        notes=list(last.get("notes", ())),
        unit=newest.get("settings", {}).get("unit", "user"),
        min_shown=newest.get("min_shown", 20),
        n_clusters=newest.get("n_clusters"),
    )


def window_point(entry: Entry) -> WindowPoint:
    """Return a window as the report knows it."""
    kept = _known(WindowPoint, entry)
    kept["moved"] = [MovedCluster(**_known(MovedCluster, m)) for m in entry.get("moved", ())]
    return WindowPoint(**kept)


def update_points(language: str, events: Sequence[DriftEvent]) -> list[UpdatePoint]:
    """Return the updates of a language: from their runs, and from events whose runs are gone."""
    points = [_from_run(record, language) for record in _update_records(language)]
    recorded = {point.event for point in points if point.event}
    for event in events:
        if event.state == "done" and event.id not in recorded:
            points.append(_from_event(event, event.outcome))
        elif event.last_error:
            points.append(_from_event(event, {"status": "failed", "reasons": [event.last_error]}))
    return points


def _update_records(language: str) -> list[dict[str, Any]]:
    records = [read_json(path) for path in sorted(runs_folder().glob("*/run.json"))]
    return [r for r in records if r.get("flow") == _UPDATE_FLOW and language in r["languages"]]


def _from_run(record: Mapping[str, Any], language: str) -> UpdatePoint:
    outcome = record["languages"][language]
    verdict = outcome.get("verdict") or {}
    new = verdict.get("new") or {}
    return UpdatePoint(
        time=record["finished"],
        event=outcome.get("event", ""),
        version=str((outcome.get("registry") or {}).get("version", "")),
        status=_update_status(outcome),
        reasons=[str(reason) for reason in verdict.get("reasons", ())],
        accuracy_before=new.get("accuracy_before"),
        accuracy_after=new.get("accuracy_after"),
        forgetting=verdict.get("forgetting"),
        run_id=record["run_id"],
    )


def _from_event(event: DriftEvent, outcome: Mapping[str, Any]) -> UpdatePoint:
    time = outcome.get("finished") or (*event.attempts, event.occurred)[-1]
    kept = _known(UpdatePoint, outcome)
    return UpdatePoint(**kept | {"time": time, "event": event.id, "status": _update_status(kept)})


def _update_status(outcome: Mapping[str, Any]) -> Any:
    """Return the report's word: a challenger of the retraining arm that serves was retrained."""
    status = str(outcome.get("status", "failed"))
    if status == "promoted" and outcome.get("arm") == "retrain":
        return "retrained"
    if status in _REFUSED:
        return "refused"
    return status if status in ("promoted", "retrained") else "failed"


def _accuracy(language: str) -> list[AccuracyPoint]:
    """Return the champions of a language with their scores, as the catalogue knows them."""
    try:
        decisions = Catalog(compass_home()).decisions(language)
    except CompassError as error:
        _LOG.warning("The champions of %s are not in the catalogue: %s", language, error)
        return []
    return [
        AccuracyPoint(
            time=row["started"],
            version=row["version"] or "",
            accuracy=row["accuracy_after"],
            n_items=row["n_items"] or 0,
        )
        for row in decisions
        if row["promote"]
    ]


def _known(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}

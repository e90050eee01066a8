"""Usage over time, collected from what monitors, updates and the registry left.

    usage/<language>/history.json   what was decided about every window
    usage/<language>/last.json      what the last monitor saw: open and empty windows, lost records
    usage/<language>/events/        drift events and what became of them
    runs/monitor.json               the last monitor: what failed
    runs/<run>/run.json             updates
    registry                        champions, and how each of them scored

Nothing is kept here, so the page can be written again any time. What cannot be read of one language
is told in its place and hides no other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

from compass_core.errors import CompassError
from compass_core.languages import canonical_language, language_name
from compass_core.monitoring.history import History
from compass_core.monitoring.outbox import DriftEvent, Outbox
from compass_core.report.monitoring_data import (
    AccuracyPoint,
    MonitoringReport,
    MovedCluster,
    UpdatePoint,
    WatchedLanguage,
    WindowPoint,
)
from compass_core.report.notes import DEMONSTRATION_NOTE
from compass_core.storage import read_json
from compass_core.version import __version__
from tasks import registry, tracking
from tasks.promotion import configure_tracking
from tasks.registry_reading import OVER_TAG
from tasks.run_index import run_lines
from tasks.settings import compass_home, runs_folder, usage_folder

_LOG = logging.getLogger(__name__)
_UPDATE_FLOW = "update-adapter"
_RUNS_PER_QUESTION = 100
_PROBLEMS = (CompassError, OSError, ValueError, KeyError, TypeError)

MAX_WINDOWS = 400
"""Newest windows of a language that are shown; all of them are in its history."""

RECORD_NAME = "monitor.json"
"""Record of the monitor that ended last, among the runs."""

Records = Sequence[Mapping[str, Any]]
Champions = Mapping[str, registry.RegisteredAdapter]


def collect_monitoring(languages: Sequence[str] | None = None) -> MonitoringReport:
    """Return everything the page about usage shows.

    Args:
        languages: Canonical codes; None for every one that has an adapter or was ever watched.
    """
    champions, problem = _champions(languages)
    codes = sorted({*watched_codes(), *champions}) if languages is None else list(languages)
    watched = watch_languages(codes, champions)
    notes = [DEMONSTRATION_NOTE] if any(item.base == "starter" for item in watched) else []
    return MonitoringReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        languages=watched,
        notes=[*notes, *problem],
        links={"Runs": "index.html"},
        versions={"compass": __version__},
    )


def watch_languages(
    codes: Sequence[str], champions: Champions, *, scores: bool = True
) -> list[WatchedLanguage]:
    """Return what is known of the usage of each language.

    Args:
        codes: Canonical codes.
        champions: What serves them.
        scores: Whether to ask the registry how every champion so far scored.
    """
    records = _update_records()
    return [_language_or_problem(code, champions.get(code), records, scores) for code in codes]


# ------------------------------------------------------------------ one language
def _language_or_problem(
    language: str, champion: registry.RegisteredAdapter | None, records: Records, scores: bool
) -> WatchedLanguage:
    try:
        return _language(language, champion, records, scores)
    except _PROBLEMS as error:
        _LOG.warning("What is known of %s cannot be shown: %s", language, error)
        told = str(error) if isinstance(error, CompassError) else _advice(language, error)
        return WatchedLanguage(language=language, name=language_name(language), error=told)


def _advice(language: str, error: Exception) -> str:
    return (
        f"A file of {usage_folder(language)} cannot be read ({type(error).__name__}: {error}). "
        "Restore it from a back-up; last.json may be deleted, the next monitor writes it again."
    )


def _language(
    language: str, champion: registry.RegisteredAdapter | None, records: Records, scores: bool
) -> WatchedLanguage:
    folder = usage_folder(language)
    entries = History(folder / "history.json").entries()[-MAX_WINDOWS:]
    last_file = folder / "last.json"
    last = read_json(last_file) if last_file.is_file() else {}
    checked = _time(last_file.stat().st_mtime) if last else ""
    outbox = Outbox(folder / "events")
    events = outbox.all()
    waiting = [event for event in events if event.state != "done"]
    decided = {(entry["space"], entry["name"]) for entry in entries}
    undecided = [
        window
        for window in last.get("windows", ())
        if window["status"] in {"open", "empty"}
        and (last.get("space"), window["name"]) not in decided
    ]
    newest: Mapping[str, Any] = entries[-1] if entries else {}
    watched = WatchedLanguage(
        language=language,
        name=language_name(language),
        windows=[_window(entry) for entry in (*entries, *undecided)],
        updates=_updates(language, events, records),
        event=waiting[-1].id if waiting else "",
        n_pending=len(waiting),
        event_state="taken" if outbox.busy() else "pending" if waiting else "",
        unit=newest.get("settings", {}).get("unit", "user"),
        n_quarantined=dict(last.get("read", {}).get("rejected", {})),
        notes=[*_failure(language, checked), *last.get("notes", ())],
        checked=checked,
        **_known(WatchedLanguage, newest, only=("min_shown", "n_clusters")),
    )
    if champion is None:
        return watched
    return replace(
        watched,
        champion=champion.version,
        base=champion.tags.get("base", ""),
        accuracy=_accuracy(champion.name) if scores else [],
    )


def _failure(language: str, checked: str) -> list[str]:
    """Return what the last monitor failed with, unless a later one did not."""
    path = runs_folder() / RECORD_NAME
    record = read_json(path) if path.is_file() else {"languages": {}}
    error = record["languages"].get(language, {}).get("error")
    if not error or record["finished"] < checked:
        return []
    return [f"The monitor of {record['finished']} failed here: {error}"]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _window(entry: Mapping[str, Any]) -> WindowPoint:
    kept = _known(WindowPoint, entry)
    kept["moved"] = [MovedCluster(**_known(MovedCluster, row)) for row in entry.get("moved", ())]
    return WindowPoint(**kept)


def _known(
    kind: type[Any], values: Mapping[str, Any], *, only: Sequence[str] | None = None
) -> dict[str, Any]:
    names = {field.name for field in fields(kind)} if only is None else set(only)
    return {name: value for name, value in values.items() if name in names}


# ------------------------------------------------------------------ updates
def _update_records() -> list[dict[str, Any]]:
    """Return the records of all runs that updated a language, oldest first."""
    runs = [line.run_id for line in run_lines() if line.flow == _UPDATE_FLOW]
    return [read_json(runs_folder() / run_id / "run.json") for run_id in reversed(runs)]


def _updates(language: str, events: Sequence[DriftEvent], records: Records) -> list[UpdatePoint]:
    """Return the updates of a language: from their runs, and from events whose runs are gone."""
    points: list[UpdatePoint] = []
    recorded: set[str] = set()
    for record in records:
        if language not in record["languages"]:
            continue
        point = _from_run(record, language)
        # An update that was killed after its promotion runs again, to find that it is done.
        if point.event not in recorded:
            points.append(point)
        recorded |= {point.event} - {""}
    for event in events:
        if event.state == "done" and event.id not in recorded:
            points.append(_from_event(event, event.outcome))
        elif event.state != "done" and event.last_error:
            failed = {"status": "failed", "reasons": [event.last_error]}
            points.append(_from_event(event, failed))
    return points


def _from_run(record: Mapping[str, Any], language: str) -> UpdatePoint:
    outcome = record["languages"][language]
    verdict = outcome.get("verdict") or {}
    new = verdict.get("new") or {}
    return UpdatePoint(
        time=str(record.get("finished", "")),
        event=str(outcome.get("event", "")),
        version=str((outcome.get("registry") or {}).get("version", "")),
        status=_update_status(outcome),
        reasons=[str(reason) for reason in verdict.get("reasons", ())],
        accuracy_before=new.get("accuracy_before"),
        accuracy_after=new.get("accuracy_after"),
        forgetting=verdict.get("forgetting"),
        run_id=str(record.get("run_id", "")),
    )


def _from_event(event: DriftEvent, outcome: Mapping[str, Any]) -> UpdatePoint:
    when = outcome.get("finished") or (event.occurred, *event.attempts)[-1]
    kept = _known(UpdatePoint, outcome) | {"status": _update_status(outcome)}
    return UpdatePoint(**kept | {"time": when, "event": event.id})


def _update_status(outcome: Mapping[str, Any]) -> Any:
    """Return the report's word for how an update ended."""
    status = outcome.get("status")
    if status == "promoted" and outcome.get("arm") == "retrain":
        return "retrained"
    return status if status in {"promoted", "refused", "superseded"} else "failed"


# ------------------------------------------------------------------ champions
def watched_codes() -> list[str]:
    """Return the languages that have a folder of usage; other folders are left alone."""
    codes = []
    for folder in sorted((compass_home() / "usage").glob("*")):
        try:
            known = folder.is_dir() and canonical_language(folder.name) == folder.name
        except CompassError:
            known = False
        if known:
            codes.append(folder.name)
    return codes


def _champions(languages: Sequence[str] | None) -> tuple[Champions, list[str]]:
    """Return the champion of each language (its newest, on several bases), and what went wrong."""
    try:
        configure_tracking()
        serving = registry.list_serving(languages)
    except CompassError as error:
        return {}, [f"The registry could not be asked who serves: {error}"]
    return newest_champions(serving), []


def newest_champions(serving: Sequence[registry.Serving]) -> Champions:
    """Return the champion of each language, its newest where several bases have one."""
    champions = [entry.champion for entry in serving if entry.champion is not None]
    return {item.language: item for item in sorted(champions, key=lambda c: c.created)}


def _accuracy(name: str) -> list[AccuracyPoint]:
    """Return every version that was promoted once, with the score of its promotion."""
    return [
        _score(version)
        for version in registry.versions(name)
        if OVER_TAG in version.tags and version.run_id
    ]


def _score(version: registry.RegisteredAdapter) -> AccuracyPoint:
    metrics = run_metrics(version.run_id)
    return AccuracyPoint(
        time=_time(version.created / 1000),
        version=version.version,
        accuracy=metrics.get("accuracy"),
        low=metrics.get("accuracy_low"),
        high=metrics.get("accuracy_high"),
    )


def run_metrics(run_id: str) -> dict[str, float]:
    """Return the metrics of a run; none where the run is gone."""
    try:
        with tracking.mlflow_errors("read the metrics of a run"):
            return dict(tracking.client().get_run(run_id).data.metrics)
    except CompassError as error:
        _LOG.warning("%s", error)
        return {}


def metrics_of_runs(run_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the metrics of many runs by a few questions; runs that are gone are left out."""
    found: dict[str, dict[str, float]] = {}
    wanted = sorted({text for text in run_ids if text.isalnum()})
    try:
        with tracking.mlflow_errors("read the metrics of runs"):
            client = tracking.client()
            experiments = [entry.experiment_id for entry in client.search_experiments()]
            for first in range(0, len(wanted), _RUNS_PER_QUESTION):
                names = ", ".join(
                    f"'{text}'" for text in wanted[first : first + _RUNS_PER_QUESTION]
                )
                runs = client.search_runs(experiments, f"attributes.run_id IN ({names})")
                found |= {run.info.run_id: dict(run.data.metrics) for run in runs}
    except CompassError as error:
        _LOG.warning("%s", error)
    return found

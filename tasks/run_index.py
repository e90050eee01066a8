"""One short line per finished run, so that a page over hundreds of runs reads no whole record.

    runs/<run>/index.json   made from run.json and report.json when it is first needed

A run's record does not change once it is written, so neither does its line; `compass rebuild-index`
makes them anew.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compass_core.errors import CompassError
from compass_core.report import data as report_data
from compass_core.report.data import RunReport, RunSummary
from compass_core.report.markup import elapsed
from compass_core.storage import read_json, write_json
from tasks.settings import runs_folder

_LOG = logging.getLogger(__name__)
_VERSION = 1
_NAME = "index.json"
_TRAININGS = ("adapter-train", "update-train")
_PROBLEMS = (CompassError, OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class RunLine:
    """What is asked of a run again and again.

    Attributes:
        run_id: Name of its folder; sorts by time.
        flow: Flow that ran.
        project: Project of the configuration.
        started: ISO 8601.
        finished: ISO 8601.
        prefect_flow_run_id: The run at the Prefect server.
        languages: By code: ``status``, ``error``, ``model``, ``version``, ``decision``
            (fingerprint) and ``seconds`` in its stages.
        page: What the index of runs shows; None for runs without a page of their own.
    """

    run_id: str
    flow: str
    project: str
    started: str
    finished: str
    prefect_flow_run_id: str = ""
    languages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    page: RunSummary | None = None

    @property
    def seconds(self) -> float | None:
        """Time from start to end."""
        return elapsed(self.started, self.finished)


def run_lines(*, rebuild: bool = False) -> list[RunLine]:
    """Return every finished run that can be read, newest first.

    Args:
        rebuild: Whether to make every line anew.
    """
    found = []
    for path in sorted(runs_folder().glob("*/run.json"), reverse=True):
        try:
            found.append(_line(path.parent, rebuild=rebuild))
        except _PROBLEMS as error:
            _LOG.warning("The record of a run cannot be read: %s: %s", path, error)
    return found


def keep_line(folder: Path, record: Mapping[str, Any], shown: RunReport | None) -> None:
    """Write the line of a run that just ended, so that its files need not be read for it."""
    _write(folder, _made(folder, record, shown))


def _line(folder: Path, *, rebuild: bool) -> RunLine:
    if not rebuild:
        with contextlib.suppress(*_PROBLEMS):
            values = read_json(folder / _NAME)
            if values.pop("version") == _VERSION:
                page = values.pop("page")
                return RunLine(**values, page=RunSummary(**page) if page else None)
    report = folder / "report.json"
    shown = report_data.from_json(report.read_text("utf-8")) if report.is_file() else None
    line = _made(folder, read_json(folder / "run.json"), shown)
    _write(folder, line)
    return line


def _write(folder: Path, line: RunLine) -> None:
    with contextlib.suppress(CompassError, OSError):  # a home that is only read works as well
        write_json(folder / _NAME, {"version": _VERSION, **asdict(line)})


def _made(folder: Path, record: Mapping[str, Any], shown: RunReport | None) -> RunLine:
    page = report_data.summarise_run(shown, f"{folder.name}/report.html") if shown else None
    return RunLine(
        run_id=str(record["run_id"]),
        flow=str(record["flow"]),
        project=str(record.get("project", "")),
        started=str(record["started"]),
        finished=str(record["finished"]),
        prefect_flow_run_id=str(record.get("prefect_flow_run_id", "")),
        languages={
            code: _outcome(outcome, str(record.get("main_arm", "")))
            for code, outcome in record["languages"].items()
        },
        page=page,
    )


def _outcome(outcome: Mapping[str, Any], arm: str) -> dict[str, Any]:
    registered = outcome.get("registry") or {}
    artifacts = outcome.get("artifacts") or {}
    timings = outcome.get("timings") or {}
    return {
        "status": str(outcome.get("status", "")),
        "error": str(outcome.get("error", "")),
        "model": str(registered.get("name", "")),
        "version": str(registered.get("version", "")),
        "decision": _fingerprint(artifacts, "decide"),
        "training": _fingerprint(artifacts, *_TRAININGS),
        "seconds": float(sum(timings.values())),
        "training_seconds": sum(
            float(value)
            for name, value in timings.items()
            if _stage(name) in _TRAININGS and name.partition(" ")[2] in ("", arm)
        ),
    }


def _fingerprint(artifacts: Mapping[str, Any], *stages: str) -> str:
    """Return the last artefact of these stages: a repeated one stands on the earlier ones."""
    found = [ref for name, ref in artifacts.items() if _stage(name) in stages]
    return str(found[-1].get("fingerprint", "")) if found else ""


def _stage(name: str) -> str:
    """Return the stage of an entry such as ``adapter-train compass``."""
    return name.partition(" ")[0]

"""``compass monitor``: what users asked since the last time, as a table per language."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from compass_core.config import AdaptConfig
from compass_core.config_files import load_config
from flows.running import exit_code
from flows.terminal import ERR, OUT, follow, keep_run_logs_out
from tasks.monitoring_text import nothing_watched

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

_STEPS = 2
"""Steps of a language: reading, deciding."""
_COLUMNS = ("window", "prompts", "users", "score", "threshold", "p", "novel", "decision")


def run_monitor(path: Path, overrides: Sequence[str], *, as_json: bool) -> int:
    """Run `monitor-drift` and return the exit code: 1 if nothing is watched; a drift is none."""
    config = load_config(path, overrides, AdaptConfig)
    from flows.calling import call_flow
    from flows.monitor_drift import monitor_drift
    from tasks.compute import close_trainers
    from tasks.interruption import allow_work
    from tasks.monitoring_report import read_last

    allow_work()
    where = os.environ.get("PREFECT_API_URL") or "a temporary local server"
    if not as_json:
        OUT.print(f"monitor-drift for {len(config.languages)} languages; Prefect: {where}")
    before = read_last()

    def watch() -> State[Any]:
        return monitor_drift(config, return_state=True)

    def is_written() -> bool:
        return read_last() not in (None, before)

    try:
        if as_json:
            keep_run_logs_out()
            state = call_flow(watch, is_written)
        else:
            with follow(config.languages, _STEPS):
                state = call_flow(watch, is_written)
    finally:
        close_trainers()
    record = read_last()
    if record is None or record == before:
        failure = state.result(raise_on_failure=False)
        if isinstance(failure, BaseException):
            raise failure
        ERR.print(f"The flow ended as {state.name}: {state.message}", markup=False)
        return 1
    if as_json:
        sys.stdout.write(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    else:
        show(record)
    return 1 if nothing_watched(record["languages"]) else exit_code(record)


def show(record: Mapping[str, Any]) -> None:
    """Print a record of the monitor."""
    for outcome in record["languages"].values():
        OUT.print()
        OUT.print(f"{outcome['name']} ({outcome['language']})", style="bold", end="")
        OUT.print(f"  {_head(outcome)}", markup=False, highlight=False, soft_wrap=True)
        if outcome.get("windows"):
            OUT.print(window_table(outcome["windows"], outcome["unit"]))
        for line in _lines(outcome):
            OUT.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    OUT.print()
    OUT.print(f"Page: {record['page']}", markup=False, highlight=False, soft_wrap=True)


def window_table(windows: Sequence[Mapping[str, Any]], unit: str) -> Table:
    """Return the windows that were decided, oldest first."""
    table = Table(box=None, padding=(0, 1))
    for name in _COLUMNS:
        left = name in ("window", "decision")
        title = "sessions" if name == "users" and unit == "session" else name
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    for window in windows:
        table.add_row(*row_of(window))
    return table


def row_of(window: Mapping[str, Any]) -> list[str]:
    """Return one window as text, in the order of the columns."""
    return [
        window["name"].replace("T00:00Z", ""),
        f"{window['n_prompts']:,}",
        _whole(window.get("n_units")),
        _bits(window.get("score")),
        _bits(window.get("threshold")),
        _p(window.get("p_value")),
        _share(window.get("novel_current"), "–"),
        decision_text(window),
    ]


def decision_text(window: Mapping[str, Any]) -> str:
    """Return in a few words what was decided about a window."""
    if window["status"] == "empty":
        return "empty"
    if window.get("drift_detected"):
        return "DRIFT"
    if window["status"] == "alarm":
        return "cool-down" if window["in_cooldown"] else f"alarm {window['n_consecutive']}"
    return str(window["status"])


def _head(outcome: Mapping[str, Any]) -> str:
    champion = f"champion {outcome['champion']}, " if outcome.get("champion") else ""
    return f"{champion}{outcome['status']}"


def _lines(outcome: Mapping[str, Any]) -> list[str]:
    lines = [f"read: {outcome['told']}"] if outcome.get("told") else []
    for window in outcome.get("windows", ()):
        if window.get("moved"):
            moves = "; ".join(_move(move) for move in window["moved"][:5])
            lines.append(f"moved in {window['name']}: {moves}")
    lines += [f"note: {note}" for note in outcome.get("notes", ())]
    if outcome.get("error"):
        lines.append(outcome["error"])
    lines.append(f"next: {outcome['next']}")
    return lines


def _move(move: Mapping[str, Any]) -> str:
    before, after = (_share(move[f"{side}_share"], "few") for side in ("reference", "current"))
    return f"{move['label'][:60]} {before} → {after}"


def _whole(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _bits(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"


def _share(value: float | None, unknown: str) -> str:
    return unknown if value is None else f"{value:.1%}"

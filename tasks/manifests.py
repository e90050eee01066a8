"""Questions about past runs, answered from the catalogue and the runs' records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compass_core.languages import language_name
from compass_core.manifests import Catalog
from compass_core.records import ArtifactRef
from compass_core.report import data as report_data
from compass_core.report.page import render_report
from compass_core.storage import read_table, write_text
from tasks.dashboard import write_index
from tasks.reporting import read_run
from tasks.settings import open_catalog, open_store, runs_folder


def catalog() -> Catalog:
    """Return the catalogue of this home."""
    return open_catalog()


def languages_of(run_id: str) -> list[str]:
    """Return the languages that a run (or the last one) selected for."""
    runs = catalog().runs()
    chosen = runs[:1] if run_id == "last" else [run for run in runs if run["run_id"] == run_id]
    return list(chosen[0]["languages"]) if chosen else []


def render_report_again(run_id: str) -> Path:
    """Render the page of a run from its ``report.json``."""
    folder = runs_folder() / run_id
    report = report_data.from_json((folder / "report.json").read_text(encoding="utf-8"))
    write_text(folder / "report.html", render_report(report))
    write_index()
    return folder / "report.html"


def differences(run_a: str, run_b: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return rows of settings that differ, and of languages with selection and accuracy."""
    return {
        "settings": _setting_rows(run_a, run_b),
        "languages": _language_rows(read_run(run_a), read_run(run_b)),
    }


def _setting_rows(run_a: str, run_b: str) -> list[tuple[Any, ...]]:
    import yaml

    settings = []
    for run_id in (run_a, run_b):
        text = (runs_folder() / run_id / "config.yaml").read_text(encoding="utf-8")
        settings.append(_flat(yaml.safe_load(text)))
    first, second = settings
    names = sorted(first.keys() | second.keys())
    return [
        (name, str(first.get(name, "–")), str(second.get(name, "–")))
        for name in names
        if first.get(name) != second.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _language_rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    rows = []
    for language in first["languages"]:
        if language not in second["languages"]:
            continue
        outcomes = (first["languages"][language], second["languages"][language])
        if any("sample" not in outcome["artifacts"] for outcome in outcomes):
            continue
        chosen = [_selected_ids(outcome) for outcome in outcomes]
        before, after = (_accuracy(outcome) for outcome in outcomes)
        accuracy = change = "–"
        if before is not None and after is not None:
            accuracy = f"{before:.1%} → {after:.1%}"
            change = f"{100 * (after - before):+.1f}"
        rows.append(
            (
                language_name(language),
                len(chosen[0] & chosen[1]),
                len(chosen[0] - chosen[1]),
                len(chosen[1] - chosen[0]),
                accuracy,
                change,
            )
        )
    return rows


def _selected_ids(outcome: Mapping[str, Any]) -> set[str]:
    ref = ArtifactRef.from_dict(outcome["artifacts"]["sample"])
    rows = read_table(open_store().folder(ref) / "selected.parquet", ["id"])
    return set(rows["id"].to_pylist())


def _accuracy(outcome: Mapping[str, Any]) -> float | None:
    found = outcome["artifacts"].get("evaluate")
    if found is None:
        return None
    folder = open_store().folder(ArtifactRef.from_dict(found))
    correct = read_table(folder / "items.parquet", ["correct"])["correct"].to_pylist()
    return float(sum(correct) / len(correct))

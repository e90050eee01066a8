"""From artefacts and run records to rows: Arrow tables in the catalog's schema.

Parquet is read here with pyarrow and handed over as Arrow, so the database itself never opens a
file besides its own, and nothing is inserted row by row (that costs milliseconds each).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from compass_core.errors import DataError
from compass_core.manifests.schema import STAGES, arrow_schema
from compass_core.records import ArtifactRef
from compass_core.storage import ArtifactStore, canonical_json, read_json, read_table

Rows = dict[str, pa.Table]
"""Arrow tables by name of the catalog's table."""

NO_ARM = ""
"""Arm of an artefact that belongs to the language as a whole."""


@dataclass(frozen=True, slots=True)
class RunLink:
    """One artefact that a run used: for which language, in which arm."""

    language: str
    arm: str
    ref: ArtifactRef


def artifact_rows(store: ArtifactStore, ref: ArtifactRef) -> Rows:
    """Return every row that artefact `ref` contributes, its files verified by hash.

    Raises:
        StoreError: the artefact is missing or its files changed.
        DataError: its files lack a column or a field.
    """
    store.verify(ref)
    folder = store.folder(ref)
    provenance = store.manifest(ref)["provenance"]
    try:
        rows = _READERS[ref.kind](ref, folder, provenance)
    except (KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"The artefact {ref.path} cannot be indexed: {type(error).__name__} {error}. "
            "Delete the folder and run the same command again."
        ) from error
    ledger = {
        "kind": ref.kind,
        "fingerprint": ref.fingerprint,
        "sha256": ref.sha256,
        "path": ref.path,
        "bytes": ref.bytes,
        "rows": ref.rows,
    }
    return {"artifacts": _one_row("artifacts", ledger)} | rows


def run_rows(run: Mapping[str, Any], sha256: str) -> Rows:
    """Return the rows of one run record (``run.json``)."""
    run_id = str(run["run_id"])
    languages: Mapping[str, Any] = run.get("languages") or {}
    head = {
        "run_id": run_id,
        "started": _optional_text(run.get("started")),
        "finished": _optional_text(run.get("finished")),
        "config_path": _optional_text(run.get("config_path")),
        "main_arm": _optional_text(run.get("main_arm")),
        "languages": sorted(languages),
        "sha256": sha256,
    }
    states = [_state(run_id, *entry) for entry in sorted(languages.items())]
    links = [
        {
            "run_id": run_id,
            "language": link.language,
            "arm": link.arm,
            "kind": link.ref.kind,
            "fingerprint": link.ref.fingerprint,
        }
        for link in run_links(run)
    ]
    return {
        "runs": _one_row("runs", head),
        "run_languages": _rows("run_languages", states),
        "run_artifacts": _rows("run_artifacts", links),
    }


def _state(run_id: str, language: str, outcome: Mapping[str, Any]) -> dict[str, Any]:
    verdict = outcome.get("verdict") or {}
    registered = outcome.get("registry") or {}
    reasons = verdict.get("reasons")
    return {
        "run_id": run_id,
        "language": language,
        "status": str(outcome.get("status", "")),
        "error": _optional_text(outcome.get("error")),
        "promote": verdict.get("promote"),
        "reasons": None if reasons is None else [str(reason) for reason in reasons],
        "p_value": verdict.get("p_value"),
        "champion_before": _optional_text(verdict.get("champion")),
        "model": _optional_text(registered.get("name")),
        "version": _optional_text(registered.get("version")),
        "tracking_run_id": _optional_text(registered.get("run_id")),
    }


def run_links(run: Mapping[str, Any]) -> list[RunLink]:
    """Return the indexable artefacts that a run record refers to, once per language and arm.

    The arm is the key below ``arms``, or what follows the stage in a name like
    ``evaluate champion``.
    """
    found: dict[tuple[str, str, str, str], RunLink] = {}
    for language, values in sorted((run.get("languages") or {}).items()):
        for path, ref in _references(values, ()):
            if ref.kind in STAGES:
                arm = _arm(path)
                name = (language, arm, ref.kind, ref.fingerprint)
                found[name] = RunLink(language, arm, ref)
    return list(found.values())


def _arm(path: tuple[str, ...]) -> str:
    if "arms" in path[:-1]:
        return path[path.index("arms") + 1]
    return path[-1].partition(" ")[2] if path else NO_ARM


def _references(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ArtifactRef]]:
    """Walk JSON values; whatever has the fields of a reference is one."""
    if isinstance(value, Mapping):
        if {"kind", "fingerprint", "path", "sha256", "bytes"} <= set(value):
            fields = ("kind", "fingerprint", "path", "sha256", "bytes", "rows")
            yield path, ArtifactRef(**{name: value[name] for name in fields if name in value})
            return
        for name, inner in value.items():
            yield from _references(inner, (*path, str(name)))
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner, path)


def _selection(ref: ArtifactRef, folder: Path, provenance: Mapping[str, Any]) -> Rows:
    selected = read_table(folder / "selected.parquet")
    clusters = read_table(folder / "clusters.parquet")
    selected = selected.rename_columns(
        ["source_language" if name == "language" else name for name in selected.column_names]
    )
    head = {
        "fingerprint": ref.fingerprint,
        "language": provenance["language"],
        "strategy": provenance.get("strategy"),
        "budget": provenance.get("budget"),
        "seed": provenance.get("seed"),
        "n_examples": selected.num_rows,
        "n_clusters": clusters.num_rows,
        "n_source_languages": pc.count_distinct(selected["source_language"]).as_py(),
        "config": canonical_json(provenance.get("config") or {}),
        "inputs": canonical_json(provenance.get("inputs") or {}),
        "provenance": canonical_json(provenance),
    }
    return {
        "selections": _one_row("selections", head),
        "selected_examples": _numbered("selected_examples", selected, ref),
        "clusters": _numbered("clusters", clusters, ref),
    }


def _evaluation(ref: ArtifactRef, folder: Path, provenance: Mapping[str, Any]) -> Rows:
    items = read_table(folder / "items.parquet")
    correct = pc.sum(items["correct"].cast(pa.int64())).as_py() or 0
    head = {
        "fingerprint": ref.fingerprint,
        "language": provenance["language"],
        "adapter_sha256": provenance.get("adapter_sha256"),
        "base": _optional_text(provenance.get("base")),
        "n_items": items.num_rows,
        "n_correct": correct,
        "accuracy": correct / items.num_rows if items.num_rows else None,
        "inputs": canonical_json(provenance.get("inputs") or {}),
        "provenance": canonical_json(provenance),
    }
    return {
        "evaluations": _one_row("evaluations", head),
        "samples": _numbered("samples", _with_cluster(items), ref),
    }


def _with_cluster(items: pa.Table) -> pa.Table:
    """Return scored items with a cluster each: null where they were not placed when scored."""
    if "cluster" in items.column_names:
        return items
    return items.append_column("cluster", pa.nulls(items.num_rows, pa.int32()))


_DECISION_NUMBERS = ("p_value", "n_items", "wins", "losses", "accuracy_before", "accuracy_after")


def _decision(ref: ArtifactRef, folder: Path, provenance: Mapping[str, Any]) -> Rows:
    decision = {**provenance, **read_json(folder / "decision.json")}
    head = {
        "fingerprint": ref.fingerprint,
        "language": decision["language"],
        "promote": bool(decision["promote"]),
        "reasons": [str(reason) for reason in decision.get("reasons") or []],
        **{name: decision.get(name) for name in _DECISION_NUMBERS},
        "detail": canonical_json(decision),
    }
    return {"decisions": _one_row("decisions", head)}


_WINDOW_FIELDS = {
    "window_name": "name",
    "window_start": "start",
    "window_end": "end",
    "drift_score": "score",
    "drift_threshold": "threshold",
}
"""Columns of a window whose field has another name."""


def _drift_window(ref: ArtifactRef, folder: Path, _provenance: Mapping[str, Any]) -> Rows:
    window = read_json(folder / "drift.json")
    renamed = {column: window[field] for column, field in _WINDOW_FIELDS.items()}
    columns = arrow_schema("drift_windows").names
    head = {name: window[name] for name in columns if name in window} | renamed
    head |= {"fingerprint": ref.fingerprint, "detail": canonical_json(window)}
    return {"drift_windows": _one_row("drift_windows", head)}


_READERS: dict[str, Callable[[ArtifactRef, Path, Mapping[str, Any]], Rows]] = {
    "sample": _selection,
    "evaluate": _evaluation,
    "decision": _decision,
    "drift": _drift_window,
}


def _numbered(table: str, rows: pa.Table, ref: ArtifactRef) -> pa.Table:
    """Return `rows` in the columns and types of `table`, with the artefact's name and positions."""
    n_rows = rows.num_rows
    extra = {
        "fingerprint": pa.repeat(pa.scalar(ref.fingerprint), n_rows),
        "position": pa.array(range(n_rows), pa.int64()),
    }
    schema = arrow_schema(table)
    columns = [extra[name] if name in extra else _plain(rows[name]) for name in schema.names]
    return pa.table(columns, names=schema.names).cast(schema)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return dictionary-encoded text as text and nested values as JSON; leave the rest."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        texts = [json.dumps(value, ensure_ascii=False) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return column


def _one_row(table: str, values: Mapping[str, Any]) -> pa.Table:
    return _rows(table, [values])


def _rows(table: str, rows: list[Any]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=arrow_schema(table))


def _optional_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)

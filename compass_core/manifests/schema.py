"""Tables of the catalog, and the settings every connection runs under.

Raise `SCHEMA_VERSION` with any change below: a catalog of another version is rebuilt from the
store, never migrated, because it holds nothing of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

SCHEMA_VERSION = 2

Settings = dict[str, str | bool | int | float | list[str]]

_MEMORY_LIMIT = "1GB"
_THREADS = 2

TABLES = {
    "meta": "schema_version INTEGER, duckdb_version VARCHAR",
    "artifacts": (
        "kind VARCHAR, fingerprint VARCHAR, sha256 VARCHAR, path VARCHAR, bytes BIGINT, rows BIGINT"
    ),
    "runs": (
        "run_id VARCHAR, started VARCHAR, finished VARCHAR, config_path VARCHAR, "
        "main_arm VARCHAR, languages VARCHAR[], sha256 VARCHAR"
    ),
    "run_languages": (
        "run_id VARCHAR, language VARCHAR, status VARCHAR, error VARCHAR, promote BOOLEAN, "
        "reasons VARCHAR[], p_value DOUBLE, champion_before VARCHAR, model VARCHAR, "
        "version VARCHAR, tracking_run_id VARCHAR"
    ),
    "run_artifacts": (
        "run_id VARCHAR, language VARCHAR, arm VARCHAR, kind VARCHAR, fingerprint VARCHAR"
    ),
    "selections": (
        "fingerprint VARCHAR, language VARCHAR, strategy VARCHAR, budget BIGINT, seed BIGINT, "
        "n_examples BIGINT, n_clusters BIGINT, n_source_languages BIGINT, "
        "config VARCHAR, inputs VARCHAR, provenance VARCHAR"
    ),
    "selected_examples": (
        "fingerprint VARCHAR, position BIGINT, id VARCHAR, source_language VARCHAR, "
        "source VARCHAR, licence VARCHAR, topic VARCHAR, parallel_id VARCHAR, cluster INTEGER, "
        "distance FLOAT, reason VARCHAR, prompt VARCHAR, response VARCHAR"
    ),
    "clusters": (
        "fingerprint VARCHAR, cluster INTEGER, label VARCHAR, usage_count BIGINT, "
        "coverage_count BIGINT, pool_count BIGINT, usage_share DOUBLE, coverage_share DOUBLE, "
        "gap DOUBLE, capacity BIGINT, allocation BIGINT, selected BIGINT"
    ),
    "evaluations": (
        "fingerprint VARCHAR, language VARCHAR, adapter_sha256 VARCHAR, base VARCHAR, "
        "n_items BIGINT, n_correct BIGINT, accuracy DOUBLE, inputs VARCHAR, provenance VARCHAR"
    ),
    "samples": (
        "fingerprint VARCHAR, position BIGINT, id VARCHAR, topic VARCHAR, correct BOOLEAN, "
        "predicted VARCHAR, answer VARCHAR"
    ),
    "decisions": (
        "fingerprint VARCHAR, language VARCHAR, promote BOOLEAN, reasons VARCHAR[], "
        "p_value DOUBLE, n_items BIGINT, wins BIGINT, losses BIGINT, accuracy_before DOUBLE, "
        "accuracy_after DOUBLE, detail VARCHAR"
    ),
    "drift_windows": (
        "fingerprint VARCHAR, language VARCHAR, space VARCHAR, champion VARCHAR, "
        "window_name VARCHAR, window_start VARCHAR, window_end VARCHAR, decided VARCHAR, "
        "status VARCHAR, n_prompts BIGINT, n_units BIGINT, drift_score DOUBLE, "
        "drift_threshold DOUBLE, p_value DOUBLE, level DOUBLE, novel_reference DOUBLE, "
        "novel_current DOUBLE, drift_detected BOOLEAN, in_cooldown BOOLEAN, reason VARCHAR, "
        "detail VARCHAR"
    ),
}
"""Columns of each table; `fingerprint` names the artefact a row came from."""

STAGE_TABLES = {
    "sample": ("selections", "selected_examples", "clusters"),
    "evaluate": ("evaluations", "samples"),
    "decision": ("decisions",),
    "drift": ("drift_windows",),
}
"""Tables that an artefact of each kind fills; its rows there leave with it."""

STAGES = tuple(STAGE_TABLES)
"""Kinds of artefact that the catalog indexes."""

RUN_TABLES = ("runs", "run_languages", "run_artifacts")
"""Tables whose rows leave with their run."""


_ARROW_TYPES = {
    "VARCHAR": pa.string(),
    "VARCHAR[]": pa.list_(pa.string()),
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "FLOAT": pa.float32(),
    "BOOLEAN": pa.bool_(),
}


def arrow_schema(table: str) -> pa.Schema:
    """Return the columns of `table` as Arrow sees them, in order."""
    pairs = [column.split() for column in TABLES[table].split(", ")]
    return pa.schema([(name, _ARROW_TYPES[kind]) for name, kind in pairs])


def connection_settings(scratch: Path) -> Settings:
    """Return the settings of one connection: bounded memory, no extensions, no Python variables.

    Args:
        scratch: Folder for what does not fit into memory.
    """
    return {
        "memory_limit": _MEMORY_LIMIT,
        "threads": str(min(_THREADS, os.cpu_count() or 1)),
        "temp_directory": str(scratch),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "python_enable_replacements": "false",
    }


LOCK_DOWN = ("SET enable_external_access = false", "SET lock_configuration = true")
"""Run once a connection is open: no file but the catalog can be read or written any more."""

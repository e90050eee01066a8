"""How much one home holds: store, catalogue, registry and Prefect's database, per language.

Reads a finished home, such as the one that ``benchmarks/orchestration.py --home HOME`` makes, and
changes nothing in it:

    python benchmarks/footprint.py --home /tmp/compass-42
    python benchmarks/footprint.py --home HOME --prefect-db HOME/prefect/prefect.db
"""

from __future__ import annotations

import argparse
import collections
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from compass_core.manifests import CATALOG_NAME
from compass_core.storage import MANIFEST_NAME, NOT_ARTEFACTS


def artefacts(home: Path) -> Iterator[dict[str, Any]]:
    """Yield the manifest of every artefact, with its number of files."""
    for path in sorted((home / "store").glob(f"*/*/{MANIFEST_NAME}")):
        if path.parent.parent.name not in NOT_ARTEFACTS:
            yield json.loads(path.read_text(encoding="utf-8"))


def rows_of(database: Path, tables: tuple[str, ...]) -> dict[str, int]:
    """Return the number of rows of each table that a SQLite file has."""
    with sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True) as connection:
        found = {}
        for table in tables:
            # Names come from this file, never from outside.
            (found[table],) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return found


def print_store(home: Path, n_languages: int) -> None:
    """Print size, files and requests of the artefacts by kind."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for manifest in artefacts(home):
        size = sum(meta["bytes"] for meta in manifest["files"].values())
        counts[manifest["kind"]].update(n=1, bytes=size, files=len(manifest["files"]))
    print(f"{'store, by kind':22}{'artefacts':>10}{'files':>8}{'kB each':>12}")
    for kind, found in sorted(counts.items(), key=lambda item: -item[1]["bytes"]):
        each = found["bytes"] / found["n"] / 1000
        print(f"  {kind:20}{found['n']:10}{found['files']:8}{each:12.1f}")
    n, size, files = (sum(f[name] for f in counts.values()) for name in ("n", "bytes", "files"))
    print(f"  together: {n} artefacts, {files} files, {size / 1e6:.1f} MB", end="; per language: ")
    print(f"{n / n_languages:.1f} artefacts, {files / n_languages:.1f} files", end=", ")
    print(f"{size / n_languages / 1e6:.2f} MB")
    puts = 2 * n + files
    print(f"  requests to share them: {puts} ({puts / n_languages:.0f} per language)")


def print_catalog(home: Path, n_languages: int) -> None:
    """Print size and rows of the catalogue, which is opened as it lies and never repaired."""
    path = home / CATALOG_NAME
    size = path.stat().st_size
    print(f"catalogue: {size / 1e6:.1f} MB, {size / n_languages / 1e3:.0f} kB per language; rows")
    with duckdb.connect(str(path), read_only=True) as connection:
        names = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        for (name,) in sorted(names):
            ((count,),) = connection.execute(f"SELECT count(*) FROM {name}").fetchall()
            print(f"  {name:24}{count:8}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--prefect-db", type=Path)
    options = parser.parse_args()
    home: Path = options.home
    runs = [json.loads(path.read_text("utf-8")) for path in home.glob("runs/*/run.json")]
    languages = {language for run in runs for language in run["languages"]}
    print(f"{len(languages)} languages, {len(runs)} runs")
    print_store(home, len(languages))
    print_catalog(home, len(languages))
    tables = ("runs", "params", "tags", "metrics", "model_versions", "model_version_tags")
    found = rows_of(home / "mlflow.db", tables)
    size = (home / "mlflow.db").stat().st_size
    each = size / max(found["runs"], 1) / 1000
    print(f"MLflow: {size / 1e6:.1f} MB, {each:.0f} kB per run of a language; rows {found}")
    if options.prefect_db:
        counted = rows_of(options.prefect_db, ("flow_run", "task_run", "log", "events"))
        size = options.prefect_db.stat().st_size
        each = size / max(counted["task_run"], 1) / 1000
        print(f"Prefect: {size / 1e6:.1f} MB, {each:.1f} kB per task run; rows {counted}")


if __name__ == "__main__":
    main()

"""How long the catalog takes: extend by one run, rebuild per million rows, one question.

Compares extension (copy the file, add the run, rename) with the obvious alternatives on the same
data: rebuild everything, and insert row by row. Run it from the repository's root:

    python benchmarks/catalog.py --rows 1000000 --folder /tmp/catalog-benchmark
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from compass_core.manifests import Catalog
from compass_core.manifests.indexing import artifact_rows
from compass_core.manifests.schema import TABLES
from compass_core.records import ArtifactRef
from compass_core.storage import ArtifactStore, write_json, write_table

N_CLUSTERS = 100
ROWS_PER_LANGUAGE = 20_000


def add_selection(home: Path, language: str, n_rows: int, seed: int) -> ArtifactRef:
    """Store one selection of `n_rows` synthetic examples."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, N_CLUSTERS, n_rows)
    text = "x" * 120
    selected = pa.table(
        {
            "id": [f"{seed}-{row}" for row in range(n_rows)],
            "language": pa.array(rng.choice(["yor_Latn", "hau_Latn", "zul_Latn"], n_rows)),
            "source": ["corpus"] * n_rows,
            "licence": ["Apache-2.0"] * n_rows,
            "topic": [""] * n_rows,
            "parallel_id": [""] * n_rows,
            "cluster": pa.array(cluster, pa.int32()),
            "distance": pa.array(rng.random(n_rows), pa.float32()),
            "reason": [f"gap in cluster {number}" for number in cluster],
            "prompt": [f"{row} {text}" for row in range(n_rows)],
            "response": [text] * n_rows,
        }
    )
    counts = np.bincount(cluster, minlength=N_CLUSTERS)
    names = ("usage_count", "coverage_count", "pool_count", "capacity", "allocation", "selected")
    clusters = pa.table(
        {
            "cluster": pa.array(range(N_CLUSTERS), pa.int32()),
            "label": [f"label {number}" for number in range(N_CLUSTERS)],
            **{name: counts for name in names},
            **{name: rng.random(N_CLUSTERS) for name in ("usage_share", "coverage_share", "gap")},
        }
    )
    store = ArtifactStore(home / "store")
    with store.build("sample", f"{seed:032x}", {"language": language}) as draft:
        draft.rows = n_rows
        write_table(draft.folder / "selected.parquet", selected)
        write_table(draft.folder / "clusters.parquet", clusters)
    return store.put("sample", f"{seed:032x}", draft)


def add_run(home: Path, number: int, ref: ArtifactRef, language: str) -> Path:
    """Write the record of a run with one selection."""
    record = home / "runs" / f"run-{number:04}" / "run.json"
    languages = {language: {"status": "done", "artifacts": {"sample": ref.to_dict()}}}
    values = {"run_id": record.parent.name, "started": f"{number:04}", "languages": languages}
    write_json(record, values)
    return record


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def insert_row_by_row(folder: Path, rows: pa.Table) -> None:
    """Insert `rows` with executemany, the alternative everybody writes first."""
    path = folder / "row-by-row.duckdb"
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"CREATE TABLE t ({TABLES['selected_examples']})")
        marks = ", ".join("?" * rows.num_columns)
        values = [list(row.values()) for row in rows.to_pylist()]
        connection.executemany(f"INSERT INTO t VALUES ({marks})", values)


def main() -> None:
    """Build the data, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("benchmark-catalog"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    home: Path = arguments.folder
    shutil.rmtree(home, ignore_errors=True)
    catalog = Catalog(home)
    store = ArtifactStore(home / "store")

    small = [add_selection(home, "swh_Latn", 400, seed) for seed in range(arguments.repeats)]
    records = [add_run(home, seed, ref, "swh_Latn") for seed, ref in enumerate(small)]
    catalog.rebuild()
    catalog.path.unlink()
    rows = artifact_rows(store, small[0])["selected_examples"]
    by_row = seconds(lambda: insert_row_by_row(home, rows))
    catalog.extend(add_run(home, 900, small[0], "yor_Latn"))
    extra = [add_selection(home, "swh_Latn", 400, 500 + seed) for seed in range(len(records))]
    fresh = [add_run(home, 500 + seed, ref, "swh_Latn") for seed, ref in enumerate(extra)]
    extend = statistics.median(seconds(lambda r=r: catalog.extend(r)) for r in fresh)
    again = statistics.median(seconds(lambda r=r: catalog.extend(r)) for r in fresh)
    print(f"extend by one run of 400 rows   {extend:7.3f} s   (executemany: {by_row:.3f} s)")
    print(f"extend by a run already known   {again:7.3f} s")

    n_languages = max(arguments.rows // ROWS_PER_LANGUAGE, 1)
    for number in range(n_languages):
        ref = add_selection(home, f"language {number}", ROWS_PER_LANGUAGE, 10_000 + number)
        add_run(home, 10_000 + number, ref, f"language {number}")
    rebuild = seconds(catalog.rebuild)
    n_rows = catalog.query("SELECT count(*) AS n FROM selected_examples")["n"][0].as_py()
    size = catalog.path.stat().st_size / 2**20
    print(f"rebuild of {n_rows:,} rows   {rebuild:7.2f} s   ({size:.0f} MiB)")
    late = [add_selection(home, "swh_Latn", 400, 700 + seed) for seed in range(len(records))]
    late_runs = [add_run(home, 700 + seed, ref, "swh_Latn") for seed, ref in enumerate(late)]
    extend = statistics.median(seconds(lambda r=r: catalog.extend(r)) for r in late_runs)
    ratio = rebuild / extend
    print(f"extend that catalog by 400 rows {extend:7.3f} s   (rebuild / extend: {ratio:.0f})")
    ask = statistics.median(
        seconds(lambda: catalog.by_source_language("language 0")) for _ in range(5)
    )
    print(f"one question to that catalog    {ask:7.3f} s")


if __name__ == "__main__":
    main()

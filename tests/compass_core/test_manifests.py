"""The catalog: a view of the store that answers questions and may be lost at any time."""

import json
import multiprocessing
import uuid

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from compass_core.errors import DataError, StoreError
from compass_core.manifests import CATALOG_NAME, Catalog
from compass_core.manifests import schema as schema_of_catalog
from compass_core.manifests.catalog import DAMAGED_NAME
from compass_core.records import ArtifactRef
from compass_core.remote_store import RemoteStore
from compass_core.storage import ArtifactStore, fingerprint, write_json, write_table

SOURCES = ("hau_Latn", "yor_Latn", "zul_Latn")


@pytest.fixture
def home(tmp_path):
    ArtifactStore(tmp_path / "store")
    return tmp_path


def build(home, kind, key, provenance, files, rows=0):
    store = ArtifactStore(home / "store")
    with store.build(kind, key, provenance) as draft:
        draft.rows = rows
        for name, content in files.items():
            if isinstance(content, pa.Table):
                write_table(draft.folder / name, content)
            else:
                write_json(draft.folder / name, content)
    return store.put(kind, key, draft)


def selected_table(n, seed=0):
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, 3, n)
    return pa.table(
        {
            "id": [f"{seed}-{row}" for row in range(n)],
            "language": [SOURCES[row % 3] for row in range(n)],
            "source": ['corpus\'s "own"'] * n,
            "licence": ["CC-BY-4.0" if row % 2 else "Apache-2.0" for row in range(n)],
            "topic": ["science"] * n,
            "parallel_id": [""] * n,
            "cluster": pa.array(clusters, pa.int32()),
            "distance": pa.array(rng.random(n), pa.float32()),
            "reason": [f"gap in cluster {cluster}" for cluster in clusters],
            "prompt": ["swali; DROP TABLE runs"] * n,
            "response": ["jibu 'x'"] * n,
        }
    )


def cluster_table(selected):
    counts = np.bincount(selected["cluster"].to_numpy(), minlength=3)
    return pa.table(
        {
            "cluster": pa.array([0, 1, 2], pa.int32()),
            "label": ["rain", "money", "verbs"],
            "usage_count": [5, 3, 2],
            "coverage_count": [0, 3, 2],
            "pool_count": [50, 60, 70],
            "usage_share": [0.5, 0.3, 0.2],
            "coverage_share": [0.0, 0.6, 0.4],
            "gap": [0.5, 0.0, 0.1],
            "capacity": [40, 50, 60],
            "allocation": counts,
            "selected": counts,
        }
    )


def add_selection(home, language="swh_Latn", n=12, seed=0, strategy="compass"):
    selected = selected_table(n, seed)
    provenance = {
        "language": language,
        "strategy": strategy,
        "budget": n,
        "seed": seed,
        "config": {"smoothing": 0.5},
        "inputs": {"pool": {"kind": "ingest", "sha256": "ab" * 32}},
    }
    key = fingerprint("sample", language, strategy, seed, n)
    files = {"selected.parquet": selected, "clusters.parquet": cluster_table(selected)}
    return build(home, "sample", key, provenance, files, n)


def add_evaluation(home, language="swh_Latn", correct=(True, False, True)):
    n = len(correct)
    items = pa.table(
        {
            "id": [f"t{row}" for row in range(n)],
            "topic": ["science"] * n,
            "kind": ["choices"] * n,
            "correct": list(correct),
            "predicted": ["A"] * n,
            "answer": ["B"] * n,
        }
    )
    provenance = {
        "language": language,
        "adapter_sha256": "cd" * 32,
        "base": "starter",
        "inputs": {},
    }
    key = fingerprint("evaluate", language, list(correct))
    return build(home, "evaluate", key, provenance, {"items.parquet": items}, n)


def add_decision(home, run_id, language="swh_Latn", promote=True):
    decision = {
        "language": language,
        "promote": promote,
        "reasons": ["p = .001"],
        "p_value": 0.001,
        "n_items": 3,
        "wins": 2,
    }
    key = fingerprint("decision", run_id, language)
    return build(home, "decision", key, {"language": language}, {"decision.json": decision})


def write_run(home, run_id, languages, started="2026-01-01T00:00:00Z"):
    record = home / "runs" / run_id / "run.json"
    write_json(
        record,
        {
            "run_id": run_id,
            "started": started,
            "finished": None,
            "config_path": "starter.yaml",
            "languages": languages,
        },
    )
    return record


def outcome(artifacts, arms=None):
    return {
        "status": "promoted",
        "artifacts": {name: ref.to_dict() for name, ref in artifacts.items()},
        "arms": {
            arm: {stage: ref.to_dict() for stage, ref in refs.items()}
            for arm, refs in (arms or {}).items()
        },
        "registry": {"name": "compass.starter.swh_Latn", "version": "3", "run_id": "f" * 32},
        "verdict": {"promote": True, "reasons": ["p = .001"], "champion": "2", "p_value": 0.001},
    }


@pytest.fixture
def first_run(home):
    arms = {
        "all-data": {"sample": add_selection(home, seed=9, strategy="all-data")},
        "compass": {"sample": add_selection(home), "evaluate": add_evaluation(home)},
    }
    artifacts = {
        "sample compass": arms["compass"]["sample"],
        "sample all-data": arms["all-data"]["sample"],
        "evaluate compass": arms["compass"]["evaluate"],
        "evaluate champion": add_evaluation(home, correct=(True, False, False)),
        "decide": add_decision(home, "run-1"),
    }
    return write_run(home, "run-1", {"swh_Latn": outcome(artifacts, arms)})


def dump(catalog):
    """Every table as sorted rows: two catalogs are the same when this is."""

    def read(connection):
        return {
            table: sorted(map(repr, connection.sql(f"FROM {table}").fetchall()))
            for table in schema_of_catalog.TABLES
        }

    return catalog._reading(read)


# -- answers


def test_last_selection_of_a_language_says_what_how_and_how_much(home, first_run):
    catalog = Catalog(home)
    report = catalog.extend(first_run)
    assert (report.n_artifacts, report.n_runs, report.skipped) == (5, 1, ())
    summary = catalog.selection_summary("swh_Latn")
    assert summary["run_id"] == "run-1"
    assert (summary["strategy"], summary["budget"], summary["n_examples"]) == ("compass", 12, 12)
    assert (summary["n_clusters"], summary["n_gap_clusters"]) == (3, 2)
    assert summary["n_source_languages"] == 3
    assert summary["licences"] == ["Apache-2.0", "CC-BY-4.0"]
    assert summary["config"] == {"smoothing": 0.5}
    assert summary["inputs"]["pool"]["sha256"] == "ab" * 32
    assert summary["n_characters"] == 12 * len("swali; DROP TABLE runs" + "jibu 'x'")


def test_source_languages_share_sums_to_one_and_counts_match(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    table = catalog.by_source_language("swh_Latn")
    assert table["source_language"].to_pylist() == list(SOURCES)
    assert table["n_examples"].to_pylist() == [4, 4, 4]
    assert sum(table["share"].to_pylist()) == pytest.approx(1.0)


def test_clusters_come_widest_gap_first_with_their_sources(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    rows = catalog.by_cluster("swh_Latn").to_pylist()
    assert [row["label"] for row in rows] == ["rain", "verbs", "money"]
    for row in rows:
        counted = sum(int(part.rsplit(" ", 1)[1]) for part in row["sources"].split(", ") if part)
        assert counted == row["selected"]


def test_examples_keep_their_order_text_and_reason(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    expected = selected_table(12).to_pylist()
    rows = catalog.examples("swh_Latn", limit=100).to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    assert rows[0]["prompt"] == "swali; DROP TABLE runs"
    assert rows[0]["source"] == 'corpus\'s "own"'
    assert rows[0]["label"] == ["rain", "money", "verbs"][rows[0]["cluster"]]
    assert len(catalog.examples("swh_Latn", limit=5)) == 5
    some = catalog.examples("swh_Latn", source_language="yor_Latn", cluster=1).to_pylist()
    wanted = [r["id"] for r in expected if r["language"] == "yor_Latn" and r["cluster"] == 1]
    assert [row["id"] for row in some] == wanted


def test_reasons_are_counted(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    rows = catalog.by_reason("swh_Latn").to_pylist()
    assert sum(row["n_examples"] for row in rows) == 12
    assert rows[0]["n_examples"] == max(row["n_examples"] for row in rows)


def test_baseline_is_reached_by_its_arm_and_never_by_default(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    assert catalog.selection_summary("swh_Latn")["strategy"] == "compass"
    assert catalog.selection_summary("swh_Latn", arm="all-data")["strategy"] == "all-data"


def test_run_that_asked_for_a_baseline_shows_that_one(home, first_run):
    write_json(first_run, json.loads(first_run.read_text()) | {"main_arm": "all-data"})
    catalog = Catalog(home)
    catalog.extend(first_run)
    assert catalog.selection_summary("swh_Latn")["strategy"] == "all-data"
    assert catalog.source_matrix().num_rows == 3


def test_newest_run_wins_and_an_older_one_is_reached_by_id(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    newer = {"swh_Latn": outcome({"sample": add_selection(home, n=30, seed=1)})}
    catalog.extend(write_run(home, "run-2", newer, started="2026-02-01T00:00:00Z"))
    failed = {"swh_Latn": {"status": "failed", "artifacts": {}}}
    catalog.extend(write_run(home, "run-3", failed, started="2026-03-01T00:00:00Z"))
    assert catalog.selection_summary("swh_Latn")["n_examples"] == 30
    assert catalog.selection_summary("swh_Latn", run_id="run-1")["n_examples"] == 12
    assert [run["run_id"] for run in catalog.runs()] == ["run-3", "run-2", "run-1"]
    assert catalog.runs()[0]["states"] == ["swh_Latn failed"]


def test_evaluations_and_decisions_come_with_run_arm_and_detail(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    champion, evaluation = catalog.evaluations("swh_Latn")
    assert (champion["arm"], champion["n_correct"]) == ("champion", 1)
    assert (evaluation["n_items"], evaluation["n_correct"]) == (3, 2)
    assert evaluation["accuracy"] == pytest.approx(2 / 3)
    assert (evaluation["run_id"], evaluation["arm"]) == ("run-1", "compass")
    assert catalog.evaluations("swh_Latn", "run-9") == []
    (decision,) = catalog.decisions()
    assert decision["reasons"] == ["p = .001"]
    assert (decision["champion_before"], decision["version"]) == ("2", "3")
    assert (decision["run_id"], decision["n_items"], decision["wins"]) == ("run-1", 3, 2)
    assert decision["detail"]["language"] == "swh_Latn"
    assert catalog.decisions("yor_Latn") == []


def test_source_matrix_counts_targets_by_sources(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    cells = catalog.source_matrix().to_pylist()
    assert [(c["language"], c["source_language"], c["n_examples"]) for c in cells] == [
        ("swh_Latn", source, 4) for source in SOURCES
    ]


def test_language_without_selection_names_those_that_have_one(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    with pytest.raises(DataError, match=r"E51 .*yor_Latn in any run.*selection: swh_Latn"):
        catalog.selection_summary("yor_Latn")
    with pytest.raises(DataError, match=r"E51 .*in run run-7.*for it: run-1"):
        catalog.by_cluster("swh_Latn", run_id="run-7")


def test_text_that_looks_like_a_statement_is_only_a_value(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    with pytest.raises(DataError):
        catalog.selection_summary("x'; DROP TABLE runs; --")
    assert len(catalog.examples("swh_Latn", source_language="' OR 1=1 --")) == 0
    assert len(catalog.runs()) == 1


# -- the file


def test_extending_twice_adds_nothing_and_does_not_touch_the_file(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    before, inode = dump(catalog), catalog.path.stat().st_ino
    assert catalog.extend(first_run).n_rows == 0
    assert dump(catalog) == before
    assert catalog.path.stat().st_ino == inode


def test_rebuilt_catalog_equals_the_extended_one(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    second = {"yor_Latn": outcome({"sample": add_selection(home, "yor_Latn", seed=3)})}
    catalog.extend(write_run(home, "run-2", second))
    before = dump(catalog)
    catalog.rebuild()
    assert dump(catalog) == before


def test_run_record_that_grew_replaces_its_rows(home):
    sample = add_selection(home)
    record = write_run(home, "run-1", {"swh_Latn": outcome({"sample": sample})})
    catalog = Catalog(home)
    catalog.extend(record)
    both = {"sample": sample, "evaluate": add_evaluation(home)}
    catalog.extend(write_run(home, "run-1", {"swh_Latn": outcome(both)}))
    assert len(catalog.runs()) == 1
    assert len(catalog.evaluations("swh_Latn")) == 1
    assert len(catalog.examples("swh_Latn", limit=100)) == 12


def test_artifact_made_again_with_other_content_replaces_its_rows(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    run = json.loads(first_run.read_text())
    outcome_of_run = run["languages"]["swh_Latn"]
    old = ArtifactRef.from_dict(outcome_of_run["arms"]["compass"]["sample"])
    (home / "store" / old.path / "selected.parquet").unlink()
    selected = selected_table(6, seed=5)
    files = {"selected.parquet": selected, "clusters.parquet": cluster_table(selected)}
    new = build(home, "sample", old.fingerprint, {"language": "swh_Latn"}, files, 6)
    outcome_of_run["arms"]["compass"]["sample"] = new.to_dict()
    outcome_of_run["artifacts"]["sample compass"] = new.to_dict()
    write_json(first_run, run)
    catalog.extend(first_run)
    assert catalog.selection_summary("swh_Latn")["n_examples"] == 6
    assert len(catalog.examples("swh_Latn", limit=100)) == 6


def test_missing_catalog_is_rebuilt_by_the_first_question(home, first_run):
    assert Catalog(home).selection_summary("swh_Latn")["n_examples"] == 12


@pytest.mark.parametrize(
    "content", [b"", b"not a database" * 1000, None], ids=["empty", "text", "cut"]
)
def test_unreadable_catalog_is_set_aside_and_rebuilt(home, first_run, content):
    catalog = Catalog(home)
    catalog.extend(first_run)
    before = dump(catalog)
    broken = catalog.path.read_bytes()[:20_000] if content is None else content
    catalog.path.write_bytes(broken)
    assert dump(catalog) == before
    assert (home / DAMAGED_NAME).read_bytes() == broken
    catalog.path.write_bytes(broken)
    catalog.extend(first_run)
    assert dump(catalog) == before


def test_flipped_bits_anywhere_never_give_a_wrong_answer(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    before, whole = dump(catalog), catalog.path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), 5):
        broken = bytearray(whole)
        broken[position] ^= 1
        catalog.path.write_bytes(broken)
        assert dump(catalog) == before


def test_catalog_of_another_schema_is_rebuilt(home, first_run):
    catalog = Catalog(home)
    catalog.extend(first_run)
    with duckdb.connect(str(catalog.path)) as connection:
        connection.execute("UPDATE meta SET schema_version = 99")
    assert catalog.selection_summary("swh_Latn")["n_examples"] == 12
    assert catalog.query("SELECT schema_version AS v FROM meta")["v"].to_pylist() == [
        schema_of_catalog.SCHEMA_VERSION
    ]
    with duckdb.connect(str(catalog.path)) as connection:
        connection.execute("DROP TABLE meta")
    assert len(catalog.runs()) == 1


def test_damaged_artifact_is_left_out_of_a_rebuild_and_named(home, first_run):
    catalog = Catalog(home)
    sample = add_selection(home, "yor_Latn")
    path = home / "store" / sample.path / "selected.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = catalog.rebuild()
    assert report.n_artifacts == 5
    assert len(report.skipped) == 1
    assert sample.path in report.skipped[0]
    with pytest.raises(StoreError, match="E29"):
        catalog.extend(write_run(home, "run-2", {"yor_Latn": outcome({"sample": sample})}))
    assert len(catalog.runs()) == 1


def test_artifact_without_a_needed_column_is_named(home):
    files = {"selected.parquet": pa.table({"id": ["a"]}), "clusters.parquet": pa.table({"x": [1]})}
    build(home, "sample", "0" * 32, {"language": "swh_Latn"}, files)
    (problem,) = Catalog(home).rebuild().skipped
    assert "sample/000" in problem
    assert "language" in problem


def test_unreadable_run_record_is_named_and_the_others_stay(home, first_run):
    bad = home / "runs" / "run-0" / "run.json"
    bad.parent.mkdir()
    bad.write_text("{")
    catalog = Catalog(home)
    assert len(catalog.rebuild().skipped) == 1
    assert len(catalog.runs()) == 1
    with pytest.raises(DataError, match=r"run-0/run\.json cannot be read"):
        catalog.extend(bad)


def test_home_without_a_store_says_what_to_run(tmp_path):
    with pytest.raises(StoreError, match="compass adapt"):
        Catalog(tmp_path / "nowhere").runs()
    assert not (tmp_path / "nowhere").exists()


def test_home_with_an_empty_store_has_no_runs(home):
    assert Catalog(home).runs() == []
    with pytest.raises(DataError, match="No run has selected anything yet"):
        Catalog(home).selection_summary("swh_Latn")


def test_path_with_a_quote_is_fine(tmp_path):
    home = tmp_path / "o'brien"
    ArtifactStore(home / "store")
    record = write_run(home, "run-1", {"swh_Latn": outcome({"sample": add_selection(home)})})
    Catalog(home).extend(record)
    assert Catalog(home).selection_summary("swh_Latn")["n_examples"] == 12


# -- what a connection may do


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('/etc/hostname')",
        "SELECT * FROM read_parquet('store/sample/*/selected.parquet')",
        "ATTACH '/tmp/elsewhere.duckdb' AS other",
        "COPY (SELECT 1) TO '/tmp/elsewhere.csv'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '64GB'",
        "DELETE FROM runs",
        "SELECT * FROM first_run",
    ],
)
def test_connection_reads_the_catalog_and_nothing_else(home, first_run, statement):
    catalog = Catalog(home)
    catalog.extend(first_run)
    inode = catalog.path.stat().st_ino
    with pytest.raises(duckdb.Error):
        catalog.query(statement)
    assert catalog.path.stat().st_ino == inode
    assert len(catalog.runs()) == 1


def test_draft_of_a_killed_writer_is_swept_and_harmless(home, first_run):
    left_over = home / f".{CATALOG_NAME}.deadbeef"
    left_over.write_bytes(b"half a file")
    Catalog(home).extend(first_run)
    assert not left_over.exists()
    assert [path.name for path in home.glob(".*")] == []


def test_disk_full_while_extending_leaves_the_old_catalog(home, first_run, monkeypatch):
    catalog = Catalog(home)
    catalog.extend(first_run)
    before = dump(catalog)
    second = {"yor_Latn": outcome({"sample": add_selection(home, "yor_Latn", seed=3)})}
    record = write_run(home, "run-2", second)

    def full(*_args):
        raise OSError(28, "No space left on device")

    for name in ("shutil.copyfile", "fsync_path"):
        with monkeypatch.context() as patch:
            patch.setattr(f"compass_core.manifests.catalog.{name}", full)
            with pytest.raises(StoreError, match="E64 No space left"):
                catalog.extend(record)
        assert [path.name for path in home.glob(".*")] == []
    assert dump(catalog) == before
    catalog.extend(record)
    assert len(catalog.runs()) == 2


# -- several machines


def test_machine_that_made_nothing_rebuilds_its_catalog_from_object_storage(home, first_run):
    url = f"memory://{uuid.uuid4().hex}"
    Catalog(home).extend(first_run)
    shared = RemoteStore(home / "store", url)
    for kind in shared.kinds():
        shared.refs(kind)  # what a folder held is shared when it is looked at
    there = home / "another"
    catalog = Catalog(there, lambda: RemoteStore(there / "store", url))
    report = catalog.rebuild()
    assert report.skipped == ()
    assert dump(catalog)["selected_examples"] == dump(Catalog(home))["selected_examples"]
    assert report.n_artifacts == len(dump(Catalog(home))["artifacts"])
    assert report.n_runs == 0, "runs are told where they ran"


# -- processes


def _publish_and_index(home, number, n_runs, start):
    start.wait()
    catalog = Catalog(home)
    for run in range(n_runs):
        artifacts = {"sample": add_selection(home, n=50, seed=number * n_runs + run)}
        catalog.extend(write_run(home, f"run-{number}-{run}", {"swh_Latn": outcome(artifacts)}))
        assert catalog.runs()


@pytest.mark.slow
def test_processes_that_publish_and_index_at_once_lose_nothing(home):
    n_processes, n_runs = 8, 4
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    workers = [
        context.Process(target=_publish_and_index, args=(home, number, n_runs, start))
        for number in range(n_processes)
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * n_processes
    catalog = Catalog(home)
    assert len(catalog.runs()) == n_processes * n_runs
    extended = dump(catalog)
    assert len(extended["selected_examples"]) == n_processes * n_runs * 50
    catalog.rebuild()
    assert dump(catalog) == extended

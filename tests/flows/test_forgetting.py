"""`compass forget` on a home with a finished run: nothing under it holds the row afterwards."""

import json
import os
import shutil
import sqlite3
from datetime import UTC, datetime

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from compass_core.errors import InputError
from compass_core.forgotten import Forgotten
from compass_core.storage import read_json, write_array, write_table
from flows.cli import app
from tasks import registry
from tasks.forgetting import apply_forget, plan_forget
from tasks.lineage import LINEAGE_TAG, lineage_of, write_lineage
from tasks.monitoring import open_log
from tasks.pools import open_pool
from tasks.promotion import configure_tracking
from tasks.retention import apply_clean, plan_clean
from tasks.settings import open_store

from .conftest import small_config

SWAHILI = "swh_Latn"


def everything_in(home):
    """Yield (file, all its bytes and, of tables and databases, all their values)."""
    files = [path for path in home.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data += repr(pq.read_table(path).to_pylist()).encode()
        elif path.suffix == ".duckdb":
            data += repr(tables_of(path)).encode()
        elif data.startswith(b"SQLite format 3\0"):
            data += b"\n".join(line.encode() for line in sqlite3.connect(path).iterdump())
        yield path, data


def tables_of(path):
    with duckdb.connect(str(path), read_only=True) as connection:
        names = [row[0] for row in connection.sql("SHOW TABLES").fetchall()]
        return [connection.sql(f'SELECT * FROM "{name}"').fetchall() for name in names]


def holders(home, *needles):
    return [
        path.relative_to(home).as_posix()
        for path, data in everything_in(home)
        if any(needle.encode() in data for needle in needles)
    ]


@pytest.fixture
def copied_home(finished_run, tmp_path, monkeypatch):
    """A copy of the finished run's home, so that the run stays for other tests."""
    home = tmp_path / "home"
    shutil.copytree(finished_run.home, home)
    monkeypatch.setenv("COMPASS_HOME", str(home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{home / 'mlflow.db'}")
    configure_tracking()
    yield home
    monkeypatch.undo()
    configure_tracking()


def selected_row(home):
    """Return a training example that the run selected for Swahili."""
    store = open_store()
    for ref in store.refs("sample"):
        manifest = store.manifest(ref)["provenance"]
        if manifest["language"] == SWAHILI and manifest["strategy"] == "compass":
            return pq.read_table(store.folder(ref) / "selected.parquet").to_pylist()[3]
    raise AssertionError("nothing was selected")


def champion():
    return next(s.champion for s in registry.list_serving() if s.language == SWAHILI)


def forget(*words):
    done = CliRunner().invoke(app, ["forget", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_listing_what_would_go_changes_nothing_and_repeats_no_id(copied_home):
    row = selected_row(copied_home)
    found = holders(copied_home, row["id"])
    assert any("rows.parquet" in path for path in found)
    assert any(path.endswith("catalog.duckdb") for path in found)
    output = forget(row["id"])
    assert "Add --yes" in output
    assert row["id"] not in output
    assert holders(copied_home, row["id"]) == found


def test_forgotten_example_is_nowhere_and_what_serves_stands_on_the_rest(copied_home):
    row = selected_row(copied_home)
    before = open_pool(lineage_of(champion()).refs["pool"])
    output = forget(row["id"], "--yes")
    assert row["id"] not in output
    assert Forgotten(copied_home).hash_of(row["id"]).hex() in output
    assert "(champion) was trained on one of the rows" in output
    assert "Left:" not in output
    assert holders(copied_home, row["id"]) == []
    assert "Nothing here holds" in forget(row["id"], "--yes")

    lineage = lineage_of(champion())
    after = open_pool(lineage.refs["pool"])
    assert after.n_rows == len(after.vectors) == before.n_rows - 1
    folder = open_store().folder(lineage.refs["sample"])
    chosen = np.load(folder / "indices.npy")
    names = pq.read_table(open_store().folder(shard_rows(lineage.refs["pool"])) / "rows.parquet")
    rows = pq.read_table(folder / "rows.parquet")
    assert names["id"].take(pa.array(chosen)).to_pylist() == rows["id"].to_pylist()


def test_what_serves_survives_a_cleaning_after_something_was_forgotten(copied_home):
    forget(selected_row(copied_home)["id"], "--yes")
    apply_clean(plan_clean(0))
    pool = open_pool(lineage_of(champion()).refs["pool"])
    assert len(pool.vectors) == pool.n_rows


def test_buffers_of_an_updated_adapter_lose_the_row_and_stay_aligned(copied_home):
    row = selected_row(copied_home)
    adapter, store = champion(), open_store()
    lineage = lineage_of(adapter)
    rows = pq.read_table(store.folder(lineage.refs["sample"]) / "rows.parquet")
    made = {}
    for kind in ("history", "replay"):
        with store.build(kind, "made", {"language": SWAHILI}) as draft:
            write_table(draft.folder / "rows.parquet", rows)
            write_array(draft.folder / "cluster_ids.npy", np.arange(rows.num_rows))
            draft.rows = rows.num_rows
        made[kind] = store.put(kind, "made", draft)
    grown = write_lineage(
        language=SWAHILI,
        embedded_by=lineage.embedded_by,
        refs=dict(lineage.refs) | made,
        slices=list(lineage.slices.items()),
        facts={"event": "e"},
    )
    registry.set_version_tags(adapter.name, adapter.version, {LINEAGE_TAG: grown.fingerprint})
    forget(row["id"], "--yes")
    repaired = lineage_of(champion())
    assert repaired.facts == {"event": "e"}
    ids = rows["id"].to_pylist()
    for kind in ("history", "replay"):
        ref = repaired.refs[kind]
        folder = store.folder(ref)
        kept = pq.read_table(folder / "rows.parquet")["id"].to_pylist()
        assert [ids[n] for n in np.load(folder / "cluster_ids.npy")] == kept
        assert ref.rows == len(kept) == len(ids) - 1
    assert holders(copied_home, row["id"]) == []


@pytest.mark.slow
def test_next_run_trains_without_the_row_and_usage_is_watched_on(copied_home):
    from flows.adapt_languages import adapt_languages
    from tasks.baseline import open_baseline
    from tasks.reporting import last_run_id, read_run

    row = selected_row(copied_home)
    forget(row["id"], "--yes")
    config = small_config(languages=[SWAHILI])
    baseline = open_baseline(config, SWAHILI, str(copied_home))
    assert len(baseline.observe(["nambari"]).cluster_ids) == 1
    adapt_languages(config, return_state=True)
    outcome = read_run(last_run_id())["languages"][SWAHILI]
    assert outcome["status"] in ("promoted", "kept")
    assert outcome["artifacts"]["pool"]["rows"] == baseline.lineage.refs["pool"].rows
    assert holders(copied_home, row["id"]) == []


def shard_rows(pool):
    from tasks.pools import pool_shards

    (shard,) = pool_shards(pool)
    return shard["rows"]


def test_forgotten_record_of_usage_leaves_observations_and_files(home):
    text = "nambari yangu ya siri ni twiga-kware-pundamilia"
    record = {"id": "conv-77", "time": "2026-03-02T10:00:00Z", "prompt": text, "language": "sw"}
    from compass_core.config import UsageLogConfig
    from compass_core.monitoring.observations import Observed

    def observe(texts):
        n = len(texts)
        return Observed(np.zeros(n, np.int32), np.zeros(n, np.float32), np.zeros(n, bool))

    now = datetime(2026, 3, 3, tzinfo=UTC)
    keep = UsageLogConfig(keep="text")
    log = open_log(SWAHILI)
    log.append(
        [record, {**record, "id": "conv-78", "prompt": "x"}], observe, "s", now=now, config=keep
    )
    (home / "runs" / "r1").mkdir(parents=True)
    (home / "runs" / "r1" / "notes.json").write_text(json.dumps({"seen": ["conv-77", "conv-770"]}))
    buffer = home / "mlartifacts" / "run" / "replay.parquet"
    buffer.parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": ["conv-77", "conv-79"], "prompt": [text, "y"]}), buffer)
    assert len(holders(home, "conv-77")) == 2
    done = CliRunner().invoke(app, ["forget", "conv-77", "--yes"])
    assert done.exit_code == 0, done.output
    assert "1 observations of usage in Swahili" in done.output
    assert read_json(home / "runs" / "r1" / "notes.json") == {"seen": ["[removed]", "conv-770"]}
    assert pq.read_table(buffer)["id"].to_pylist() == ["conv-79"]
    assert holders(home, text) == []
    report = open_log(SWAHILI).append([record], observe, "s", now=now)
    assert (report.n_new, report.n_forgotten) == (0, 1)


def test_unknown_id_is_kept_out_all_the_same(home):
    done = CliRunner().invoke(app, ["forget", "nobody-knows", "--yes"])
    assert done.exit_code == 0, done.output
    assert "Nothing here holds" in done.output
    assert Forgotten(home).test()("nobody-knows")
    assert not Forgotten(home).test()("somebody")


def test_forgetting_is_safe_to_repeat_after_a_kill(home, monkeypatch):
    from tasks import forgetting

    (home / "runs").mkdir()
    (home / "runs" / "a.json").write_text('{"id": "row-12345"}')
    plan = plan_forget(["row-12345"])

    def killed(path, needles):
        raise KeyboardInterrupt

    monkeypatch.setattr(forgetting, "redact_file", killed)
    with pytest.raises(KeyboardInterrupt):
        apply_forget(plan)
    monkeypatch.undo()
    os.environ["COMPASS_HOME"] = str(home)
    assert Forgotten(home).test()("row-12345")
    apply_forget(plan_forget(["row-12345"]))
    assert holders(home, "row-12345") == []


@pytest.mark.parametrize("ids", [[], [""], ["a", "  "]])
def test_empty_id_is_refused(home, ids):
    with pytest.raises(InputError, match="at least one id"):
        plan_forget(ids)

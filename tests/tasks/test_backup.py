"""Back-ups of a home with a real registry, and homes that earlier and later releases left."""

import json
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from compass_core.errors import StoreError
from compass_core.files import read_json, write_json, write_text
from compass_core.forgotten import Forgotten
from compass_core.monitoring import rotation
from compass_core.monitoring.privacy import open_key
from compass_core.monitoring.rotation import rotate_key
from compass_core.storage import ArtifactStore
from tasks import backup, registry, tracking, tracking_schema
from tasks.backup import copy_key, make_backup, restore_backup
from tasks.migrations import (
    HOME_VERSION,
    home_states,
    lock_drift,
    pending,
    require_readable,
    upgrade,
)
from tasks.status import collect_status
from tests.tasks.served import CODE, NAME, decided, drift_event, promote, remember

NOW = datetime(2026, 11, 20, 2, tzinfo=UTC)
NEW = "back"


@pytest.fixture
def full_home(mlflow_home, monkeypatch):
    """A home with a champion, usage, events, an artefact and forgotten ids."""
    home = mlflow_home / "home"
    home.mkdir()
    shutil.copy(mlflow_home / "mlflow.db", home / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COMPASS_HOME", str(home))
    tracking.configure(tracking.default_tracking_uri(home), home / "mlartifacts")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    promote(home, 1, accuracy=0.5)
    remember(home, decided(19, "alarm", drift_detected=True))
    drift_event(home)
    Forgotten(home, {}).add(["gone"])
    with ArtifactStore(home / "store").build("ingest", "f" * 32, {}) as draft:
        write_text(draft.folder / "rows.txt", "rows")
    return home


def move_to(monkeypatch, home):
    monkeypatch.setenv("COMPASS_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    return home


def told(now=NOW):
    report = json.loads(json.dumps([status_values(row) for row in collect_status(now).languages]))
    return report


def status_values(row):
    from dataclasses import asdict

    return asdict(row) | {"checked": ""}


def test_restored_home_is_the_same_in_another_place_and_its_files_are_found(
    full_home, tmp_path, monkeypatch
):
    before = told()
    make_backup(tmp_path / "backup", NOW)
    copy_key(tmp_path / "key")
    shutil.rmtree(full_home)
    home = move_to(monkeypatch, tmp_path / NEW)
    done = restore_backup(tmp_path / "backup", tmp_path / "key")
    assert [note for note in done.notes if "forgotten" not in note] == []
    assert told() == before
    champion = registry.champion(NAME)
    registry.download_adapter(NAME, champion.version, tmp_path / "adapter")
    assert Forgotten(home, {}).test()("gone")
    assert ArtifactStore(home / "store").find("ingest", "f" * 32) is not None
    promote(home, 2)
    assert not full_home.exists(), "MLflow still writes to where the home was"


def test_secrets_are_in_no_backup(full_home, tmp_path):
    secret = (full_home / "usage" / "secret.key").read_bytes()
    snapshot = make_backup(tmp_path / "backup", NOW)
    assert any("secret" in text for text in snapshot.left_out)
    files = [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    assert not any(secret in path.read_bytes() for path in files)
    copy_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    with pytest.raises(StoreError, match="nothing is written over"):
        copy_key(tmp_path / "key")


def test_missing_and_wrong_secret_are_told(full_home, tmp_path, monkeypatch):
    make_backup(tmp_path / "backup", NOW)
    home = move_to(monkeypatch, tmp_path / NEW)
    (tmp_path / "wrong").write_bytes(bytes(32))
    with pytest.raises(StoreError, match="not the one"):
        restore_backup(tmp_path / "backup", tmp_path / "wrong")
    done = restore_backup(tmp_path / "backup", None)
    assert any("secret.key" in note for note in done.notes)
    with pytest.raises(StoreError, match="missing"):
        open_key(home / "usage", {})


def test_rotated_secret_comes_back_with_its_chain(full_home, tmp_path, monkeypatch):
    rotate_key(full_home, {})
    make_backup(tmp_path / "backup", NOW)
    copy_key(tmp_path / "key")
    home = move_to(monkeypatch, tmp_path / NEW)
    restore_backup(tmp_path / "backup", tmp_path / "key")
    assert Forgotten(home, {}).test()("gone")


def test_secret_stays_as_it_is_while_hashes_are_copied(full_home, tmp_path, monkeypatch):
    monkeypatch.setattr(rotation, "_LOCK_SECONDS", 0.1)
    plain, told = backup._copy_usage, []

    def copy_usage(copy):
        with pytest.raises(StoreError) as error:
            rotate_key(full_home, {})
        told.append(str(error.value))
        plain(copy)

    monkeypatch.setattr(backup, "_copy_usage", copy_usage)
    make_backup(tmp_path / "backup", NOW)
    assert "rotation.lock" in told[0]
    rotate_key(full_home, {})


def test_older_backup_brings_no_forgotten_id_back(full_home, tmp_path, monkeypatch):
    make_backup(tmp_path / "backup", NOW)
    Forgotten(full_home, {}).add(["later"])
    newest = make_backup(tmp_path / "backup", NOW + timedelta(days=1))
    copy_key(tmp_path / "key")
    # The newest list of files is of a home before "later" was forgotten.
    path = tmp_path / "backup" / "snapshots" / f"{newest.name}.json"
    values, first = read_json(path), read_json(min(path.parent.glob("*.json")))
    write_json(path.with_name("20261130T000000000000Z.json"), first)
    path.unlink()
    write_json(path, values)
    home = move_to(monkeypatch, tmp_path / NEW)
    restore_backup(tmp_path / "backup", tmp_path / "key")
    assert Forgotten(home, {}).test()("later")


def test_home_in_use_is_not_restored_over(full_home, tmp_path):
    make_backup(tmp_path / "backup", NOW)
    with pytest.raises(StoreError, match="is not empty"):
        restore_backup(tmp_path / "backup", None)


def test_interrupted_restore_is_begun_again(full_home, tmp_path, monkeypatch):
    make_backup(tmp_path / "backup", NOW)
    home = move_to(monkeypatch, tmp_path / NEW)
    (home / ".restoring" / "store").mkdir(parents=True)
    (home / "runs").mkdir()
    with pytest.raises(StoreError, match="is not empty"):  # something else filled it meanwhile
        restore_backup(tmp_path / "backup", None)
    (home / ".restored-in-part").touch()
    restore_backup(tmp_path / "backup", None)
    assert not (home / ".restoring").exists()
    assert registry.champion(NAME).version == "1"


def test_damaged_artefact_is_left_out_and_told(full_home, tmp_path):
    (full_home / "store" / "ingest" / ("f" * 32) / "rows.txt").write_text("rowz")
    snapshot = make_backup(tmp_path / "backup", NOW)
    assert any("damaged" in text for text in snapshot.left_out)
    assert not any("ingest" in name for name in snapshot.files)


def test_backup_says_what_lies_elsewhere(full_home, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter22@db/mlflow")
    monkeypatch.setenv("COMPASS_STORE", str(tmp_path / "shared"))
    snapshot = make_backup(tmp_path / "backup", NOW)
    text = " ".join(snapshot.left_out)
    assert "pg_dump" in text
    assert "hunter22" not in text
    assert "artefact store" in text


def test_backup_inside_the_home_is_refused(full_home):
    with pytest.raises(StoreError, match="lies inside"):
        make_backup(full_home / "backup", NOW)


def test_backup_of_nothing_says_so(tmp_path, monkeypatch):
    move_to(monkeypatch, tmp_path / "empty")
    with pytest.raises(StoreError, match="nothing to back up"):
        make_backup(tmp_path / "backup", NOW)


# ------------------------------------------------------------------ upgrades
def by_name():
    return {state.name: state for state in home_states()}


@pytest.fixture
def old_home(full_home, monkeypatch):
    """The home as the release before this one left it: no version, older databases."""
    write_json(full_home / "runs" / "r1" / "run.json", run_record())
    with duckdb.connect(str(full_home / "catalog.duckdb")) as connection:
        connection.execute("CREATE TABLE meta (schema_version INTEGER, duckdb_version VARCHAR)")
        connection.execute("INSERT INTO meta VALUES (1, '1.4')")
    downgrade(full_home / "mlflow.db", monkeypatch)
    return full_home


def run_record():
    return {
        "run_id": "r1",
        "flow": "adapt-languages",
        "started": "2026-11-19T00:00:00+00:00",
        "finished": "2026-11-19T00:01:00+00:00",
        "languages": {CODE: {"status": "kept", "artifacts": {}, "timings": {}}},
    }


def downgrade(database, monkeypatch):
    """Bring MLflow's schema one revision back, as an earlier MLflow wrote it."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    config = _get_alembic_config(f"sqlite:///{database}")
    try:
        command.downgrade(config, "-1")
    except NotImplementedError:
        pytest.skip("this MLflow has no way back from its newest schema")
    tracking_schema._initialised.clear()  # an upgrade is a process of its own


def test_home_of_the_release_before_is_brought_up_with_a_copy(old_home):
    todo = {state.name for state in pending()}
    assert todo == {"home", "catalogue", "MLflow"}
    done = upgrade(NOW)
    assert any(text.startswith("MLflow") for text in done)
    assert pending() == []
    assert list(old_home.glob("before-upgrade/mlflow-*.db"))
    assert told()[0]["champion"] == "1"
    assert (old_home / "runs" / "r1" / "index.json").is_file()
    assert upgrade(NOW) == []


def test_status_says_that_an_upgrade_waits(old_home):
    assert [item.code for item in collect_status(NOW).attention] == ["upgrade-pending"]


def test_registry_that_another_command_brings_up_is_copied_first(old_home):
    assert told()[0]["champion"] == "1"  # a status alone opens the registry
    (copy,) = old_home.glob("before-upgrade/mlflow-*.db")
    with sqlite3.connect(copy) as connection:
        (found,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    assert found in copy.name
    assert "MLflow" not in {state.name for state in pending()}


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("HOME.json", {"home_version": HOME_VERSION + 1}),
        ("store/STORE.json", {"store_version": 99}),
    ],
)
def test_home_of_a_later_release_is_refused_with_both_versions(full_home, file, values):
    write_json(full_home / "runs" / "r1" / "run.json", run_record())
    write_json(full_home / file, values)
    with pytest.raises(StoreError, match="written by a later COMPASS") as refused:
        upgrade(NOW)
    assert refused.value.code == "E62"
    assert str(next(iter(values.values()))) in str(refused.value)


def test_registry_of_a_later_mlflow_is_refused(full_home):
    with sqlite3.connect(full_home / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    tracking_schema._initialised.clear()
    with pytest.raises(StoreError, match="MLflow"):
        upgrade(NOW)


def test_damaged_version_file_says_what_it_should_hold(full_home):
    write_json(full_home / "runs" / "r1" / "run.json", run_record())
    (full_home / "HOME.json").write_text("{")
    with pytest.raises(StoreError, match="home_version"):
        pending()


def test_new_home_is_of_this_release_from_its_first_run(tmp_path, monkeypatch):
    home = move_to(monkeypatch, tmp_path / NEW)
    home.mkdir()
    require_readable()
    assert read_json(home / "HOME.json")["home_version"] == HOME_VERSION
    assert pending() == []


def test_store_keeps_what_it_says_about_its_version(full_home):
    assert by_name()["store"].todo == ""


def test_lock_file_that_differs_from_what_is_installed_is_told(tmp_path):
    (tmp_path / "constraints.txt").write_text("prefect==0.0.1 \\\n    --hash=sha256:00\n")
    [(name, _, locked)] = lock_drift(tmp_path / "constraints.txt")
    assert (name, locked) == ("prefect", "0.0.1")
    assert lock_drift(Path("missing")) == []


def test_every_upgrade_of_the_registry_keeps_a_copy_of_its_own(old_home, monkeypatch):
    upgrade(NOW)
    with sqlite3.connect(old_home / "mlflow.db") as connection:
        connection.execute("CREATE TABLE later (x)")
    downgrade(old_home / "mlflow.db", monkeypatch)
    done = upgrade(NOW)
    first, second = sorted(old_home.glob("before-upgrade/mlflow-*.db"))
    assert any(str(second) in text for text in done)
    with sqlite3.connect(second) as connection:
        assert connection.execute("SELECT count(*) FROM later").fetchone() == (0,)
    with sqlite3.connect(first) as connection, pytest.raises(sqlite3.OperationalError):
        connection.execute("SELECT count(*) FROM later")


def test_copy_of_a_database_is_whole_whatever_its_path_holds(tmp_path):
    folder = tmp_path / "a#b ?c %20"
    folder.mkdir()
    with sqlite3.connect(folder / "x.db") as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (7)")
    tracking_schema.copy_database(folder / "x.db", folder / "y" / "x.db")
    with sqlite3.connect(folder / "y" / "x.db") as connection:
        assert connection.execute("SELECT x FROM t").fetchall() == [(7,)]
    assert sorted(path.name for path in folder.iterdir()) == ["x.db", "y"]


def test_key_beside_a_backup_is_the_one_of_its_hashes(full_home, tmp_path, monkeypatch):
    make_backup(tmp_path / "backup", NOW, with_key=tmp_path / "key")
    rotate_key(full_home, {})
    move_to(monkeypatch, tmp_path / "restored")
    restore_backup(tmp_path / "backup", key=tmp_path / "key")
    with pytest.raises(StoreError, match="nothing is written over"):
        make_backup(tmp_path / "backup", NOW, with_key=tmp_path / "key")

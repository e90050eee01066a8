"""Back-ups as files: contents once, lists last, nothing written over, damage found."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from compass_core.backups import BackupFolder, Snapshot, snapshot_name
from compass_core.errors import DataError, StoreError
from compass_core.files import sha256_file

NOW = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def backups(tmp_path):
    folder = BackupFolder(tmp_path / "backups")
    folder.create()
    return folder


def snapshot_of(backups, files, when=NOW):
    found = Snapshot(
        name=snapshot_name(when),
        created=when.isoformat(),
        home="/home",
        files={name: backups.add(path) for name, path in files.items()},
    )
    backups.finish(found)
    return found


@pytest.fixture
def files(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (source / name).write_text(text)
    return {f"store/{name}": source / name for name in "abc"}


def test_equal_contents_are_kept_once_and_a_second_backup_adds_what_is_new(backups, files):
    snapshot_of(backups, files)
    assert len(list(backups.folder.glob("objects/*/*"))) == 2
    files["store/a"].write_text("three")
    snapshot_of(backups, files, NOW + timedelta(days=1))
    assert len(list(backups.folder.glob("objects/*/*"))) == 3
    assert [s.name for s in backups.snapshots()] == [
        "20261120T000000000000Z",
        "20261121T000000000000Z",
    ]


def test_backup_comes_back_as_it_was(backups, files, tmp_path):
    snapshot_of(backups, files)
    found = backups.newest()
    backups.extract(found, found.files, tmp_path / "back")
    for name, path in files.items():
        assert (tmp_path / "back" / name).read_bytes() == path.read_bytes()
    assert list(backups.problems(found)) == []


def test_interrupted_backup_is_none(backups, files):
    for path in files.values():
        backups.add(path)
    with pytest.raises(StoreError, match="no finished back-up"):
        backups.newest()


def test_damage_and_loss_are_found_by_name(backups, files, tmp_path):
    found = snapshot_of(backups, files)
    first, second = sorted(backups.folder.glob("objects/*/*"), key=lambda p: p.read_text())
    first.write_text("onx")
    second.unlink()
    assert sorted(backups.problems(found)) == [
        "store/a is damaged",
        "store/b is missing",
        "store/c is damaged",
    ]
    with pytest.raises(StoreError, match="damaged"):
        backups.extract(found, ["store/a"], tmp_path / "back")
    with pytest.raises(StoreError, match="missing"):
        backups.extract(found, ["store/b"], tmp_path / "back")


def test_file_that_is_not_what_its_manifest_says_is_refused(backups, files):
    right = sha256_file(files["store/a"])
    files["store/a"].write_text("changed")
    with pytest.raises(DataError, match="damaged"):
        backups.add(files["store/a"], sha256=right)
    assert list(backups.folder.glob("*.tmp")) == []


def test_folder_with_something_else_is_left_alone(tmp_path, files):
    with pytest.raises(StoreError, match="holds something, but no back-ups"):
        BackupFolder(tmp_path / "source").create()


def test_backups_of_a_later_release_are_refused(backups):
    (backups.folder / "BACKUP.json").write_text('{"layout_version": 99}')
    with pytest.raises(StoreError, match="layout 99"):
        backups.newest()


def test_nothing_is_written_over(backups, files):
    snapshot_of(backups, files)
    with pytest.raises(StoreError, match="nothing is written over"):
        snapshot_of(backups, files)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", ""])
def test_list_that_leads_out_of_the_folder_is_refused(backups, files, name):
    snapshot_of(backups, files)
    [path] = backups.folder.glob("snapshots/*.json")
    values = json.loads(path.read_text())
    values["files"] = {name: {"sha256": "0" * 64, "bytes": 1}}
    path.write_text(json.dumps(values))
    with pytest.raises(StoreError, match="cannot be read"):
        backups.newest()

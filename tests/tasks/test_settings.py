"""Places of the state: asked for by every stage, and right when they change."""

import shutil

import pytest

from compass_core.errors import StoreError
from compass_core.storage import VERSION_FILE, write_json
from tasks.settings import compass_home, open_store, real_path, store_address


def test_a_relative_home_follows_the_folder_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPASS_HOME", "state")
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        assert compass_home() == folder.resolve() / "state"


def test_links_and_the_home_of_the_user_are_resolved(monkeypatch, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert real_path(tmp_path / "link" / "x") == tmp_path.resolve() / "real" / "x"
    assert real_path("~/link") == tmp_path.resolve() / "real"


def test_another_home_has_another_store(monkeypatch, tmp_path):
    monkeypatch.delenv("COMPASS_STORE", raising=False)
    for name in ("a", "b", "a"):
        monkeypatch.setenv("COMPASS_HOME", str(tmp_path / name))
        assert store_address() == str(tmp_path.resolve() / name / "store")
        assert str(open_store().root) == store_address()


def test_a_store_that_was_deleted_is_made_again(home):
    root = open_store().root
    shutil.rmtree(root)
    assert (open_store().root / VERSION_FILE).is_file()


def test_a_store_that_became_another_version_is_refused(home):
    root = open_store().root
    write_json(root / VERSION_FILE, {"store_version": 99})
    with pytest.raises(StoreError, match="version 99"):
        open_store()

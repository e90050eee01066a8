"""A new secret over the old one: nobody is counted twice, forgotten ids stay forgotten."""

import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from compass_core.errors import StoreError
from compass_core.forgotten import Forgotten
from compass_core.monitoring.observations import ObservationLog, Observed
from compass_core.monitoring.privacy import CHECK_NAME, Hasher, open_key
from compass_core.monitoring.rotation import rotate_key
from compass_core.storage import file_lock

NOW = datetime(2026, 11, 20, tzinfo=UTC)
ROOT = Path(__file__).parents[3]


def observe(texts):
    n = len(texts)
    return Observed(np.zeros(n, np.int32), np.zeros(n, np.float32), np.zeros(n, bool))


def record(number):
    when = f"2026-11-19T00:{number:02}:00+00:00"
    who = {"id": f"r{number}", "user": f"u{number % 3}", "language": "swh_Latn"}
    return who | {"time": when, "prompt": f"prompt {number}"}


def log_of(home, environment=None):
    usage = home / "usage"
    return ObservationLog(usage / "swh_Latn", open_key(usage, environment or {}))


def take(home, numbers, environment=None):
    log = log_of(home, environment)
    return log.append([record(n) for n in numbers], observe, "space", now=NOW)


def stored(home):
    return {path: path.read_bytes() for path in sorted(home.rglob("*.parquet"))}


@pytest.fixture
def used(tmp_path):
    take(tmp_path, range(10))
    Forgotten(tmp_path, {}).add(["gone"])
    return tmp_path


def test_rotation_recognises_every_record_and_forgets_what_was_forgotten(used):
    old_key, old_files = open_key(used / "usage", {}), stored(used)
    old_hash = Hasher(old_key)("record", "r3")
    assert any(old_hash in content for content in old_files.values())
    done = rotate_key(used, {})
    assert (done.observations, done.forgotten, done.resumed) == (10, 1, False)
    assert not any(old_hash in content for content in stored(used).values())
    report = take(used, range(12))
    assert (report.n_known, report.n_new) == (10, 2)
    forgotten = Forgotten(used, {}).test()
    assert forgotten("gone")
    assert not forgotten("r1")
    assert log_of(used).count(["r3", "r11"]) == 2
    assert log_of(used).forget(["r3"]) == 1


def test_users_stay_one_unit_each_over_a_rotation(used):
    rotate_key(used, {})
    take(used, range(10, 14))
    tables = [t for t in log_of(used)._parts("space").columns(["user_key"])]
    assert len({key for table in tables for key in table["user_key"].to_pylist()}) == 3


def test_second_rotation_and_a_secret_of_the_environment_work_too(tmp_path):
    environment = {"COMPASS_PRIVACY_KEY": "0123456789abcdef"}
    take(tmp_path, range(4), environment)
    rotate_key(tmp_path, environment)
    rotate_key(tmp_path, environment)
    assert take(tmp_path, range(5), environment).n_known == 4
    assert not (tmp_path / "usage" / "secret.key").exists()


def test_old_secret_alone_is_refused_afterwards(used):
    rotate_key(used, {})
    (used / "usage" / "rotated.keys").unlink()
    with pytest.raises(StoreError, match="not the one"):
        open_key(used / "usage", {})
    (used / "usage" / "rotated.keys").write_text("zz")
    with pytest.raises(StoreError, match="damaged"):
        open_key(used / "usage", {})


def test_rotation_waits_for_no_monitor(used, monkeypatch):
    monkeypatch.setattr("compass_core.monitoring.rotation._LOCK_SECONDS", 0.1)
    with (
        file_lock(used / "usage" / "swh_Latn" / "monitor.lock"),
        pytest.raises(StoreError, match="locked by another process"),
    ):
        rotate_key(used, {})


@pytest.mark.parametrize("writes", [1, 2, 3, 4, 5, 6, 7, 8])
def test_killed_rotation_changed_nothing_or_is_finished_by_the_next(used, writes):
    """The rotation dies with SIGKILL after so many files."""
    code = f"""
import os, signal
from pathlib import Path
from compass_core.monitoring import rotation
calls = 0
def dying(name):
    real = getattr(rotation, name)
    def call(*arguments):
        global calls
        real(*arguments)
        calls += 1
        if calls == {writes}:
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(rotation, name, call)
dying("write_bytes"); dying("write_json")
rotation.rotate_key(Path({str(used)!r}), {{}})
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=False)
    killed = found.returncode == -signal.SIGKILL
    ready = (used / "usage" / ".rotation" / "READY.json").exists()
    if ready:
        with pytest.raises(StoreError, match="rotate-key --yes"):
            open_key(used / "usage", {})
        assert rotate_key(used, {}).resumed
    assert killed or writes == 8 or ready is False
    assert take(used, range(11)).n_known == 10
    assert Forgotten(used, {}).test()("gone")
    assert (used / "usage" / CHECK_NAME).exists()
    assert (used / "usage" / CHECK_NAME).stat().st_mode & 0o077 == 0


def test_an_id_forgotten_by_a_process_that_read_the_secret_before_stays_forgotten(used):
    early = Forgotten(used, {})
    assert early.test()("gone")
    rotate_key(used, {})
    early.add(["late"])
    assert early.test()("gone")
    assert Forgotten(used, {}).test()("late")

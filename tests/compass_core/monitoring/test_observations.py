"""What is kept: each record once, whoever appends, whatever is killed, and nothing private."""

import json
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest

from compass_core.errors import ConfigError, StoreError
from compass_core.forgotten import Forgotten
from compass_core.monitoring import observations as module
from compass_core.monitoring import parts as parts_module
from compass_core.monitoring.observations import ObservationLog, Observed
from compass_core.monitoring.parts import Parts
from compass_core.monitoring.privacy import Hasher, open_key
from compass_core.monitoring.records import UsageRecord
from compass_core.monitoring.windows import OBSERVATION_SCHEMA

from .conftest import LANGUAGE, SPACE, START, observe, row


def n_prompts(usage):
    return sum(window.n_prompts for window in usage.windows())


def all_rows(usage, space=SPACE):
    import pyarrow.compute as pc

    return Parts(usage.log.folder / "observations" / space).select(pc.scalar(True))


# ------------------------------------------------------------------ once each
def test_appending_twice_keeps_each_record_once(usage):
    rows = [row(number) for number in range(10)]
    assert usage.append(rows).n_new == 10
    again = usage.append(rows)
    assert (again.n_new, again.n_known, again.n_conflicting) == (0, 10, 0)
    assert usage.again().append(rows).n_known == 10
    assert all_rows(usage).num_rows == 10


def test_records_and_mappings_are_the_same(usage):
    record = UsageRecord("record-1", START, "swali la 1", LANGUAGE, "user-1", "")
    assert usage.append([record]).n_new == 1
    assert usage.append([row(1)]).to_dict()["n_known"] == 1


def test_duplicate_id_with_other_content_is_counted_and_the_first_one_counts(usage):
    usage.append([row(1, prompt="abc")])
    report = usage.append([row(1, prompt="abcd"), row(1, minutes=5, prompt="abc"), row(1)])
    assert (report.n_new, report.n_known, report.n_conflicting) == (0, 3, 3)
    table = all_rows(usage)
    assert table["cluster"].to_pylist() == [3]
    assert table["time"].to_pylist() == [START]


def test_duplicate_id_within_one_batch_counts_once(usage):
    report = usage.append([row(1, prompt="abc"), row(1, prompt="abc"), row(1, prompt="other")])
    assert (report.n_new, report.n_known, report.n_conflicting) == (1, 2, 1)
    assert all_rows(usage)["cluster"].to_pylist() == [3]


def test_integer_and_text_ids_are_one_id(usage):
    assert usage.append([row(1, id=5), row(1, id="5")]).n_new == 1


def test_each_space_has_observations_of_its_own(usage):
    usage.write([row(1)])
    assert usage.take_in(space="one").n_new == 1
    assert usage.take_in(space="two").n_new == 1
    assert usage.log.spaces() == ["one", "two"]


def test_space_that_is_no_fingerprint_never_becomes_a_path(usage):
    with pytest.raises(StoreError, match="not the fingerprint"):
        usage.append([row(1)], space="../../etc")


def test_records_before_the_watched_stretch_are_left_out(usage):
    usage.write([row(1), row(2, minutes=60)])
    report = usage.take_in(since=START + timedelta(minutes=30))
    assert (report.n_new, report.n_before) == (1, 1)


def test_equal_texts_are_placed_once(usage):
    asked = []

    def counted(texts):
        asked.extend(texts)
        return observe(texts)

    rows = [row(number, prompt="habari" if number % 2 else "hujambo") for number in range(50)]
    usage.log.append(rows, counted, SPACE, now=START + timedelta(days=1))
    assert sorted(asked) == ["habari", "hujambo"]
    assert Counter(all_rows(usage)["cluster"].to_pylist()) == {1: 25, 2: 25}


def test_encoder_that_loses_rows_is_noticed(usage):
    def short(texts):
        return Observed(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, bool))

    with pytest.raises(ValueError, match="another number of rows"):
        usage.log.append([row(1)], short, SPACE, now=START)
    assert usage.append([row(1)]).n_new == 1


def test_failing_encoder_loses_nothing(usage):
    def fails(texts):
        raise RuntimeError("out of memory")

    usage.write([row(number) for number in range(5)])
    with pytest.raises(RuntimeError, match="out of memory"):
        usage.log.take_in(
            usage.config(), base_folder=usage.home, observe=fails, space=SPACE, now=START
        )
    assert usage.take_in().n_new == 5


def test_order_of_arrival_is_kept_through_compaction(usage, monkeypatch):
    monkeypatch.setattr(parts_module, "MAX_PARTS", 4)
    for number in range(23):
        usage.append([row(2 * number), row(2 * number + 1)])
    folder = usage.log.folder / "observations" / SPACE
    assert len(list(folder.glob("*.parquet"))) <= 6
    table = all_rows(usage)
    assert table["arrival"].to_pylist() == list(range(46))
    assert table.schema == OBSERVATION_SCHEMA
    expected = [
        Hasher(open_key(usage.home / "usage", {}))("record", f"record-{n}") for n in range(46)
    ]
    assert table["record_key"].to_pylist() == expected
    assert usage.again().append([row(number) for number in range(46)]).n_known == 46


def test_large_parts_are_left_alone(usage, monkeypatch):
    monkeypatch.setattr(parts_module, "MAX_PARTS", 2)
    monkeypatch.setattr(parts_module, "MERGED_ROWS", 10)
    usage.append([row(number) for number in range(12)])
    for number in range(12, 24):
        usage.append([row(number)])
    folder = usage.log.folder / "observations" / SPACE
    assert (folder / "000000000000-000000000011.parquet").is_file()
    assert all_rows(usage)["arrival"].to_pylist() == list(range(24))


def test_compaction_that_was_killed_in_the_middle_doubles_nothing(usage):
    for number in range(3):
        usage.append([row(number)])
    folder = usage.log.folder / "observations" / SPACE
    pieces = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    parts = Parts(folder)
    parts._publish(all_rows(usage), 0, 2)
    assert all_rows(usage).num_rows == 3
    usage.append([row(3)])
    for name, data in pieces.items():  # as if the kill had left the pieces
        (folder / name).write_bytes(data)
    (folder / ".x.parquet.1234.tmp").write_bytes(b"torn")
    assert usage.again().append([row(number) for number in range(5)]).n_new == 1
    assert all_rows(usage)["arrival"].to_pylist() == [0, 1, 2, 3, 4]
    assert not list(folder.glob(".*.tmp"))


def test_damaged_part_is_named_with_advice(usage):
    usage.append([row(1)])
    (path,) = (usage.log.folder / "observations" / SPACE).glob("*.parquet")
    path.write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"cannot be read.*Restore"):
        usage.again().append([row(2)])


def test_damaged_state_is_named_with_advice(usage):
    usage.write([row(1)])
    usage.take_in()
    (usage.log.folder / "observations" / SPACE / "state.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        usage.take_in()


# ------------------------------------------------------------------ several processes, kills
def _append_all(folder, key, order, barrier):
    log = ObservationLog(folder, key)
    barrier.wait()
    new = 0
    for start in range(0, len(order), 20):
        rows = [row(number) for number in order[start : start + 20]]
        new += log.append(rows, observe, SPACE, now=START + timedelta(days=1)).n_new
    (folder / f"new-{os.getpid()}").write_text(str(new))


def test_processes_that_append_at_once_lose_and_double_nothing(usage, monkeypatch):
    monkeypatch.setattr(parts_module, "MAX_PARTS", 3)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    key = open_key(usage.home / "usage", {})
    orders = [random.Random(seed).sample(range(300), 300) for seed in range(3)]
    workers = [
        context.Process(target=_append_all, args=(usage.log.folder, key, order, barrier))
        for order in orders
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    keys = all_rows(usage)["record_key"].to_pylist()
    assert len(keys) == len(set(keys)) == 300
    assert sum(int(path.read_text()) for path in usage.log.folder.glob("new-*")) == 300


_KILLED = """
import sys
from datetime import timedelta
from pathlib import Path
sys.path.insert(0, {tests!r})
import conftest as c
from compass_core.monitoring import parts
from compass_core.monitoring.observations import ObservationLog
from compass_core.monitoring.privacy import open_key
parts.MAX_PARTS = 3
folder = Path(sys.argv[1])
log = ObservationLog(folder, open_key(folder.parent, {{}}))
for number in range(int(sys.argv[2]), 100000):
    log.append([c.row(number)], c.observe, c.SPACE, now=c.START + timedelta(days=1))
    print(number, flush=True)
"""


def test_kill_at_any_point_loses_nothing_that_was_acknowledged(usage):
    from pathlib import Path

    script = _KILLED.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    choose, first, acknowledged = random.Random(7), 0, -1
    for _ in range(3):
        worker = subprocess.Popen(
            [sys.executable, "-c", script, str(usage.log.folder), str(first)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(choose.uniform(0.05, 0.4))
        worker.send_signal(signal.SIGKILL)
        rest = worker.stdout.read().split()
        worker.wait()
        acknowledged = int(rest[-1]) if rest else first
        kept = all_rows(usage)["record_key"].to_pylist()
        assert len(kept) == len(set(kept))
        # One record more may be kept: killed between the rename and the word.
        assert acknowledged + 1 <= len(kept) <= acknowledged + 2
        first = len(kept)
    assert usage.again().append([row(number) for number in range(first + 1)]).n_new == 1


def test_reading_that_was_killed_goes_on_where_the_batches_ended(usage, monkeypatch):
    from compass_core.monitoring import usage_log

    monkeypatch.setattr(usage_log, "BATCH_RECORDS", 10)
    usage.write([row(number) for number in range(35)])
    calls = []

    def killed(texts):
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return observe(texts)

    with pytest.raises(KeyboardInterrupt):
        usage.log.take_in(
            usage.config(), base_folder=usage.home, observe=killed, space=SPACE, now=START
        )
    report = usage.again().take_in()
    assert (report.n_known, report.n_new) == (20, 15)


def test_lock_that_is_never_free_says_so(usage, monkeypatch):
    from compass_core.storage import file_lock

    monkeypatch.setattr(module, "file_lock", lambda path: file_lock(path, timeout_seconds=0.05))
    held = file_lock(usage.log.folder / "observations.lock")
    with held, pytest.raises(StoreError, match="locked by another process"):
        usage.append([row(1)])
    assert usage.append([row(1)]).n_new == 1


# ------------------------------------------------------------------ privacy
SECRET_TEXT = "namba yangu ya siri ni kware-na-twiga"
SECRET_USER = "asha.mohamed@example.org"
SECRET_ID = "conversation-0b6f4d-17"


def planted():
    """Return rows good and bad that hold a text, a user, a session and an id to look for."""
    good = row(1, id=SECRET_ID, prompt=SECRET_TEXT, user=SECRET_USER, session=f"s-{SECRET_USER}")
    return [
        good,
        {**good, "id": f"{SECRET_ID}-2", "time": "2026-03-02T00:00:00"},
        {**good, "id": f"{SECRET_ID}-3", "time": SECRET_TEXT},
        {**good, "id": f"{SECRET_ID}-4", "language": SECRET_TEXT},
        {**good, "id": f"{SECRET_ID}-5", "language": "tr"},
        json.dumps({**good, "prompt": [SECRET_TEXT]}) + "\n",
        f"{SECRET_TEXT} {SECRET_USER} {SECRET_ID}\n",
        json.dumps(good)[:-1],
    ]


def holders(folder, *needles):
    """Return the files below `folder` that hold one of `needles`, Parquet unpacked."""
    found, files = [], [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data += repr(pq.read_table(path).to_pylist()).encode()
        if any(needle.encode() in data for needle in needles):
            found.append(path)
    return found


def test_no_file_holds_a_text_or_an_id_by_default(usage):
    usage.write(planted())
    report = usage.take_in()
    usage.append([r for r in planted() if isinstance(r, dict)])
    assert report.n_new == 1
    for window in usage.windows():
        usage.log.mark_decided(window)
    needles = (SECRET_TEXT, SECRET_USER, SECRET_ID, "kware")
    assert holders(usage.home / "usage", *needles) == []
    assert not any(needle in json.dumps(report.to_dict()) for needle in needles)
    assert all_rows(usage)["text"].to_pylist() == [""]


def test_text_is_kept_only_when_asked_for(usage):
    usage.write(planted())
    usage.take_in(usage.config(log={"keep": "text"}))
    assert all_rows(usage)["text"].to_pylist() == [SECRET_TEXT]
    assert len(holders(usage.home / "usage", SECRET_TEXT)) == 1
    assert holders(usage.home / "usage", SECRET_USER, SECRET_ID) == []


def test_hashes_need_the_key(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (Hasher(open_key(tmp_path / name, {})) for name in ("a", "b"))
    assert first("record", "x") != second("record", "x")
    assert first("record", "x") != first("user", "x")
    assert len(first("record", "x")) == 16
    assert Hasher(open_key(tmp_path / "a", {}))("record", "x") == first("record", "x")


def test_key_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    key = open_key(tmp_path, {})
    assert open_key(tmp_path, {}) == key
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    (tmp_path / "secret.key").chmod(0o644)
    open_key(tmp_path, {})
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600


def test_key_of_the_environment_comes_first_and_must_be_long(tmp_path):
    given = {"COMPASS_PRIVACY_KEY": "0123456789abcdef"}
    assert open_key(tmp_path, given) == b"0123456789abcdef"
    assert not (tmp_path / "secret.key").exists()
    with pytest.raises(ConfigError, match="give 16 or more"):
        open_key(tmp_path, {"COMPASS_PRIVACY_KEY": "short"})


def test_another_key_than_the_first_one_is_refused_with_advice(tmp_path):
    given = {"COMPASS_PRIVACY_KEY": "0123456789abcdef"}
    own = open_key(tmp_path, {})
    check = (tmp_path / "key.check").read_bytes()
    assert own.hex() not in check.decode()
    with pytest.raises(StoreError, match=r"E62 .*not the one.*unset it"):
        open_key(tmp_path, given)
    assert (tmp_path / "key.check").read_bytes() == check
    (tmp_path / "secret.key").unlink()
    with pytest.raises(StoreError, match=r"is missing.*Restore it"):
        open_key(tmp_path, {})
    (tmp_path / "secret.key").write_bytes(bytes(32))
    with pytest.raises(StoreError, match="counted a second time"):
        open_key(tmp_path, {})
    (tmp_path / "secret.key").write_bytes(own)
    assert open_key(tmp_path, {}) == own


def test_home_of_a_given_key_makes_no_other_one_when_the_variable_is_forgotten(tmp_path):
    open_key(tmp_path, {"COMPASS_PRIVACY_KEY": "0123456789abcdef"})
    with pytest.raises(StoreError, match="COMPASS_PRIVACY_KEY as it was"):
        open_key(tmp_path, {})


def test_damaged_key_is_never_replaced_silently(tmp_path):
    (tmp_path / "secret.key").write_bytes(b"")
    with pytest.raises(StoreError, match="back-up"):
        open_key(tmp_path, {})


# ------------------------------------------------------------------ forgetting
def test_forgotten_record_leaves_every_space_and_never_comes_back(usage):
    usage.write([row(number) for number in range(6)])
    usage.take_in(usage.config(log={"keep": "text"}), space="one")
    usage.take_in(space="two")
    before = usage.windows(space="one")[0]
    usage.log.mark_decided(before)
    assert usage.log.count(["record-3"]) == 2
    assert usage.log.forget(["record-3", "record-99"]) == 2
    assert usage.log.count(["record-3"]) == 0
    assert holders(usage.home / "usage", "swali la 3") == []
    assert usage.log.forget(["record-3"]) == 0
    window = usage.windows(space="one")[0]
    assert (window.n_prompts, window.decided) == (5, True)

    Forgotten(usage.home).add(["record-3"])
    usage.write([row(number) for number in range(7)])
    report = usage.again().take_in(usage.config(log={"keep": "text"}), space="one")
    assert (report.n_new, report.n_forgotten) == (1, 1)
    assert usage.append([row(3)], space="two").n_forgotten == 1


def test_record_that_is_forgotten_while_it_is_placed_is_not_kept(usage):
    def forgets(texts):
        Forgotten(usage.home).add(["record-3"])
        usage.log.forget(["record-3"])
        return observe(texts)

    now = START + timedelta(days=60)
    report = usage.log.append([row(number) for number in range(6)], forgets, SPACE, now=now)
    assert (report.n_new, report.n_forgotten) == (5, 1)
    assert usage.log.count(["record-3"]) == 0


def test_arrivals_are_not_given_twice_after_the_newest_was_forgotten(usage):
    usage.append([row(1)])
    usage.append([row(2)])
    usage.log.forget(["record-2"])
    usage.again().append([row(3)])
    assert all_rows(usage)["arrival"].to_pylist() == [0, 2]

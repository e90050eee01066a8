"""The artefact store under kills, damage, full disks and rivals: finished means whole, always."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core import files, storage
from compass_core.errors import StoreError
from compass_core.storage import MANIFEST_NAME, ArtifactStore

KEY = "0123456789abcdef" * 2


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def publish(store, key=KEY, value=1, kind="embed"):
    with store.build(kind, key, {"value": value}) as draft:
        storage.write_array(draft.folder / "vectors.npy", np.full(1_000, value))
        storage.write_table(draft.folder / "rows.parquet", pa.table({"id": ["a", "b"]}))
        storage.write_text(draft.folder / "deep" / "notes.txt", "notes")
        draft.rows = 2
    return store.put(kind, key, draft)


def drafts(store):
    return [path.name for path in (store.root / "tmp").glob("*")]


# -- finished work


def test_published_artifact_is_found_whole_with_its_provenance(store):
    ref = publish(store)
    assert store.find("embed", KEY) == ref
    assert (ref.kind, ref.fingerprint, ref.path, ref.rows) == ("embed", KEY, f"embed/{KEY}", 2)
    manifest = store.manifest(ref)
    assert manifest["provenance"] == {"value": 1}
    assert set(manifest["files"]) == {"vectors.npy", "rows.parquet", "deep/notes.txt"}
    folder = store.folder(ref)
    assert ref.bytes == sum((folder / name).stat().st_size for name in manifest["files"])
    store.verify(ref)
    assert drafts(store) == []


def test_same_content_has_the_same_identity_in_another_store(store, tmp_path):
    other = ArtifactStore(tmp_path / "other")
    assert publish(store).sha256 == publish(other).sha256
    assert publish(store, key="f" * 32, value=2).sha256 != publish(store).sha256


def test_store_that_moved_still_finds_everything(store, tmp_path):
    ref = publish(store)
    shutil.move(store.root, tmp_path / "moved")
    moved = ArtifactStore(tmp_path / "moved")
    assert moved.find("embed", KEY) == ref
    moved.verify(ref)


def test_refs_lists_finished_artifacts_by_name_and_nothing_else(store):
    for key in ("b" * 32, "a" * 32):
        publish(store, key)
    (store.root / "embed" / ("c" * 32)).mkdir()
    (store.root / "embed" / "stray.txt").write_text("x")
    assert [ref.fingerprint for ref in store.refs("embed")] == ["a" * 32, "b" * 32]
    assert store.refs("sample") == []


def test_block_that_fails_publishes_nothing_and_leaves_nothing(store):
    def build():
        with store.build("embed", KEY, {}) as draft:
            storage.write_text(draft.folder / "half.txt", "half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build()
    assert store.find("embed", KEY) is None
    assert drafts(store) == []


def test_finished_artifact_is_never_replaced_by_a_later_build(store):
    first = publish(store, value=1)
    assert publish(store, value=2) == first


# -- damage


@pytest.mark.parametrize("name", ["vectors.npy", "rows.parquet", "deep/notes.txt", MANIFEST_NAME])
@pytest.mark.parametrize("damage", ["delete", "truncate", "grow", "empty"])
def test_missing_or_resized_file_makes_the_artifact_a_miss_and_a_rebuild_heals_it(
    store, name, damage
):
    ref = publish(store)
    path = store.folder(ref) / name
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(
            {"truncate": data[: len(data) // 2], "grow": data + b"x", "empty": b""}[damage]
        )
    assert store.find("embed", KEY) is None
    assert store.refs("embed") == []
    with pytest.raises(StoreError, match="only this stage will be recomputed"):
        store.folder(ref)
    assert publish(store) == ref
    store.verify(ref)


@pytest.mark.parametrize("name", ["vectors.npy", "rows.parquet", "deep/notes.txt"])
def test_flipped_bit_is_found_by_verify(store, name):
    ref = publish(store)
    path = store.folder(ref) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=f"E29 .*{name} changed"):
        store.verify(ref)


@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", '{"files": []}', '{"files": {"a": 1}}', "{", '"x"', "\x00"]
)
def test_manifest_that_is_not_one_is_a_miss(store, text):
    ref = publish(store)
    (store.folder(ref) / MANIFEST_NAME).write_text(text)
    assert store.find("embed", KEY) is None


def test_flipped_hash_in_the_manifest_is_a_miss(store):
    ref = publish(store)
    path = store.folder(ref) / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["files"]["vectors.npy"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert store.find("embed", KEY) is None


def test_folder_copied_to_another_key_is_not_that_artifact(store):
    ref = publish(store)
    shutil.copytree(store.folder(ref), store.root / "embed" / ("f" * 32))
    assert store.find("embed", "f" * 32) is None


def test_reference_to_other_content_is_refused(store):
    ref = publish(store)
    shutil.rmtree(store.root / ref.path)
    publish(store, value=2)
    with pytest.raises(StoreError, match="missing or damaged"):
        store.folder(ref)


# -- versions and places


def test_store_of_another_version_is_refused_with_both_numbers(store):
    (store.root / "STORE.json").write_text('{"store_version": 99}')
    with pytest.raises(StoreError, match=r"version 99.*reads version 1.*COMPASS_HOME"):
        ArtifactStore(store.root)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_unreadable_version_file_is_an_error_with_advice(store, text):
    (store.root / "STORE.json").write_text(text)
    with pytest.raises(StoreError, match="Restore it"):
        ArtifactStore(store.root)


def test_store_at_a_file_is_an_error_with_advice(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match=r"E50 .*COMPASS_HOME"):
            ArtifactStore(place)


# -- atomic writes


def test_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    storage.write_json(path, {"value": 1})

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"E64 No space left.*compass clean"):
        storage.write_json(path, {"value": 2})
    assert storage.read_json(path) == {"value": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_canonical_json_depends_on_values_alone(values):
    reordered = dict(reversed(list(values.items())))
    assert storage.canonical_json(values) == storage.canonical_json(reordered)
    assert json.loads(storage.canonical_json(values)) == values
    assert storage.fingerprint("x", values) == storage.fingerprint("x", reordered)


def test_tree_hash_sees_names_and_contents(tmp_path):
    storage.write_text(tmp_path / "a" / "one.txt", "1")
    first = storage.sha256_tree(tmp_path / "a")
    storage.write_text(tmp_path / "b" / "two.txt", "1")
    assert storage.sha256_tree(tmp_path / "b") != first
    storage.write_text(tmp_path / "b" / "one.txt", "1")
    (tmp_path / "b" / "two.txt").unlink()
    assert storage.sha256_tree(tmp_path / "b") == first


def test_pickled_array_is_neither_written_nor_read(tmp_path):
    objects = np.array([{"x": 1}], dtype=object)
    with pytest.raises(ValueError, match="Object arrays"):
        storage.write_array(tmp_path / "bad.npy", objects)
    np.save(tmp_path / "bad.npy", objects, allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays"):
        storage.read_array(tmp_path / "bad.npy")


# -- full disks


def _fail_at(monkeypatch, nth):
    """Let the `nth` system call that makes something durable or visible fail as a full disk."""
    calls = 0

    def counted(original):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))
    monkeypatch.setattr(files.pq, "write_table", counted(files.pq.write_table))
    monkeypatch.setattr(np, "save", counted(np.save))
    return lambda: calls


def test_disk_full_at_any_write_is_one_clean_error_and_nothing_is_damaged(store, monkeypatch):
    earlier = publish(store, key="e" * 32)
    with monkeypatch.context() as patch:
        n_calls = _fail_at(patch, 0)
        publish(store, key="d" * 32)
        total = n_calls()
    assert total >= 12
    for nth in range(1, total + 1):
        key = f"{nth:032x}"
        with monkeypatch.context() as patch:
            _fail_at(patch, nth)
            with pytest.raises(StoreError, match="E64 No space left"):
                publish(store, key=key)
        assert drafts(store) == []
        found = store.find("embed", key)
        if found is not None:  # only the last fsync of the folder came too late
            store.verify(found)
        store.verify(publish(store, key=key))
        store.verify(earlier)


def test_really_full_file_system_gives_the_same_error(tmp_path):
    unshare = shutil.which("unshare")
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if unshare is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs permission to mount a small tmpfs in a private namespace")
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from compass_core.storage import ArtifactStore, write_array\n"
        "store = ArtifactStore(Path(sys.argv[1]) / 'store')\n"
        "def build(key, n):\n"
        "    with store.build('embed', key, {}) as draft:\n"
        "        write_array(draft.folder / 'v.npy', np.zeros(n))\n"
        "    return store.put('embed', key, draft)\n"
        "small = build('a' * 32, 10)\n"
        "try:\n"
        "    build('b' * 32, 10_000_000)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
        "store.verify(small)\n"
        "store.verify(build('b' * 32, 1_000))\n"
        "print('healed')\n"
    )
    mount = f'mount -t tmpfs -o size=4m tmpfs "{tmp_path}"'
    inside = ["sh", "-c", f'{mount} && exec "$0" -c "$1" "$2"', sys.executable, script, tmp_path]
    done = subprocess.run(
        [unshare, "-rm", *map(str, inside)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert "Error E64 No space left" in done.stdout
    assert done.stdout.endswith("healed\n")


# -- kills


def _build_for_ever(root, acknowledged):
    store = ArtifactStore(root)
    number = 0
    while True:
        key = f"{os.getpid():08x}{number:024x}"
        with store.build("embed", key, {}) as draft:
            storage.write_array(draft.folder / "vectors.npy", np.full(20_000, number))
            storage.write_text(draft.folder / "notes.txt", str(number))
        acknowledged.send(store.put("embed", key, draft).to_dict())
        number += 1


def _spawn(target, *arguments):
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process


@pytest.mark.slow
def test_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path):
    from compass_core.records import ArtifactRef

    rng = np.random.default_rng(0)
    store = ArtifactStore(tmp_path / "store")
    acknowledged = []
    for _ in range(8):
        receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
        worker = _spawn(_build_for_ever, store.root, sender)
        acknowledged.append(receiver.recv())
        deadline = time.monotonic() + float(rng.random()) / 2
        while time.monotonic() < deadline:
            if receiver.poll(0.01):
                acknowledged.append(receiver.recv())
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        sender.close()
        while receiver.poll(0.01):
            try:
                acknowledged.append(receiver.recv())
            except EOFError:
                break
    assert len(acknowledged) > 8
    for values in acknowledged:
        store.verify(ArtifactRef.from_dict(values))
    for ref in store.refs("embed"):
        store.verify(ref)
    for folder in (store.root / "embed").iterdir():
        assert store.find("embed", folder.name) is not None


def _hold(path, ready):
    with storage.file_lock(path):
        ready.send(True)
        time.sleep(600)


@pytest.mark.slow
def test_lock_of_a_killed_holder_is_free_at_once(tmp_path):
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    worker = _spawn(_hold, tmp_path / "a.lock", sender)
    receiver.recv()
    with (
        pytest.raises(StoreError, match=r"E63 .*locked by another process"),
        storage.file_lock(tmp_path / "a.lock", timeout_seconds=0.05),
    ):
        pass
    os.kill(worker.pid, signal.SIGKILL)
    started = time.monotonic()
    with storage.file_lock(tmp_path / "a.lock", timeout_seconds=5):
        pass
    assert time.monotonic() - started < 1
    worker.join()


def test_lock_excludes_another_thread_of_the_same_process(tmp_path):
    path = tmp_path / "a.lock"
    with (
        storage.file_lock(path),
        pytest.raises(StoreError, match="E63"),
        storage.file_lock(path, timeout_seconds=0.02),
    ):
        pass
    with storage.file_lock(path, timeout_seconds=0.02):
        pass


# -- rivals and left-overs


def _publish_all(root, start, results):
    store = ArtifactStore(root)
    start.wait()
    results.put([publish(store, key=f"{number:032x}", value=number).sha256 for number in range(10)])


@pytest.mark.slow
def test_processes_that_publish_the_same_keys_agree_on_one_artifact_each(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    workers = [
        context.Process(target=_publish_all, args=(tmp_path / "store", start, results))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    start.set()
    first, *others = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert all(other == first for other in others)
    store = ArtifactStore(tmp_path / "store")
    assert [ref.sha256 for ref in store.refs("embed")] == first
    assert drafts(store) == []


def age(path):
    long_ago = time.time() - 30 * 24 * 3600
    os.utime(path, (long_ago, long_ago))


def test_sweep_removes_what_killed_processes_left_and_spares_the_living(store):
    tmp = store.root / "tmp"
    with store.build("embed", KEY, {}) as draft:
        storage.write_text(draft.folder / "notes.txt", "slow work")
        (tmp / "sample-dead-1-x").mkdir()
        (tmp / "sample-fresh-1-x").mkdir()
        (tmp / "progress-dead.json").write_text("{}")
        (tmp / "sample-dead-1-x.alive").write_text("")
        for path in tmp.glob("*"):
            if "fresh" not in path.name:
                age(path)
        assert store.sweep() == 2
        assert draft.folder.is_dir()
    assert store.find("embed", KEY) is not None
    assert drafts(store) == ["sample-fresh-1-x"]
    assert ArtifactStore(store.root.parent / "new").sweep() == 0

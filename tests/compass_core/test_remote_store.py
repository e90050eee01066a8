"""The store on object storage: several machines, one bucket, kills, damage and no network."""

import http.server
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from compass_core import remote_store, storage
from compass_core.errors import InputError, StoreError, TransientError
from compass_core.object_store import ObjectStore, is_url
from compass_core.remote_store import RemoteStore
from compass_core.storage import MANIFEST_NAME, ArtifactStore

pytest_plugins = ["tests.object_storage"]

KEY = "0123456789abcdef" * 2
NOW = timedelta(seconds=-1)


@pytest.fixture
def hosts(tmp_path, s3_url):
    """Open the store as one machine after the other would: each has a mirror of its own."""
    return lambda name: RemoteStore(tmp_path / name / "store", s3_url)


def publish(store, key=KEY, value=1, kind="embed"):
    with store.build(kind, key, {"value": value}) as draft:
        storage.write_array(draft.folder / "vectors.npy", np.full(1_000, value))
        storage.write_text(draft.folder / "deep" / "notes.txt", f"notes {value}")
        draft.rows = 2
    return store.put(kind, key, draft)


def value_of(store, ref):
    folder = store.folder(ref)
    notes = int((folder / "deep" / "notes.txt").read_text().removeprefix("notes "))
    assert set(storage.read_array(folder / "vectors.npy").tolist()) == {notes}  # of one attempt
    return notes


def forget_joins():
    """Let the next store be opened as by a new process."""
    remote_store._joined.clear()


# -- two machines, one bucket


def test_what_one_machine_made_another_finds_fetches_and_verifies(hosts):
    here, there = hosts("a"), hosts("b")
    ref = publish(here)
    assert here.find("embed", KEY) == ref == there.find("embed", KEY)
    assert not (there.root / ref.path).exists(), "what nobody opens is not downloaded"
    assert there.manifest(ref)["provenance"] == {"value": 1}
    assert value_of(there, ref) == 1
    there.verify(ref)
    assert there.refs("embed") == [ref]
    assert there.kinds() == ["embed"]


def test_manifest_comes_last_and_nothing_without_it_is_visible(hosts, bucket, monkeypatch):
    order = []
    original = ObjectStore.upload
    monkeypatch.setattr(
        ObjectStore, "upload", lambda *a: (original(*a), order.append(bucket.names()))
    )
    publish(hosts("a"))
    (seen,) = order
    assert len(seen) == 3
    assert f"embed/{KEY}/{MANIFEST_NAME}" not in seen
    bucket.delete(f"embed/{KEY}/{MANIFEST_NAME}")
    assert hosts("b").find("embed", KEY) is None
    assert hosts("b").refs("embed") == []


def test_hit_that_is_mirrored_or_seen_costs_no_request(hosts, monkeypatch):
    here, there = hosts("a"), hosts("b")
    ref = publish(here)
    there.find("embed", KEY)

    def refuse(*_args, **_options):
        raise AssertionError("a request")

    for name in ("read", "sizes", "create", "upload", "download"):
        monkeypatch.setattr(ObjectStore, name, refuse)
    assert here.find("embed", KEY) == ref == there.find("embed", KEY)
    assert value_of(here, ref) == 1


def test_a_machine_that_is_beaten_takes_the_winner_whole_and_leaves_nothing(hosts, bucket):
    here, there = hosts("a"), hosts("b")
    with there.build("embed", KEY, {}) as draft:
        storage.write_array(draft.folder / "vectors.npy", np.full(1_000, 2))
        storage.write_text(draft.folder / "deep" / "notes.txt", "notes 2")
        first = publish(here, value=1)  # while the other still works
    assert there.put("embed", KEY, draft) == first
    assert value_of(there, first) == 1
    assert len(bucket.names()) == 1 + 3  # STORE.json, two files, one manifest


def test_a_machine_that_makes_the_same_content_keeps_its_files(hosts, monkeypatch):
    first = publish(hosts("a"))
    there = hosts("b")
    monkeypatch.setattr(ObjectStore, "download", lambda *_: pytest.fail("downloaded"))
    assert publish(there) == first
    assert value_of(there, first) == 1


def test_rivals_that_upload_at_the_same_moment_agree(hosts, monkeypatch):
    together = threading.Barrier(4)
    original = ObjectStore.upload

    def upload(*args):
        original(*args)
        together.wait(30)  # everybody has uploaded before anybody creates the manifest

    monkeypatch.setattr(ObjectStore, "upload", upload)
    refs = {}

    def make(value):
        refs[value] = publish(hosts(f"host-{value}"), value=value)

    threads = [threading.Thread(target=make, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(refs) == 4
    assert len(set(refs.values())) == 1
    assert len({value_of(hosts(f"host-{value}"), refs[value]) for value in range(4)}) == 1


def test_store_that_was_a_folder_is_shared_artifact_by_artifact_when_used(tmp_path, hosts):
    before = ArtifactStore(tmp_path / "a" / "store")
    ref = publish(before)
    assert hosts("b").find("embed", KEY) is None
    assert hosts("a").find("embed", KEY) == ref
    assert value_of(hosts("b"), hosts("b").find("embed", KEY)) == 1
    again = ArtifactStore(tmp_path / "a" / "store")
    assert again.find("embed", KEY) == ref, "and it is still a folder that works without storage"


# -- faults


def test_result_survives_a_storage_that_fails_and_is_uploaded_later(hosts, monkeypatch):
    here = hosts("a")

    def fail(*_args):
        raise TransientError("away")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "upload", fail)
        with pytest.raises(TransientError):
            publish(here)
        with pytest.raises(TransientError):
            here.find("embed", KEY)
    assert hosts("b").find("embed", KEY) is None
    assert value_of(hosts("b"), here.find("embed", KEY)) == 1


def test_lost_answer_to_the_conditional_put_is_not_a_defeat(hosts, monkeypatch):
    original = ObjectStore.create

    def answered_twice(self, name, data):
        original(self, name, data)
        return original(self, name, data)

    here = hosts("a")
    monkeypatch.setattr(ObjectStore, "create", answered_twice)
    assert value_of(here, publish(here)) == 1


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_missing_or_truncated_object_is_a_miss_and_is_made_again(hosts, bucket, damage):
    publish(hosts("a"))
    (name,) = [key for key in bucket.names() if key.endswith("vectors.npy")]
    data = bucket.read(name)
    bucket.delete(name) if damage == "delete" else bucket.write(name, data[:-1])
    there = hosts("b")
    assert there.find("embed", KEY) is None
    assert value_of(there, publish(there, value=5)) == 5
    assert value_of(hosts("c"), hosts("c").find("embed", KEY)) == 5


def test_flipped_bit_is_found_by_the_download_withdrawn_and_made_again(hosts, bucket):
    publish(hosts("a"))
    (name,) = [key for key in bucket.names() if key.endswith("vectors.npy")]
    data = bytearray(bucket.read(name))
    data[-1] ^= 1
    bucket.write(name, bytes(data))
    there = hosts("b")
    ref = there.find("embed", KEY)
    with pytest.raises(StoreError, match=r"E29 .*sha256 differs.*only this stage"):
        there.folder(ref)
    assert not (there.root / ref.path).exists()
    assert there.find("embed", KEY) is None
    assert value_of(there, publish(there, value=7)) == 7


def test_damaged_copy_is_set_aside_and_fetched_again(hosts):
    publish(hosts("a"))
    there = hosts("b")
    ref = there.find("embed", KEY)
    path = there.folder(ref) / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="E29"):
        there.verify(ref)
    there.set_aside(ref)
    assert there.find("embed", KEY) == ref
    there.verify(ref)


def test_artifact_that_another_machine_removed_is_gone_with_advice(hosts, bucket):
    ref = publish(hosts("a"))
    there = hosts("b")
    there.find("embed", KEY)
    hosts("a").remove("embed", KEY)
    assert bucket.names() == ["STORE.json"]
    with pytest.raises(StoreError, match="only this stage will be recomputed"):
        there.folder(ref)
    assert there.find("embed", KEY) is None


@pytest.mark.parametrize("name", ["../../escape.txt", "/tmp/escape.txt"])
def test_manifest_that_names_files_outside_of_its_folder_is_not_believed(hosts, bucket, name):
    publish(hosts("a"))
    manifest = json.loads(bucket.read(f"embed/{KEY}/{MANIFEST_NAME}"))
    meta = manifest["files"].pop("vectors.npy")
    manifest["files"][name] = meta
    manifest["sha256"] = storage._content_sha256(manifest["files"])
    bucket.write(f"embed/{KEY}/{MANIFEST_NAME}", json.dumps(manifest).encode())
    assert hosts("b").find("embed", KEY) is None


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"attempt": "../x"}', b'{"attempt": 1}'])
def test_manifest_that_is_not_one_blocks_nobody(hosts, bucket, text):
    bucket.write(f"embed/{KEY}/{MANIFEST_NAME}", text)
    here = hosts("a")
    assert here.find("embed", KEY) is None
    assert value_of(here, publish(here)) == 1


# -- what is wrong is said before expensive work


def test_missing_bucket_is_named(tmp_path, s3_url):
    with pytest.raises(StoreError, match=r"E54 .*there is no bucket nowhere-at-all\. Create it"):
        RemoteStore(tmp_path / "store", "s3://nowhere-at-all/compass")


def test_missing_credentials_are_named_and_not_retried(tmp_path, s3_url, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fresh = f"{s3_url}-{uuid.uuid4().hex}"
    _forget_clients()
    try:
        with pytest.raises(InputError, match=r"E54 .*Check the credentials .*AWS_\*"):
            RemoteStore(tmp_path / "store", fresh)
    finally:
        _forget_clients()


def _forget_clients():
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()


class _Denying(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = (
            b"<Error><Code>InvalidAccessKeyId</Code><Message>The AWS Access Key Id you provided "
            b"does not exist in our records.</Message></Error>"
        )
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = answer  # noqa: N815 - the library calls these

    def log_message(self, *_args):
        pass


@pytest.fixture
def denying_server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Denying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_wrong_credentials_are_an_input_error_without_the_secret(
    tmp_path, s3_url, denying_server, monkeypatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", denying_server)
    _forget_clients()
    try:
        with pytest.raises(InputError, match=r"E54 .*may not read STORE") as caught:
            RemoteStore(tmp_path / "store", s3_url)
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    finally:
        _forget_clients()


def test_storage_that_cannot_be_reached_is_worth_a_retry(tmp_path, s3_url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    _forget_clients()
    try:
        with pytest.raises(TransientError, match=r"cannot read STORE\.json.*can be reached"):
            RemoteStore(tmp_path / "store", s3_url)
    finally:
        _forget_clients()


def test_storage_that_replaces_what_it_should_keep_is_refused(hosts, monkeypatch):
    here = hosts("a")
    here.check()
    monkeypatch.setattr(ObjectStore, "create", lambda *_: True)
    with pytest.raises(StoreError, match=r"E54 .*If-None-Match"):
        here.check()


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x", "s3://key@bucket/x"])
def test_address_with_credentials_is_refused_without_repeating_them(url):
    with pytest.raises(StoreError, match="must not hold") as caught:
        ObjectStore(url)
    assert "secret" not in str(caught.value)


def test_address_that_nothing_knows_is_refused_with_advice(tmp_path):
    with pytest.raises(StoreError, match=r"E54 .*compass-adapt\[s3\]"):
        RemoteStore(tmp_path / "store", "nosuch://bucket/x")


def test_home_stays_with_the_store_it_mirrors(hosts, s3_url, tmp_path):
    publish(hosts("a"))
    forget_joins()
    assert hosts("a").find("embed", KEY) is not None
    with pytest.raises(StoreError, match=r"E54 .*Use another COMPASS_HOME"):
        RemoteStore(tmp_path / "a" / "store", f"{s3_url}-other")


def test_store_of_another_version_is_refused_with_both_numbers(hosts, bucket):
    bucket.write("STORE.json", b'{"store_version": 7, "store_id": "x"}')
    with pytest.raises(StoreError, match=r"version 7, this COMPASS reads version 1"):
        hosts("a")


def test_addresses_of_folders_and_of_storage_are_told_apart():
    assert is_url("s3://bucket/x")
    assert is_url("memory://x")
    assert not is_url("file:///srv/store")
    assert not is_url("/srv/store")


def test_any_file_system_of_fsspec_will_do(tmp_path):
    url = f"memory://{uuid.uuid4().hex}"
    here, there = (RemoteStore(tmp_path / name, url) for name in ("a", "b"))
    here.check()
    ref = publish(here)
    assert value_of(there, there.find("embed", KEY)) == 1
    assert there.refs("embed") == [ref]
    assert there.sweep_attempts(NOW) == 0
    there.remove("embed", KEY)
    assert RemoteStore(tmp_path / "c", url).find("embed", KEY) is None


# -- left-overs


def test_old_attempts_are_swept_and_what_serves_or_is_under_way_is_kept(hosts, bucket):
    here = hosts("a")
    ref = publish(here)
    bucket.write(f"embed/{KEY}/dead/vectors.npy", b"x")
    bucket.write(f"sample/{'1' * 32}/dead/deep/rows.parquet", b"x")
    bucket.write(f"sample/{'1' * 32}/dead/rows.parquet", b"x")
    assert here.sweep_attempts() == 0, "young ones may be under way"
    unfinished = f"{bucket.prefix}/embed/{KEY}/dead/big.npy"
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=unfinished)
    assert here.sweep_attempts(NOW) == 3
    assert len(bucket.names()) == 4
    here.verify(ref)
    assert value_of(hosts("b"), ref) == 1
    assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket=bucket.name)


KILLED = """
import sys, time
from pathlib import Path
from compass_core import storage
from compass_core.object_store import ObjectStore
from compass_core.remote_store import RemoteStore
import numpy as np

root, url, key, where = sys.argv[1:]
original = ObjectStore.create if where == "manifest" else ObjectStore.upload

def stop(self, *args):
    if where == "manifest" and not args[0].endswith("MANIFEST.json"):
        return original(self, *args)
    if where == "upload":
        original(self, args[0], list(args[1])[:1], args[2])
    print("here", flush=True)
    time.sleep(600)

store = RemoteStore(Path(root), url)
setattr(ObjectStore, "create" if where == "manifest" else "upload", stop)
with store.build("embed", key, {}) as draft:
    storage.write_array(draft.folder / "vectors.npy", np.full(1_000, 3))
    storage.write_text(draft.folder / "deep" / "notes.txt", "notes 3")
"""


@pytest.mark.parametrize("where", ["upload", "manifest"])
def test_kill_in_the_middle_of_publishing_leaves_nothing_visible_and_loses_nothing(
    tmp_path, hosts, bucket, s3_url, where
):
    root = tmp_path / "a" / "store"
    command = [sys.executable, "-c", KILLED, str(root), s3_url, KEY, where]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert victim.stdout.readline() == "here\n"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    assert hosts("b").find("embed", KEY) is None
    left = [key for key in bucket.names() if key.startswith("embed")]
    assert left
    ref = hosts("a").find("embed", KEY)  # finished before the kill: uploaded, not made again
    assert value_of(hosts("b"), ref) == 3
    assert hosts("b").sweep_attempts(NOW) == 1
    assert not set(left) & set(bucket.names())
    assert value_of(hosts("c"), ref) == 3


def race(root, url, value, start, results):
    store = RemoteStore(Path(root), url)
    start.wait()
    refs = [publish(store, key=f"{n:032x}", value=value) for n in range(6)]
    results.put((value, [(ref.sha256, value_of(store, ref)) for ref in refs]))


@pytest.mark.slow
def test_processes_of_several_machines_agree_on_one_artifact_each(tmp_path, s3_url):
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    # Two processes on each of three machines, each with content of its own.
    roots = [tmp_path / f"h{n // 2}" / "store" for n in range(6)]
    workers = [
        context.Process(target=race, args=(root, s3_url, n, start, results))
        for n, root in enumerate(roots)
    ]
    for worker in workers:
        worker.start()
    time.sleep(1)
    start.set()
    found = dict(results.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join()
    first = found[0]
    assert all(other == first for other in found.values())
    newcomer = RemoteStore(tmp_path / "new" / "store", s3_url)
    assert [ref.sha256 for ref in newcomer.refs("embed")] == [sha256 for sha256, _ in first]


BIG = """
import resource, sys
from pathlib import Path
import numpy as np
from compass_core.remote_store import RemoteStore

root, url, key = sys.argv[1:]
store = RemoteStore(Path(root), url)
with store.build("embed", "1" * 32, {}) as draft:
    np.save(draft.folder / "small.npy", np.zeros(10))
store.folder(store.put("embed", "1" * 32, draft))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = store.find("embed", key)
if found is None:
    with store.build("embed", key, {}) as draft:
        for n in range(2):
            out = np.lib.format.open_memmap(
                draft.folder / f"{n}.npy", mode="w+", dtype=np.uint8, shape=(200 << 20,)
            )
            out[:: 1 << 12] = 1
            out.flush()
            del out
    found = store.put("embed", key, draft)
store.folder(found)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_memory_of_a_transfer_does_not_grow_with_the_files(tmp_path, s3_url):
    grown = []
    for host in ("maker", "reader"):
        command = [sys.executable, "-c", BIG, str(tmp_path / host), s3_url, KEY]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        grown.append(int(ran.stdout))
    # 400 MiB were moved. The maker's own mapped pages count in its maximum, the reader's cannot.
    assert grown[1] < 250, f"{grown} MiB"

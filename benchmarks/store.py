"""How long the artefact store takes: publish, find and fetch, in a folder and on object storage.

Compared, interleaved and with the same files, with what one would write without it: a copy of the
folder, and `put`/`get` of s3fs into a bucket. The storage is a server of this process on loopback,
so its times are those of two programs sharing a processor, not of a network; what counts are the
ratios and the requests. Run it from the repository's root:

    python benchmarks/store.py --rounds 5
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from compass_core.remote_store import RemoteStore
from compass_core.storage import ArtifactStore, write_array

SIZES = {"small, 3 files of 10 kB": (3, 2_500), "large, 4 files of 16 MB": (4, 4_000_000)}
_VERB = re.compile(r"GET|PUT|POST|HEAD|DELETE")
Times = dict[str, list[float]]


def start_storage() -> collections.Counter[str]:
    """Serve a bucket on loopback; return a counter of its requests."""
    from moto.server import ThreadedMotoServer

    requests: collections.Counter[str] = collections.Counter()

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            requests[_VERB.search(record.getMessage()).group()] += 1  # type: ignore[union-attr]

    log = logging.getLogger("werkzeug")
    log.addHandler(Count())
    log.setLevel(logging.INFO)
    log.propagate = False
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
    os.environ.update(
        keys, AWS_DEFAULT_REGION="us-east-1", AWS_ENDPOINT_URL=f"http://{host}:{port}"
    )
    import boto3

    boto3.client("s3").create_bucket(Bucket="store")
    boto3.client("s3").create_bucket(Bucket="plain")
    requests.clear()
    return requests


def timed(work: Callable[[], object]) -> float:
    """Return wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fill(folder: Path, n_files: int, n_values: int, seed: int) -> None:
    """Write the files of one artefact."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_files):
        write_array(folder / f"part-{number}.npy", rng.random(n_values, dtype=np.float32))


def one_round(folder: Path, size: tuple[int, int], number: int, times: Times) -> None:
    """Do everything once, with fresh files."""
    import s3fs

    source, key = folder / "source" / str(number), f"{number:032x}"
    fill(source, *size, seed=number)
    plain = s3fs.S3FileSystem(use_listings_cache=False)
    local = ArtifactStore(folder / "local")
    here = RemoteStore(folder / "here", "s3://store/x")
    there = RemoteStore(folder / f"there-{number}", "s3://store/x")

    def publish(store: ArtifactStore) -> None:
        with store.build("embed", key, {}) as draft:
            shutil.copytree(source, draft.folder, dirs_exist_ok=True)

    found = times.setdefault
    found("folder: copy", []).append(timed(lambda: shutil.copytree(source, folder / "c" / key)))
    found("folder: publish", []).append(timed(lambda: publish(local)))
    found("folder: find", []).append(timed(lambda: local.find("embed", key)))
    found("S3: s3fs put", []).append(timed(lambda: plain.put(f"{source}/", f"plain/{key}", True)))
    found("S3: publish", []).append(timed(lambda: publish(here)))
    found("S3: find, mirrored", []).append(timed(lambda: here.find("embed", key)))
    found("S3: find, first time", []).append(timed(lambda: there.find("embed", key)))
    found("S3: find, seen", []).append(timed(lambda: there.find("embed", key)))
    ref = there.find("embed", key)
    assert ref is not None
    got = folder / "got" / key
    found("S3: s3fs get", []).append(timed(lambda: plain.get(f"plain/{key}/", f"{got}/", True)))
    found("S3: fetch, verified", []).append(timed(lambda: there.folder(ref)))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    requests = start_storage()
    with tempfile.TemporaryDirectory() as scratch:
        for name, size in SIZES.items():
            times: Times = {}
            folder = Path(scratch) / str(size[1])
            one_round(folder / "warm", size, 10_000 + size[1], {})
            for number in range(options.rounds):
                one_round(folder, size, number + size[1], times)
            print(f"\n{name}; median of {options.rounds} rounds, milliseconds")
            median = {what: statistics.median(found) for what, found in times.items()}
            for what, seconds in median.items():
                print(f"  {what:24}{1000 * seconds:10.2f}")
            for ours, theirs in (
                ("folder: publish", "folder: copy"),
                ("S3: publish", "S3: s3fs put"),
                ("S3: fetch, verified", "S3: s3fs get"),
                ("S3: find, first time", "S3: find, mirrored"),
            ):
                print(f"  {ours} / {theirs}: {median[ours] / median[theirs]:.2f}")
        count_requests(Path(scratch), requests)


def count_requests(scratch: Path, requests: collections.Counter[str]) -> None:
    """Print how many requests each operation sends."""
    print("\nrequests")

    def count(what: str, work: Callable[[], object]) -> None:
        requests.clear()
        work()
        print(f"  {what:44}{sum(requests.values()):3}  {dict(sorted(requests.items()))}")

    here, there = (RemoteStore(scratch / name, "s3://store/x") for name in ("p", "q"))

    def publish() -> None:
        with here.build("sample", "1" * 32, {}) as draft:
            fill(draft.folder, 3, 10, 0)

    count("publish of 3 files", publish)
    count("find of what is mirrored", lambda: here.find("sample", "1" * 32))
    count("find of what is nowhere", lambda: there.find("sample", "2" * 32))
    count("find of what another machine made", lambda: there.find("sample", "1" * 32))
    count("the same again", lambda: there.find("sample", "1" * 32))
    ref = there.find("sample", "1" * 32)
    assert ref is not None
    count("fetch of 3 files", lambda: there.folder(ref))


if __name__ == "__main__":
    main()

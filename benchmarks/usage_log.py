"""How fast a usage log becomes observations, against the obvious ways of reading one.

The encoder is left out (a stand-in says "cluster 0"), so this is the cost of reading, checking,
hashing and keeping. Alternatives on the same file, interleaved: a loop over `json.loads` with a set
of known ids, and `pandas.read_json`; both end with a Parquet file of the same columns, and neither
checks a record, hashes with a key, survives a kill, or knows what it read before. Run from the
repository's root:

    OMP_NUM_THREADS=1 python benchmarks/usage_log.py --records 200000
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from compass_core.config import MonitoringConfig, UsageLogConfig
from compass_core.monitoring.observations import ObservationLog, Observed
from compass_core.monitoring.privacy import open_key

START = datetime(2026, 3, 2, tzinfo=UTC)
NOW = START + timedelta(days=30)
SPACE = "space"


def write_log(path: Path, n_records: int, seed: int) -> None:
    """Write a log of prompts of some 80 characters, a tenth of them in another language."""
    rng = np.random.default_rng(seed)
    words = np.array([f"neno{number}" for number in range(500)])
    with path.open("w", encoding="utf-8") as stream:
        for number in range(n_records):
            record = {
                "id": f"request-{number:09d}",
                "time": (START + timedelta(seconds=number)).isoformat(),
                "prompt": " ".join(rng.choice(words, 10)),
                "language": "tr" if number % 10 == 0 else "sw",
                "user": f"user-{number % 5000}",
                "session": f"session-{number % 20000}",
            }
            stream.write(json.dumps(record) + "\n")


def observe(texts: list[str]) -> Observed:
    """Stand in for the encoder."""
    n = len(texts)
    return Observed(np.zeros(n, np.int32), np.zeros(n, np.float32), np.zeros(n, np.bool_))


def with_compass(log: Path, home: Path) -> int:
    """Take the log in; return the observations that are new."""
    (home / "usage").mkdir(parents=True, exist_ok=True)
    observations = ObservationLog(home / "usage" / "swh_Latn", open_key(home / "usage", {}))
    config = MonitoringConfig(log=UsageLogConfig(path=str(log)))
    report = observations.take_in(config, base_folder=home, observe=observe, space=SPACE, now=NOW)
    return report.n_new


def with_a_loop(log: Path, home: Path) -> int:
    """Read line by line into lists; the known ids come from the file that is there."""
    out = home / "loop.parquet"
    known = set(pq.read_table(out, columns=["id"])["id"].to_pylist()) if out.exists() else set()
    rows: dict[str, list[object]] = {"id": [], "time": [], "user": [], "cluster": []}
    with log.open(encoding="utf-8") as stream:
        for line in stream:
            record = json.loads(line)
            if record["language"] != "sw" or record["id"] in known:
                continue
            known.add(record["id"])
            rows["id"].append(record["id"])
            rows["time"].append(datetime.fromisoformat(record["time"]))
            rows["user"].append(record["user"])
            rows["cluster"].append(0)
    table = pa.table(rows)
    if out.exists():
        table = pa.concat_tables([pq.read_table(out), table])
    home.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out, compression="zstd")
    return len(rows["id"])


def with_pandas(log: Path, home: Path) -> int:
    """Read the whole file at once, drop duplicates, write."""
    frame = pd.read_json(log, lines=True)
    frame = frame[frame["language"] == "sw"].drop_duplicates("id")
    frame = frame.assign(time=pd.to_datetime(frame["time"], format="ISO8601"), cluster=0)
    home.mkdir(parents=True, exist_ok=True)
    frame[["id", "time", "user", "cluster"]].to_parquet(home / "pandas.parquet", compression="zstd")
    return len(frame)


ARMS: dict[str, Callable[[Path, Path], int]] = {
    "compass": with_compass,
    "json loop": with_a_loop,
    "pandas": with_pandas,
}


def measure(n_records: int, repeats: int) -> None:
    """Print records per second of a first reading and of one after a tenth was added."""
    first: dict[str, list[float]] = {name: [] for name in ARMS}
    second: dict[str, list[float]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = root / "whole.jsonl"
        write_log(whole, n_records, seed=0)
        lines = whole.read_bytes().splitlines(keepends=True)
        log = root / "log.jsonl"
        for repeat in range(repeats):
            for name, arm in ARMS.items():
                home = root / f"{repeat}-{name}"
                log.write_bytes(b"".join(lines[: len(lines) * 10 // 11]))
                first[name].append(_timed(arm, log, home))
                log.write_bytes(whole.read_bytes())
                second[name].append(_timed(arm, log, home))
        with_compass(log, root / "0-compass")
        unchanged = _timed(with_compass, log, root / "0-compass")
    print(f"{n_records:,} records in all, median of {repeats} readings, processor seconds")
    print(
        f"{'':<12}{'first 10/11':>12}{'records/s':>12}{'x compass':>11}{'all':>8}{'x compass':>11}"
    )
    for name in ARMS:
        early, late = statistics.median(first[name]), statistics.median(second[name])
        print(
            f"{name:<12}{early:>12.2f}{n_records * 10 / 11 / early:>12,.0f}"
            f"{early / statistics.median(first['compass']):>11.2f}{late:>8.2f}"
            f"{late / statistics.median(second['compass']):>11.2f}"
        )
    print(f"compass, file unchanged: {unchanged * 1000:.0f} ms")


def _timed(arm: Callable[[Path, Path], int], log: Path, home: Path) -> float:
    """Return processor seconds: the machine may have other work."""
    started = time.process_time()
    arm(log, home)
    return time.process_time() - started


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    measure(given.records, given.repeats)


if __name__ == "__main__":
    main()

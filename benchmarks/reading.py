"""Reading a pool strictly: rows a second, and memory, against `datasets` and a bare loop.

    python benchmarks/reading.py [--rows N]
    python benchmarks/reading.py --memory [--rows N]

Speed: all read the same JSON Lines file in turn, three times; the fastest of each counts. Only ours
checks duplicate keys, ids, encodings, control characters, languages and nesting, and it is the only
one whose output is what the later stages use.

Memory: each turns the same pool, as JSON Lines and as Parquet, into a Parquet file in a process of
its own; the peak of the process's anonymous memory (RssAnon of /proc, sampled every 10 ms) counts,
and what the imports took is shown apart.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROUNDS = 3
LIMIT_MIB = 600
"""Anonymous memory that ingesting a million rows may take."""


def records(rows: int) -> Iterator[dict[str, object]]:
    """Yield `rows` instruction/response records in three languages."""
    for index in range(rows):
        yield {
            "id": index,
            "language": ("en", "sw", "yo")[index % 3],
            "instruction": f"Where is place number {index}, and who lives there today?",
            "response": f"Nobody knows {index} for certain. " * 4,
        }


def write_jsonl(path: Path, rows: int) -> None:
    """Write the records as JSON Lines."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in records(rows))


def write_parquet(path: Path, rows: int) -> None:
    """Write the records as Parquet, in row groups as large as writers make them by default."""
    pq.write_table(pa.Table.from_pylist(list(records(rows))), path)


# --------------------------------------------------------------------------- readers
def compass(path: Path, out: Path) -> int:
    """Read with every check, a batch at a time."""
    from compass_core.config import CorpusConfig
    from compass_core.reading import write_corpus

    config = CorpusConfig(path=str(path))
    return write_corpus(config, out, language=None, role="pool", base_folder=path.parent)[0]


def bare(path: Path, out: Path) -> int:
    """Parse everything and write a table: no check at all."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
    else:
        with path.open(encoding="utf-8") as stream:
            table = pa.Table.from_pylist([json.loads(line) for line in stream])
    pq.write_table(table, out, compression="zstd")
    return table.num_rows


def with_datasets(path: Path, out: Path) -> int:
    """Load with `datasets`, without its cache."""
    import datasets

    datasets.disable_progress_bars()
    kind = "parquet" if path.suffix == ".parquet" else "json"
    with tempfile.TemporaryDirectory() as cache:
        loaded = datasets.load_dataset(
            kind, data_files=str(path), split="train", cache_dir=cache, trust_remote_code=False
        )
        loaded.to_parquet(str(out))
        return len(loaded)


READERS: dict[str, Callable[[Path, Path], int]] = {
    "compass": compass,
    "bare loop": bare,
    "datasets": with_datasets,
}


# --------------------------------------------------------------------------- speed and memory
def speed(rows: int) -> None:
    """Print rows a second and ratios."""
    best = dict.fromkeys(READERS, float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_jsonl(path, rows)
        for _ in range(ROUNDS):
            for name, reader in READERS.items():
                started = time.perf_counter()
                assert reader(path, Path(folder) / "out.parquet") == rows
                best[name] = min(best[name], time.perf_counter() - started)
    for name, seconds in best.items():
        ratio = seconds / best["compass"]
        print(f"{name:10} {rows / seconds:10,.0f} rows/s   {ratio:5.2f} × the time of compass")


def memory(rows: int) -> None:
    """Print the peaks of anonymous memory, each reader in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for kind, writer in (("jsonl", write_jsonl), ("parquet", write_parquet)):
            path = Path(folder) / f"rows.{kind}"
            process = spawn.Process(target=writer, args=(path, rows))
            process.start()
            process.join()
            for name in READERS:
                queue = spawn.Queue()
                process = spawn.Process(target=_watched, args=(name, path, rows, queue))
                process.start()
                before, peak, seconds = queue.get()
                process.join()
                print(
                    f"{kind:8} {name:10} {rows:,} rows: {peak:6.0f} MiB at the peak "
                    f"({before:.0f} MiB before the first row), {seconds:6.1f} s"
                    + (f"   limit {LIMIT_MIB} MiB" if name == "compass" else "")
                )


def _watched(name: str, path: Path, rows: int, queue: "multiprocessing.Queue[object]") -> None:
    """Read in this process and put (MiB before, MiB at the peak, seconds) into `queue`."""
    warm = path.with_name(f"warm{path.suffix}")
    (write_parquet if path.suffix == ".parquet" else write_jsonl)(warm, 10)
    READERS[name](warm, path.with_name("warm.out"))
    before = peak = _anonymous_mib()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, _anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    assert READERS[name](path, path.with_name("out.parquet")) == rows
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    queue.put((before, peak, seconds))


def _anonymous_mib() -> float:
    status = Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def main() -> None:
    """Measure speed, or memory with ``--memory``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, help="100,000 for speed, 1,000,000 for memory")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    given = parser.parse_args()
    if given.memory:
        memory(given.rows or 1_000_000)
    else:
        speed(given.rows or 100_000)


if __name__ == "__main__":
    main()

"""Reading JSON Lines strictly: rows a second against `datasets` and a bare json loop.

    python benchmarks/reading.py [rows]

The three read the same file in turn, three times; the fastest of each counts. Only ours checks
duplicate keys, ids, encodings, control characters, languages and nesting, and it is the only one
whose output is the table that the later stages use.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import datasets
import pyarrow as pa

from compass_core.config import CorpusConfig
from compass_core.reading import read_corpus

ROUNDS = 3


def write(path: Path, rows: int) -> None:
    """Write `rows` instruction/response records in three languages."""
    with path.open("w", encoding="utf-8") as stream:
        for index in range(rows):
            row = {
                "id": index,
                "language": ("en", "sw", "yo")[index % 3],
                "instruction": f"Where is place number {index}, and who lives there today?",
                "response": "Nobody knows for certain. " * 4,
            }
            stream.write(json.dumps(row) + "\n")


def ours(path: Path) -> int:
    """Read with every check."""
    config = CorpusConfig(path=path.name)
    return read_corpus(config, language=None, role="pool", base_folder=path.parent)[0].num_rows


def bare(path: Path) -> int:
    """Parse each line and build a table: no check at all."""
    with path.open(encoding="utf-8") as stream:
        return pa.Table.from_pylist([json.loads(line) for line in stream]).num_rows


def with_datasets(path: Path) -> int:
    """Load with `datasets`, without its cache."""
    with tempfile.TemporaryDirectory() as cache:
        loaded = datasets.load_dataset(
            "json", data_files=str(path), split="train", cache_dir=cache, trust_remote_code=False
        )
        return len(loaded)


def main() -> None:
    """Print rows a second and ratios."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    datasets.disable_progress_bars()
    readers = {"compass": ours, "bare json loop": bare, "datasets": with_datasets}
    best = dict.fromkeys(readers, float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write(path, rows)
        for _ in range(ROUNDS):
            for name, reader in readers.items():
                started = time.perf_counter()
                assert reader(path) == rows
                best[name] = min(best[name], time.perf_counter() - started)
    for name, seconds in best.items():
        ratio = seconds / best["compass"]
        print(f"{name:16} {rows / seconds:10,.0f} rows/s   {ratio:5.2f} × the time of compass")


if __name__ == "__main__":
    main()

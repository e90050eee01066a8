"""Memory and time of selecting from a pool of a million rows on disk.

    python benchmarks/scale.py [--rows 1000000] [--shards 10] [--texts] [--balance 0.5]

The pool is written in shards (Parquet rows and float32 vectors of 384 dimensions) into a temporary
folder and removed afterwards. A child process then opens it, fits K=500 clusters on 2,000 usage
and 4,000 existing rows, assigns, measures the gap, allocates and draws, while its anonymous memory
(RssAnon: what it holds itself, without pages of mapped files) is sampled. A second child does the
same under a limit of 1.5 GiB on its data segment (RLIMIT_DATA), which counts all private writable
memory whether it is touched or not. With --texts the children also sketch every shard and exclude
duplicates, near-duplicates and rows that repeat usage; the texts are one short line each.

RLIMIT_DATA needs no rights. Where systemd manages memory by cgroup v2, a limit that counts the
page cache as well is set around the whole benchmark:

    systemd-run --scope -p MemoryMax=1536M -p MemorySwapMax=0 python benchmarks/scale.py
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from children import run_child
from planted import World

from compass_core.config import ClusteringConfig
from compass_core.pool import Pool, PoolShard
from compass_core.records import EXAMPLE_SCHEMA
from compass_core.selection.allocation import plan_allocation
from compass_core.selection.assignment import assign_clusters
from compass_core.selection.drawing import draw_examples, example_keys
from compass_core.selection.exclusion import exclude_rows
from compass_core.selection.gap import GapTable
from compass_core.selection.sketches import read_sketch, sketch_rows, write_sketch
from compass_core.selection.space import fit_space

MEBIBYTE = 2**20
LIMIT = 1536 * MEBIBYTE
CLAIM_MIB = 600
SEED, TARGET, N_LANGUAGES = 0, "swh_Latn", 40
N_USAGE, N_COVERAGE, N_CLUSTERS = 2_000, 4_000, 500
_WORDS = 4_096


def write_pool(folder: Path, n_rows: int, n_shards: int, *, texts: bool) -> None:
    """Write the shards, usage and coverage."""
    rng = np.random.default_rng(SEED)
    world = World(SEED)
    for number, part in enumerate(np.array_split(np.arange(n_rows), n_shards)):
        shard = folder / f"shard-{number:03d}"
        shard.mkdir()
        topics = world.write_pool(shard / "vectors.npy", len(part), rng)
        table = make_rows(part, topics, rng)
        pq.write_table(table, shard / "rows.parquet", row_group_size=16_384)
        if not texts:
            np.save(shard / "keys.npy", example_keys(table["id"].to_pylist()))
    for name, n, mix in (
        ("usage", N_USAGE, world.usage_mix),
        ("coverage", N_COVERAGE, world.pool_mix),
    ):
        vectors, topics = world.draw(n, mix, rng)
        np.save(folder / f"{name}.npy", vectors)
        table = make_rows(np.arange(n) + n_rows, topics, rng)
        pq.write_table(table, folder / f"{name}.parquet")


def make_rows(numbers: np.ndarray, topics: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Return rows of ``EXAMPLE_SCHEMA`` with prompts of 12 words, some repeated."""
    n = len(numbers)
    words = np.array([f"w{i:x}o{i * 7919 % 9973}" for i in range(_WORDS)])
    drawn = words[(rng.zipf(1.3, size=(n, 12)) + topics[:, None] * 31) % _WORDS]
    prompts = [" ".join(row) for row in drawn]
    languages = np.array([f"l{chr(97 + i // 26)}{chr(97 + i % 26)}_Latn" for i in range(40)])
    empty = pa.array([""] * n)
    nothing = pa.array([[]] * n, EXAMPLE_SCHEMA.field("history").type)
    columns = {
        "id": pa.array([f"row-{number}" for number in numbers]),
        "language": pa.array(languages[rng.integers(0, N_LANGUAGES, n)]),
        "prompt": pa.array(prompts),
        "response": pa.array([f"answer to {prompt[:40]}" for prompt in prompts]),
        "history": nothing,
        "choices": pa.array([[]] * n, EXAMPLE_SCHEMA.field("choices").type),
        "answer_index": pa.nulls(n, pa.int32()),
        "topic": empty,
        "parallel_id": empty,
        "source": empty,
        "licence": empty,
    }
    return pa.table(columns, schema=EXAMPLE_SCHEMA)


class Watch:
    """Seconds of each step."""

    def __init__(self) -> None:
        """Start with no step."""
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def done(self, step: str) -> None:
        """Note that `step` has ended."""
        now = time.perf_counter()
        self.seconds[step] = round(now - self._last, 2)
        self._last = now


def select(folder: Path, budget: int, *, texts: bool, balance: float) -> dict[str, object]:
    """Select from the pool in `folder`; return what happened."""
    shards = sorted(folder.glob("shard-*"))
    watch = Watch()
    if texts:
        for shard in shards:
            write_sketch(shard / "rows.parquet", shard / "sketch")
        watch.done("sketch")
    pool = Pool([PoolShard(shard / "rows.parquet", shard / "vectors.npy") for shard in shards])
    usage, coverage = (np.load(folder / f"{name}.npy") for name in ("usage", "coverage"))
    config = ClusteringConfig(n_clusters=(N_CLUSTERS,))
    space = fit_space(TARGET, usage, coverage, None, config, seed=SEED)
    watch.done("fit")
    ids, distances = assign_clusters(pool.vectors, space.clusters.centroids)
    watch.done("assign")
    available = distances <= space.radii[ids]
    n_allowed = pool.n_rows
    if texts:
        sketches = [read_sketch(shard / "sketch") for shard in shards]
        own = [sketch_rows(pq.read_table(folder / f"{n}.parquet")) for n in ("usage", "coverage")]
        allowed = exclude_rows(sketches, usage=own[0], coverage=own[1]).allowed
        n_allowed = int(allowed.sum())
        available &= allowed
        keys = np.concatenate([sketch.keys for sketch in sketches])
        watch.done("exclude")
    else:
        keys = np.concatenate([np.load(shard / "keys.npy", mmap_mode="r") for shard in shards])
    gap = GapTable.from_assignments(
        space.usage_ids, space.coverage_ids, ids, space.n_clusters, available=available
    )
    plan = plan_allocation(gap.usage_share, gap.coverage_count, gap.capacity, budget)
    rows = draw_examples(
        ids,
        distances,
        pool.languages,
        plan.counts,
        available,
        language_balance=balance,
        rng=np.random.default_rng(SEED),
        keys=keys,
    )
    watch.done("gap, allocate, draw")
    n_selected = pool.take(rows, ["id", "language"]).num_rows
    watch.done("read selected rows")
    return {
        "rows": pool.n_rows,
        "allowed": n_allowed,
        "selected": n_selected,
        "checksum": int(np.bitwise_xor.reduce(keys[rows])),
        "seconds": watch.seconds,
    }


def report(name: str, found: dict[str, object], peak: float, claim: str) -> None:
    """Print one child's result."""
    steps = ", ".join(f"{step} {seconds} s" for step, seconds in found["seconds"].items())
    print(
        f"{name}: {found['selected']:,d} of {found['rows']:,d} rows ({found['allowed']:,d} allowed)"
    )
    print(f"  {steps}")
    print(f"  peak RssAnon {peak:.0f} MiB{claim}")


def main() -> None:
    """Write the pool, run both children, clean up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--budget", type=int, default=20_000)
    parser.add_argument("--balance", type=float, default=0.5, help="selection.language_balance")
    parser.add_argument("--texts", action="store_true", help="also sketch and exclude")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        if arguments.limit:
            resource.setrlimit(resource.RLIMIT_DATA, (arguments.limit, arguments.limit))
        found = select(
            arguments.child, arguments.budget, texts=arguments.texts, balance=arguments.balance
        )
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        write_pool(folder, arguments.rows, arguments.shards, texts=arguments.texts)
        print(f"wrote {arguments.shards} shards in {time.perf_counter() - started:.0f} s")
        call = [__file__, "--child", name, "--budget", str(arguments.budget)]
        call += ["--balance", str(arguments.balance), *(["--texts"] if arguments.texts else [])]
        free, peak = run_child(*call)
        report("free", free, peak, f"  (claim: <= {CLAIM_MIB})")
        limited, peak = run_child(*call, "--limit", str(LIMIT))
        report("under RLIMIT_DATA 1.5 GiB", limited, peak, "")
        print(f"same selection: {free['checksum'] == limited['checksum']}")


if __name__ == "__main__":
    main()

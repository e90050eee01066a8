"""What orchestration costs at 42 languages: time against no-op stages, its share, and memory.

Every number comes from processes of their own on one local server that the benchmark starts, with
the settings that COMPASS gives a server; kinds of runs take turns. Run it from the repository:

    python benchmarks/orchestration.py --home /tmp/home42

The first time it adapts 42 languages for real (tiny budgets, about seven minutes on two cores);
with the same ``--home`` later runs find everything cached. ``--demo`` also runs the demonstration
from nothing and says which part of it is bookkeeping.

* floor: one task per language that calls six tasks which do nothing and are cached
* cached: `adapt-languages` over the same languages, all of whose stages are cached
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
STAGES = 6
FEW, MANY = 6, 42
STEPS = 12
"""Optimiser steps of the 42 adapters; they are only there to be found."""
FLOOR = f"floor, {MANY} x {STAGES} no-op stages"
CACHED, CACHED_FEW = f"cached, {MANY} languages", f"cached, {FEW} languages"
COLD, COLD_FEW = f"cold, {MANY} languages", f"cold, {FEW} languages"
DEMO = "demonstration, from nothing"
_EVERY_S = 0.1
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_SERVER = """
import os, sys
from tasks.settings import prepare_environment
prepare_environment()
os.execv(sys.executable, [sys.executable, "-m", "prefect", "server", "start", "--no-ui"])
"""
_BOOKS = {
    "check_registry",
    "settle_champion",
    "register_and_promote",
    "finish_run",
}
"""Tasks that tell MLflow, the catalogue and the report what the stages made."""


def recipe(n_languages: int, parallel: int, steps: int = 0) -> dict[str, Any]:
    """Return the demonstration for `n_languages` of the starter; 0 `steps` are its own."""
    import yaml

    from compass_core.starter import DEMO_LANGUAGES, STARTER_LANGUAGES

    values: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "starter.yaml").read_text())
    others = [c for c in STARTER_LANGUAGES if c not in DEMO_LANGUAGES and c != "eng_Latn"]
    values["languages"] = [*DEMO_LANGUAGES, *others][:n_languages]
    if steps:  # what a schedule runs: no baselines beside the adapter
        values["training"] |= {"min_steps": steps, "max_steps": steps}
        values["baselines"] = []
    values["execution"] |= {"max_parallel": parallel}
    return values


# -- in a process of its own: one run, and what it took
def child(kind: str, n_languages: int, parallel: int) -> None:
    """Run one flow and print its wall and CPU seconds, task runs and imports as JSON."""
    started = time.monotonic()
    from tasks.settings import prepare_environment

    prepare_environment()
    body = _floor(n_languages, parallel) if kind == "floor" else _adapt(n_languages, parallel, kind)
    imported, cpu = time.monotonic(), time.process_time()
    said = body()
    print(
        json.dumps(
            said
            | {
                "imports": imported - started,
                "wall": time.monotonic() - imported,
                "cpu": time.process_time() - cpu,
                "heavy": sorted(
                    {"torch", "transformers", "sentence_transformers"} & {*sys.modules}
                ),
            }
        )
    )


def _floor(n_languages: int, parallel: int) -> Callable[[], dict[str, Any]]:
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE, CacheKeyFnPolicy
    from prefect.task_runners import ThreadPoolTaskRunner

    policy = CacheKeyFnPolicy(
        cache_key_fn=lambda _context, given: "floor-{language}-{number}".format(**given)
    )

    @task(cache_policy=policy, persist_result=True, result_serializer="json")
    def stage(language: int, number: int) -> int:
        return number

    @task(cache_policy=NO_CACHE)
    def one(language: int) -> int:
        return sum(stage(language, number) for number in range(STAGES))

    @flow
    def floor() -> int:
        pool: ThreadPoolTaskRunner[int] = ThreadPoolTaskRunner(parallel)
        with pool as runner:
            futures = [runner.submit(one, {"language": k}) for k in range(n_languages)]
            return sum(future.result() for future in futures)

    def run() -> dict[str, Any]:
        floor()
        return {"task_runs": n_languages * (STAGES + 1)}

    return run


def _adapt(n_languages: int, parallel: int, kind: str) -> Callable[[], dict[str, Any]]:
    from compass_core.config import AdaptConfig
    from flows.adapt_languages import adapt_languages
    from tasks.compute import close_trainers

    steps = {} if kind == "demo" else {"steps": STEPS}
    config = AdaptConfig.model_validate(recipe(n_languages, parallel, **steps))
    watched = _Watched()

    def run() -> dict[str, Any]:
        begun = time.monotonic()
        state = adapt_languages(config, return_state=True)
        wall = time.monotonic() - begun
        close_trainers()
        if state.name != "Completed":
            raise SystemExit(f"{state.name}: {state.message}")
        return {"task_runs": watched.task_runs, **watched.shares(wall)}

    return run


class _Watched:
    """Where the threads of a run spend their time.

    Work is the body of every stage that is not cached, and what `promote` hands to a trainer. Books
    are the rest of the tasks that tell MLflow and write the report. What remains is orchestration:
    Prefect's engine, its events and what stands between the stages.
    """

    def __init__(self) -> None:
        from prefect import task_engine

        from flows import language_dag
        from tasks import promotion

        self.task_runs = 0
        self._adapting: list[tuple[float, float]] = []
        self._working: list[tuple[float, float]] = []
        self._telling: list[tuple[float, float]] = []
        self._checking: list[tuple[float, float]] = []
        # Names that those modules use, not ones that they offer.
        inside: Any = task_engine
        inside.call_with_parameters = self._body(inside.call_with_parameters)
        inside = promotion
        inside.run_job = self._timed(inside.run_job, self._checking)
        inside = language_dag  # helpers of the stages, which are no tasks
        inside.with_retries = self._timed(inside.with_retries, self._working)
        engine = task_engine.SyncTaskRunEngine
        engine.begin_run = self._counted(engine.begin_run)  # type: ignore[method-assign]

    def _counted(self, plain: Any) -> Any:
        def begin_run(engine: Any) -> None:
            self.task_runs += 1
            plain(engine)

        return begin_run

    def _timed(self, plain: Any, into: list[tuple[float, float]]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.monotonic()
            try:
                return plain(*args, **kwargs)
            finally:
                into.append((begun, time.monotonic()))

        return call

    def _body(self, plain: Any) -> Any:
        def call(function: Any, parameters: Any) -> Any:
            name = function.__name__
            if name == "adapt_one":
                return self._timed(plain, self._adapting)(function, parameters)
            if name in _BOOKS:
                return self._timed(plain, self._telling)(function, parameters)
            return self._timed(plain, self._working)(function, parameters)

        return call

    def shares(self, wall: float) -> dict[str, float]:
        """Return the shares of orchestration and books in the seconds that the threads had."""
        lines = _sum(self._adapting)
        at_once = max(end for _, end in self._adapting) - min(begun for begun, _ in self._adapting)
        had = wall - at_once + lines
        books = _sum(self._telling) - _sum(self._checking)
        work = _sum(self._working) + _sum(self._checking)
        return {"orchestration": (had - work - books) / had, "books": books / had}


def _sum(spans: list[tuple[float, float]]) -> float:
    return sum(end - begun for begun, end in spans)


# -- the parent: a server, children in turns, a table
@contextlib.contextmanager
def local_server() -> Iterator[str]:
    """Start a Prefect server with the settings of COMPASS on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        own = {"COMPASS_HOME": folder, "PREFECT_SERVER_API_PORT": str(port)}
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            cwd=ROOT,
            env=_clean_environment() | own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield _wait_for(f"http://127.0.0.1:{port}/api", process)
        finally:
            process.terminate()
            process.wait()


def _clean_environment() -> dict[str, str]:
    theirs = ("PREFECT_", "MLFLOW_", "COMPASS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> str:
    while process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health") as answer:
            if answer.status == HTTPStatus.OK:
                return url
        time.sleep(0.2)
    raise SystemExit("the Prefect server did not start")


def run_child(kind: str, n_languages: int, parallel: int, home: Path, url: str) -> dict[str, Any]:
    """Run one kind in a process; return what it printed, its seconds and its peak memory."""
    environment = _clean_environment() | {"COMPASS_HOME": str(home), "PREFECT_API_URL": url}
    command = [sys.executable, __file__, "--child", kind, str(n_languages), str(parallel)]
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as logs:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=logs)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(_pss_kib(pid) for pid in _tree(process.pid)))
            time.sleep(_EVERY_S)
        seconds = time.monotonic() - begun
        said.seek(0)
        logs.seek(0)
        printed, logged = said.read(), logs.read()
    if process.returncode:
        raise SystemExit(f"{kind} over {n_languages} languages failed:\n{logged[-2000:]}")
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found | {"process": seconds, "pss": peak / 1024}


def _tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
    return found


def _pss_kib(pid: int) -> int:
    """Return what a process holds, shared pages divided among their users, in KiB."""
    with contextlib.suppress(OSError):
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
        return int(found[1]) if found else 0
    return 0


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(run[name] for run in runs))


def report(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Print the tables."""
    titles = ("flow, s", "CPU, s", "command, s", "task runs", "PSS, MiB")
    print("\n" + " " * 30 + "".join(f"{title:>12}" for title in titles))
    for name, found in runs.items():
        values = [_median(found, value) for value in ("wall", "cpu", "process", "task_runs", "pss")]
        print(f"{name:30}" + "{:12.2f}{:12.2f}{:12.2f}{:12.0f}{:12.0f}".format(*values))
    if CACHED in runs:
        _report_cached(runs[FLOOR], runs[CACHED], _median(runs[CACHED_FEW], "pss"))
    if COLD in runs and COLD_FEW in runs:
        ratio = _median(runs[COLD], "pss") / _median(runs[COLD_FEW], "pss")
        print(f"memory at {MANY} / at {FEW} languages, cold: {ratio:.2f}")
    if DEMO in runs:
        orchestration, books = (runs[DEMO][0][name] for name in ("orchestration", "books"))
        print(
            f"of the demonstration: orchestration {orchestration:.1%}, registry and report", end=""
        )
        print(f" {books:.1%}")


def _report_cached(
    floor: list[dict[str, Any]], cached: list[dict[str, Any]], pss_few: float
) -> None:
    ratios = [a["wall"] / b["wall"] for a, b in zip(cached, floor, strict=True)]
    wall = _median(cached, "wall")
    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
    print(f"\ncached / floor: {statistics.median(ratios):.1f} ({spread})")
    print(f"per language and stage ({MANY} x {STAGES}): {wall / (MANY * STAGES):.3f} s")
    print(f"memory at {MANY} / at {FEW} languages, cached: {_median(cached, 'pss') / pss_few:.2f}")
    heavy = sorted({name for run in cached for name in run["heavy"]})
    print(f"heavy libraries imported by a cached run: {', '.join(heavy) or 'none'}")


def measure(home: Path, repetitions: int, parallel: int, *, cold: bool, demo: bool) -> None:
    """Run every kind in turns and print the tables."""
    runs: dict[str, list[dict[str, Any]]] = {}

    def go(name: str, kind: str, n_languages: int, where: Path, at_once: int = parallel) -> None:
        found = run_child(kind, n_languages, at_once, where, url)
        print(f"{name}: {found['wall']:.2f} s, {found['pss']:.0f} MiB", flush=True)
        runs.setdefault(name, []).append(found)

    with local_server() as url, tempfile.TemporaryDirectory() as empty:
        if cold:
            go(COLD_FEW, "adapt", FEW, Path(empty) / "few")
            go(COLD, "adapt", MANY, Path(empty) / "many")
            home = Path(empty) / "many"
        elif repetitions:
            run_child("adapt", MANY, parallel, home, url)
        for _ in range(repetitions):
            go(FLOOR, "floor", MANY, home)
            go(CACHED, "adapt", MANY, home)
            go(CACHED_FEW, "adapt", FEW, home)
        if demo:
            go(DEMO, "demo", FEW, Path(empty) / "demo", 2)
    report(runs)


def main() -> None:
    """Measure, or be a child of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path("/tmp/compass-42"))
    parser.add_argument("--repetitions", type=int, default=3, help="of cached runs; may be 0")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--cold", action="store_true", help="start from nothing, for the memory")
    parser.add_argument("--demo", action="store_true", help="also the demonstration from nothing")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        kind, n_languages, parallel = given.child
        child(kind, int(n_languages), int(parallel))
        return
    measure(given.home, given.repetitions, given.parallel, cold=given.cold, demo=given.demo)


if __name__ == "__main__":
    main()

"""What each engine costs: its start, and every language more, on the same cached languages.

Every run is a process of its own (deployments: and its worker's) on one local server; engines take
turns. All stages are cached, so what is left is the engine's. Run it from the repository:

    python benchmarks/engines.py --home /tmp/home42

The home is that of `benchmarks/orchestration.py`; where it is empty, the languages are adapted for
real first (tiny budgets).

* local: threads of the run's process
* dask, ray: a cluster of two processes, started for the run and stopped after it
* deployments: one run of the deployment adapt-language per language, two at once, on one worker
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from orchestration import ROOT, STEPS, _clean_environment, local_server, recipe

FEW, MANY = 2, 8
AT_ONCE = 2
ENGINES = ("local", "dask", "ray", "deployments")
POOL = "bench"
_WORKER_SECONDS = 15


def config(engine: str, n_languages: int) -> dict[str, Any]:
    """Return the cached languages on an engine."""
    values = recipe(n_languages, AT_ONCE, STEPS)
    if engine == "deployments":
        values["execution"] |= {"fan_out": engine}
    else:
        values["execution"] |= {"task_runner": engine}
    return values


def child(engine: str, n_languages: int) -> None:
    """Run the flow once and print its seconds."""
    from tasks.settings import prepare_environment

    prepare_environment()
    from compass_core.config import AdaptConfig
    from flows.adapt_languages import adapt_languages
    from tasks.compute import close_trainers

    wanted = AdaptConfig.model_validate(config(engine, n_languages))
    begun = time.monotonic()
    state = adapt_languages(wanted, return_state=True)
    wall = time.monotonic() - begun
    close_trainers()
    if state.name != "Completed":
        raise SystemExit(f"{state.name}: {state.message}")
    print(json.dumps({"wall": wall}))


def run_child(engine: str, n_languages: int, env: dict[str, str]) -> float:
    """Run the flow in a process of its own; return its seconds."""
    command = [sys.executable, __file__, "--child", engine, str(n_languages)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["wall"])


@contextlib.contextmanager
def worker(env: dict[str, str], folder: Path) -> Iterator[None]:
    """Deploy adapt-language and serve its pool."""
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(config("local", FEW)), "utf-8")
    deploy = ["flows.cli", "deploy", str(path), "--pool", POOL, "--no-schedule"]
    subprocess.run([sys.executable, "-m", *deploy], env=env, check=True, cwd=ROOT)
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL],
        env=env,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(_WORKER_SECONDS)
        yield
    finally:
        process.terminate()
        process.wait()


def report(seconds: dict[str, dict[int, list[float]]]) -> None:
    """Print the table."""
    print(f"\n{'':14}{FEW:>6} languages{MANY:>6} languages   per language   the rest")
    for engine, found in seconds.items():
        few, many = (statistics.median(found[n]) for n in (FEW, MANY))
        each = (many - few) / (MANY - FEW)
        print(f"{engine:14}{few:14.1f} s{many:14.1f} s{each:13.2f} s{few - FEW * each:9.1f} s")
    local = seconds["local"]
    for engine in seconds:
        pairs = zip(seconds[engine][MANY], local[MANY], strict=True)
        ratios = [a / b for a, b in pairs]
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        print(f"{engine} / local, {MANY} languages: {statistics.median(ratios):.1f} ({spread})")


def main() -> None:
    """Parse the arguments; a child runs one flow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("/tmp/compass-engines"))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("ENGINE", "LANGUAGES"))
    given = parser.parse_args()
    if given.child:
        sys.path.insert(0, str(ROOT))
        child(given.child[0], int(given.child[1]))
        return
    seconds: dict[str, dict[int, list[float]]] = {e: {FEW: [], MANY: []} for e in ENGINES}
    with local_server() as url, tempfile.TemporaryDirectory() as folder:
        env = _clean_environment() | {
            "COMPASS_HOME": str(given.home.resolve()),
            "PREFECT_API_URL": url,
            "PYTHONPATH": str(ROOT),
        }
        run_child("local", MANY, env)  # everything is cached from here on
        with worker(env, Path(folder)):
            for _ in range(given.repetitions):
                for engine in ENGINES:
                    for n in (FEW, MANY):
                        seconds[engine][n].append(run_child(engine, n, env))
                        print(f"{engine}, {n}: {seconds[engine][n][-1]:.1f} s", flush=True)
    report(seconds)


if __name__ == "__main__":
    main()

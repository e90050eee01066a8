"""One language that fails at every stage in turn: how many results do the others leave?

    python benchmarks/isolation.py --home /tmp/home42

Adapts 42 languages of the starter (the first time for real, some minutes; afterwards everything is
cached), then runs them again once per stage with one language poisoned there, on one local server.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
N_LANGUAGES = 42
POISONED = "swh_Latn"
STAGES = ("usage", "coverage", "test", "check", "embed", "cluster", "gap-score", "sample")
STAGES += ("evaluate", "adapter-train", "locate", "map", "settle")


_LOGS = ("PREFECT_LOGGING_LEVEL", "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL")
_LOGS += ("PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL",)


def child(parallel: int) -> None:
    """Run the flow once per stage in this process and print a line each."""
    from tasks.settings import prepare_environment

    prepare_environment()
    from orchestration import STEPS, recipe

    from compass_core.config import AdaptConfig
    from compass_core.faults import FAULT
    from flows.adapt_languages import adapt_languages
    from tasks.compute import close_trainers
    from tasks.reporting import failed_languages, last_run_id, read_run

    config = AdaptConfig.model_validate(recipe(N_LANGUAGES, parallel, STEPS))
    print(f"{'poisoned at':<16}{'results':>8}{'failed':>8}{'state':>24}{'seconds':>9}")
    for stage in STAGES:
        os.environ[FAULT] = f"{stage}.start@{POISONED}:raise"
        begun = time.monotonic()
        state = adapt_languages(config, return_state=True)
        seconds = time.monotonic() - begun
        record = read_run(str(last_run_id()))
        failed = failed_languages(record)
        n_results = len(record["languages"]) - len(failed)
        print(
            f"{stage:<16}{n_results:>8}{len(failed):>8}{state.name:>24}{seconds:>9.1f}", flush=True
        )
        if list(failed) != [POISONED] or n_results != N_LANGUAGES - 1:
            raise SystemExit(f"{stage}: {failed}")
    close_trainers()


def main() -> None:
    """Start a server, adapt the languages where needed, and poison one stage after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.parallel)
        return
    from orchestration import local_server, run_child

    with local_server() as url:
        run_child("adapt", N_LANGUAGES, given.parallel, given.home.resolve(), url)
        own = {"COMPASS_HOME": str(given.home.resolve()), "PREFECT_API_URL": url}
        environment = os.environ | own | dict.fromkeys(_LOGS, "CRITICAL")
        command = [sys.executable, __file__, "--home", str(given.home), "--child"]
        command += ["--parallel", str(given.parallel)]
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()

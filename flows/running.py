"""Run flows from the command line: load, follow, summarise, exit code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compass_core.config import AdaptConfig, ContinualStudyConfig, StudyConfig
from compass_core.config_files import load_config
from compass_core.errors import ConfigError, InputError, ResourceError
from flows.terminal import ERR, OUT, follow
from tasks.reporting import last_run_id, read_run
from tasks.settings import runs_folder

_FIXED_STEPS = 5
"""Steps of a language besides its arms: ingest, embed, cluster, gap, map."""
_STEPS_PER_ARM = 3
_STREAM_STEPS, _SHIFT_STEPS = 12, 11
"""Steps of a sequence of shifts and of one shift, besides training and scoring each arm."""
_LAST_STEPS = 3
"""Zero-shot, placing the test items, decision."""


def shipped_config(name: str) -> Path:
    """Return the path of a configuration that comes with COMPASS."""
    path = Path(__file__).resolve().parents[1] / "configs" / name
    if not path.is_file():
        raise ConfigError(
            f"{name} is not beside this installation ({path.parent}). Clone the repository and "
            "install it with `python3 run.py setup`."
        )
    return path


def run_adapt(path: Path, overrides: Sequence[str]) -> int:
    """Run `adapt-languages` and return the exit code."""
    config = load_config(path, overrides, AdaptConfig)
    from flows.adapt_languages import adapt_languages

    arms = 1 + len(set(config.baselines) - {config.selection.strategy})
    n_steps = _FIXED_STEPS + arms
    if not config.execution.dry_run:
        n_steps += (_STEPS_PER_ARM - 1) * arms + _LAST_STEPS
    return _run(adapt_languages, config, n_steps)


def run_study(path: Path, overrides: Sequence[str]) -> int:
    """Run `compare-strategies` and return the exit code."""
    config = load_config(path, overrides, StudyConfig)
    from flows.compare_strategies import compare_strategies

    per_seed = _FIXED_STEPS + _STEPS_PER_ARM * len(config.strategies) + _LAST_STEPS
    per_seed -= 2  # neither map nor decision
    return _run(compare_strategies, config, per_seed * len(config.seeds))


def run_continual(path: Path, overrides: Sequence[str]) -> int:
    """Run `continual-study` and return the exit code."""
    config = load_config(path, overrides, ContinualStudyConfig)
    from flows.continual_study import continual_study

    trained = [arm for arm in config.arms if arm != "frozen"]
    per_seed = _STREAM_STEPS + config.n_shifts * (_SHIFT_STEPS + 2 * len(trained))
    return _run(continual_study, config, per_seed * len(config.seeds))


def _run(flow: Any, config: AdaptConfig, n_steps: int) -> int:
    from flows.calling import call_flow
    from tasks.compute import close_trainers
    from tasks.ingestion import check_sources
    from tasks.interruption import allow_work

    allow_work()
    before = last_run_id()
    where = os.environ.get("PREFECT_API_URL") or "a temporary local server"
    try:
        check_sources.fn(config, str(Path.cwd()))  # a missing file is told before a server starts
        OUT.print(f"{flow.name} for {len(config.languages)} languages; Prefect: {where}")
        with follow(config.languages, n_steps):
            state = call_flow(
                lambda: flow(config, return_state=True),
                is_written=lambda: last_run_id() not in (None, before),
            )
    finally:
        close_trainers()
    run_id = last_run_id()
    if run_id is None or run_id == before:
        failure = state.result(raise_on_failure=False)
        if isinstance(failure, BaseException):
            raise failure
        ERR.print(f"The flow ended as {state.name}: {state.message}", markup=False)
        return 1
    OUT.print(
        (runs_folder() / run_id / "summary.txt").read_text(encoding="utf-8"),
        markup=False,
        soft_wrap=True,
    )
    return exit_code(read_run(run_id))


def exit_code(record: dict[str, Any]) -> int:
    """Return 0 when every language is done, 2 when all failed by wrong input, else 1."""
    outcomes = list(record["languages"].values())
    failed = [outcome for outcome in outcomes if outcome["status"] == "failed"]
    if not failed:
        return 0
    wrong = _names(InputError) - _names(ResourceError)
    wrong_input = all(outcome["error_kind"] in wrong for outcome in failed)
    return 2 if wrong_input and len(failed) == len(outcomes) else 1


def _names(kind: type[BaseException]) -> set[str]:
    return {kind.__name__}.union(*(_names(child) for child in kind.__subclasses__()))

"""Update one language from the command line, and make up a log to try it with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from compass_core.config import AdaptConfig
from compass_core.config_files import load_config
from compass_core.errors import ConfigError
from compass_core.languages import canonical_language, language_name
from flows.terminal import ERR, OUT, follow
from tasks.reporting import last_run_of
from tasks.settings import runs_folder

_STEPS = 24
"""Steps of an update: corpora, embeddings, data, training, scores, decision."""


def run_update(path: Path, overrides: Sequence[str], language: str, event: str) -> int:
    """Run `update-adapter` and return the exit code."""
    config = load_config(path, overrides, AdaptConfig)
    code = canonical_language(language)
    if code not in config.languages:
        known = ", ".join(config.languages)
        raise ConfigError(f"{language_name(code)} ({code}) is not among `languages`: {known}.")
    from flows.calling import call_flow
    from flows.update_adapter import update_adapter
    from tasks.compute import close_trainers
    from tasks.interruption import allow_work

    allow_work()
    before = last_run_of("update-adapter", code)
    where = os.environ.get("PREFECT_API_URL") or "a temporary local server"
    OUT.print(f"update-adapter for {language_name(code)} ({code}); Prefect: {where}", markup=False)
    try:
        with follow((code,), _STEPS):
            state = call_flow(
                lambda: update_adapter(code, event, config=config, return_state=True),
                is_written=lambda: last_run_of("update-adapter", code) not in (None, before),
            )
    finally:
        close_trainers()
    failure = state.result(raise_on_failure=False)
    if isinstance(failure, BaseException):
        raise failure
    run_id = last_run_of("update-adapter", code)
    if run_id is None or run_id == before:
        (OUT if state.is_completed() else ERR).print(str(state.message), markup=False)
        return 0 if state.is_completed() else 1
    text = (runs_folder() / run_id / "summary.txt").read_text(encoding="utf-8")
    OUT.print(text, markup=False, soft_wrap=True)
    return 0


def write_log(path: Path, overrides: Sequence[str], folder: Path, plan: Mapping[str, Any]) -> None:
    """Write a made-up usage log of the demonstration corpus, one file per language."""
    from compass_core.config import StarterData
    from compass_core.starter.usage_log import LogPlan, simulate_log
    from compass_core.storage import write_text

    config = load_config(path, overrides, AdaptConfig)
    past = datetime.now(UTC).date() - timedelta(days=plan["days"])
    try:
        day = date.fromisoformat(plan["start"]) if plan["start"] else past
    except ValueError:
        raise ConfigError(f"--start {plan['start']!r} is no day; write 2026-01-05.") from None
    if not isinstance(config.data, StarterData):
        raise ConfigError("A log can only be made up for the demonstration corpus (data: starter).")
    for language in config.languages:
        records = simulate_log(
            language,
            config.data,
            LogPlan(**{**plan, "start": datetime.combine(day, time(), UTC)}),
            seed=config.seed,
        )
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        file = folder / f"{language}.jsonl"
        write_text(file, "\n".join(lines) + "\n")
        OUT.print(f"{file}: {len(lines)} prompts", markup=False, soft_wrap=True)

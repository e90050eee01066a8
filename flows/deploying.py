"""Deploy from the command line: deployments with a configuration, then the automations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compass_core.config import AdaptConfig
from compass_core.config_files import load_config
from flows.terminal import OUT
from tasks.deployments import (
    apply_automations,
    apply_deployments,
    prepare_deployments,
    read_automations,
)
from tasks.events import server_address


def deploy(
    path: Path, overrides: Sequence[str], *, pool: str, scheduled: bool, only: Sequence[str] = ()
) -> None:
    """Apply the deployments with this configuration, and what starts an update after a drift."""
    config = load_config(path, overrides, AdaptConfig)
    prepared = prepare_deployments(
        config, Path.cwd(), pool=pool, scheduled=scheduled, names=tuple(only)
    )
    apply_deployments(prepared)
    automations = apply_automations(read_automations())
    OUT.print(f"Applied to {server_address()}:", highlight=False)
    for deployment in prepared["deployments"]:
        schedules = [
            f"{s['cron']} {s.get('timezone', 'UTC')}{'' if s['active'] else ' (off)'}"
            for s in deployment.get("schedules", ())
        ]
        OUT.print(f"  deployment  {deployment['name']:<20} {'; '.join(schedules)}", markup=False)
    for name, what in automations.items():
        OUT.print(f"  automation  {name:<20} {what}", markup=False)
    OUT.print(f"Runs start on a worker: prefect worker start --pool {pool}", markup=False)

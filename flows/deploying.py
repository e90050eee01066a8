"""Deploy from the command line: deployments with a configuration, then the automations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import get_client

from compass_core.config import AdaptConfig
from compass_core.config_files import load_config
from compass_core.errors import ConfigError, TransientError
from flows.terminal import OUT
from tasks.automations import NO_BLOCK, apply_automations, prepare_automations
from tasks.deployment_checks import check_deployment_files, check_name, check_time_zone
from tasks.deployments import FOLDER, Wanted, apply_deployments, next_run, prepare_deployments
from tasks.events import server_address
from tasks.work_pools import read_pool_kind


@dataclass(frozen=True)
class Options:
    """What the command line can say beside the configuration.

    Attributes:
        pool: Name of the work pool.
        pool_type: ``process``, ``docker`` or ``kubernetes``.
        image: Container image; empty: as in the pool's file.
        name: Name of all deployments; empty: each like its flow.
        notify: Notification block ``type/name``, ``none``, or empty: as it is.
        timezone: Of the schedules made for people; empty: as in the file.
        scheduled: Whether schedules are on.
        replace: Whether another configuration may be overwritten.
    """

    pool: str = "compass"
    pool_type: str = "process"
    image: str = ""
    name: str = ""
    notify: str = ""
    timezone: str = ""
    scheduled: bool = True
    replace: bool = False


def deploy(path: Path, overrides: Sequence[str], options: Options, *, check: bool = False) -> None:
    """Apply the deployments with this configuration and the automations; `check`: only look."""
    config = load_config(path, overrides, AdaptConfig)
    check_deployment_files(FOLDER)
    check_name(options.name)
    check_time_zone(options.timezone)
    kind = read_pool_kind(
        FOLDER, options.pool_type, Path.cwd(), image=options.image, name=options.name
    )
    wanted = Wanted(config, options.pool, kind, options.name, options.scheduled, options.timezone)
    prepared = prepare_deployments(wanted)
    if check:
        OUT.print(f"{FOLDER} and {path} can be applied.", markup=False, soft_wrap=True)
        _tell_deployments(prepared)
        return
    if server_address() is None:
        raise ConfigError(
            "No Prefect server is configured, so there is nothing to deploy to. Start one "
            "(`prefect server start`) and set PREFECT_API_URL=http://127.0.0.1:4200/api.",
            code="E42",
        )
    try:
        with get_client(sync_client=True) as client:
            done = apply_deployments(client, prepared, wanted, replace=options.replace)
            automations, untouched = prepare_automations(client, wanted, notify=options.notify)
            done |= apply_automations(client, automations, untouched, wanted)
            known = {automation.name for automation in client.read_automations()}
    except httpx.HTTPError as error:
        raise TransientError(f"{server_address()} did not answer: {error}") from error
    OUT.print(f"Applied to {server_address()}:", highlight=False)
    _tell_deployments(prepared)
    for name in untouched:
        done |= {name: "unchanged"} if name in known else {}
    _tell_rest(
        done,
        wanted,
        notified=any(name in known for name in untouched) or (options.notify not in ("", NO_BLOCK)),
    )


def _tell_deployments(prepared: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    for deployment in prepared["deployments"]:
        flow = deployment["entrypoint"].rpartition(".")[2].replace("_", "-")
        told = []
        for schedule in deployment.get("schedules", ()):
            what = f"{schedule['slug']} {schedule['cron']} {schedule['timezone']}"
            when = next_run(schedule, now).strftime("next %Y-%m-%d %H:%M %Z")
            told.append(f"{what}, {when if schedule['active'] else 'off'}")
        line = f"  {flow + '/' + deployment['name']:<42} {'; '.join(told)}"
        OUT.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)


def _tell_rest(done: dict[str, str], wanted: Wanted, *, notified: bool) -> None:
    for name, what in done.items():
        place = name if " " in name else f"automation {name}"
        OUT.print(f"  {place:<42} {what}", markup=False, highlight=False, soft_wrap=True)
    if not notified:
        OUT.print(
            "Nobody is told of failed runs: make a notification block in the interface and repeat "
            "with --notify TYPE/NAME (for example slack-webhook/ops).",
            markup=False,
            soft_wrap=True,
        )
    OUT.print(
        f"Runs start on a worker: prefect worker start --pool {wanted.pool} "
        f"--type {wanted.kind.type}",
        markup=False,
        soft_wrap=True,
    )

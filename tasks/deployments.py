"""Deployments on a Prefect server, from the files in ``deployments/``.

Everything is applied by name, so applying twice changes nothing: Prefect replaces a deployment of
the same name itself, and what an earlier release left behind is removed here. Two configurations
live beside each other under two names; one never takes the place of another unasked.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import construct_schedule
from prefect.server.schemas.schedules import SCHEDULE_TYPES
from pydantic import TypeAdapter, ValidationError

from compass_core.config import AdaptConfig, ContinualStudyConfig, StudyConfig
from compass_core.errors import ConfigError
from compass_core.version import __version__
from tasks.deployment_checks import TAG, read_document
from tasks.work_pools import PoolKind, ensure_pool

FOLDER = Path(__file__).resolve().parents[1] / "deployments"
_FOR_PEOPLE = ("adapt-languages",)
"""Deployments whose schedule follows `--timezone`; the monitor's follows its windows, in UTC."""
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Wanted:
    """What is to be deployed, and how.

    Attributes:
        config: Default of every deployment that can use it.
        pool: Name of the work pool.
        kind: What its runs get.
        name: Name of all deployments; empty: each is called like its flow.
        scheduled: Whether schedules are on.
        timezone: Of the schedules that are made for people; empty: as in the file.
    """

    config: AdaptConfig
    pool: str
    kind: PoolKind
    name: str = ""
    scheduled: bool = True
    timezone: str = ""

    def deployment_name(self, flow: str) -> str:
        """Return what the deployment of a flow is called."""
        return self.name or flow


def read_deployments(folder: Path = FOLDER) -> dict[str, Any]:
    """Return ``prefect.yaml`` as plain values."""
    return read_document(folder / "prefect.yaml").values


def prepare_deployments(
    wanted: Wanted, *, only: tuple[str, ...] = (), folder: Path = FOLDER
) -> dict[str, Any]:
    """Return ``prefect.yaml`` for a configuration; `only` names flows, empty means all."""
    values = read_deployments(folder)
    values["pull"] = [
        {"prefect.deployments.steps.set_working_directory": {"directory": wanted.kind.folder}}
    ]
    listed = [d for d in values["deployments"] if not only or d["name"] in only]
    for deployment in listed:
        flow = deployment["name"]
        deployment["name"] = wanted.deployment_name(flow)
        deployment["version"] = __version__
        deployment["tags"] = [*deployment["tags"], f"project-{wanted.config.project}"]
        deployment["work_pool"] = {
            "name": wanted.pool,
            "job_variables": dict(wanted.kind.job_variables),
        }
        deployment["parameters"] = default_parameters(flow, wanted)
        if flow == "update-adapter":
            at_once = wanted.config.execution.max_parallel
            deployment["concurrency_limit"] = {**deployment["concurrency_limit"], "limit": at_once}
        for schedule in deployment.get("schedules", ()):
            schedule["active"] = wanted.scheduled
            if wanted.timezone and flow in _FOR_PEOPLE:
                schedule["timezone"] = wanted.timezone
    return values | {"deployments": listed}


def default_parameters(flow: str, wanted: Wanted) -> dict[str, Any]:
    """Return the configuration as the flow takes it; what only a person can say stays open."""
    values = wanted.config.model_dump(mode="json")
    if wanted.name:
        values["execution"]["language_deployment"] = f"adapt-language/{wanted.name}"
    if flow == "adapt-language":
        del values["languages"]
    elif flow == "compare-strategies":
        values = StudyConfig.model_validate(values).model_dump(mode="json")
    elif flow == "continual-study":
        try:
            values = ContinualStudyConfig.model_validate(values).model_dump(mode="json")
        except ValidationError:  # only the embedded corpus has a sequence of shifts
            return {}
    return {"config": values}


def next_run(schedule: Mapping[str, Any], now: datetime) -> datetime:
    """Return when a schedule of the file starts its next run, in its own time zone."""
    timing = {key: schedule[key] for key in ("cron", "interval", "rrule") if key in schedule}
    wanted = construct_schedule(**timing, timezone=schedule["timezone"])
    server_side: TypeAdapter[SCHEDULE_TYPES] = TypeAdapter(SCHEDULE_TYPES)
    timed = server_side.validate_python(wanted.model_dump())
    first: datetime = asyncio.run(timed.get_dates(1, start=now))[0]
    return first.astimezone(ZoneInfo(schedule["timezone"]))


def apply_deployments(
    client: SyncPrefectClient, values: Mapping[str, Any], wanted: Wanted, *, replace: bool = False
) -> dict[str, str]:
    """Apply a prepared ``prefect.yaml`` with Prefect's own command.

    Returns:
        What became of the pool (``created``, ``known``) and of deployments of earlier releases
        (``removed``), by name.

    Raises:
        ConfigError: the name belongs to another configuration, the pool is of another type, or
            Prefect refuses the file.
    """
    present = _present(client)
    if not replace:
        refuse_foreign(present, wanted)
    done = {f"pool {wanted.pool}": ensure_pool(client, wanted.pool, wanted.kind)}
    with tempfile.TemporaryDirectory(prefix="compass-deploy-") as folder:
        path = Path(folder) / "prefect.yaml"
        path.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
        _prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(path))
    return done | _remove_orphans(client, present, wanted)


def _present(client: SyncPrefectClient) -> list[tuple[str, DeploymentResponse]]:
    """Return every deployment of COMPASS on the server, with its flow."""
    found: list[DeploymentResponse] = []
    wanted = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    while page := client.read_deployments(deployment_filter=wanted, limit=200, offset=len(found)):
        found += page
    return [(client.read_flow(deployment.flow_id).name, deployment) for deployment in found]


def refuse_foreign(present: list[tuple[str, DeploymentResponse]], wanted: Wanted) -> None:
    """Let nobody overwrite what belongs to another configuration.

    Raises:
        ConfigError: the name, or the project, is somebody else's.
    """
    project = wanted.config.project
    home = wanted.kind.job_variables["env"]["COMPASS_HOME"]
    for flow, deployment in present:
        owner, owners_home = _owner(deployment)
        if not owner:
            continue
        place = f"{flow}/{deployment.name}"
        if deployment.name == wanted.deployment_name(flow):
            if (owner, owners_home) != (project, home):
                raise ConfigError(
                    f"The deployment {place} on this server belongs to the project {owner!r} with "
                    f"COMPASS_HOME={owners_home}; this is the project {project!r} with "
                    f"COMPASS_HOME={home}. Put it beside the other one (--name {project}), or in "
                    "its place (--replace)."
                )
        elif owner == project:
            raise ConfigError(
                f"The project {project!r} is on this server already, as {place}; a drift would "
                "start both updates. Give this configuration another `project`, or deploy under "
                f"the same name ({_advice(flow, deployment.name)})."
            )


def _advice(flow: str, name: str) -> str:
    return "without --name" if name == flow else f"--name {name}"


def _owner(deployment: DeploymentResponse) -> tuple[str, str]:
    """Return project and home of a deployment; empty where it has no configuration."""
    config = (deployment.parameters or {}).get("config") or {}
    environment = (deployment.job_variables or {}).get("env") or {}
    return str(config.get("project", "")), str(environment.get("COMPASS_HOME", ""))


def _remove_orphans(
    client: SyncPrefectClient, present: list[tuple[str, DeploymentResponse]], wanted: Wanted
) -> dict[str, str]:
    """Remove deployments of flows that this release does not have any more."""
    flows = {deployment["name"] for deployment in read_deployments()["deployments"]}
    removed = {}
    for flow, deployment in present:
        if flow not in flows and deployment.name == wanted.deployment_name(flow):
            client.delete_deployment(deployment.id)
            removed[f"deployment {flow}/{deployment.name}"] = "removed"
    return removed


def _prefect(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
        cwd=FOLDER.parent,
        env={**os.environ, "PREFECT_LOGGING_LEVEL": "ERROR", "COLUMNS": "200"},
    )
    output = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode:
        raise ConfigError(f"`prefect {' '.join(arguments)}` failed:\n{output[-2000:]}")

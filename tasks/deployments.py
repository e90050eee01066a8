"""Deployments and automations on a Prefect server, from the files in ``deployments/``.

Everything is applied by name, so applying twice changes nothing: Prefect replaces a deployment of
the same name itself, an automation is looked up here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from compass_core.config import AdaptConfig
from compass_core.errors import ConfigError, TransientError
from tasks.events import server_address
from tasks.settings import compass_home

FOLDER = Path(__file__).resolve().parents[1] / "deployments"
CONFIGURED = ("adapt-languages", "monitor-drift", "update-adapter")
"""Deployments that a configuration of several languages is the default of."""
SCHEDULED = ("monitor-drift",)
"""Deployments whose schedule `compass deploy` turns on: they make do with that configuration."""
_TIMEOUT_SECONDS = 300


def read_deployments(folder: Path = FOLDER) -> dict[str, Any]:
    """Return ``prefect.yaml`` as plain values.

    Raises:
        ConfigError: the file is not beside this installation.
    """
    return _read(folder / "prefect.yaml")


def read_automations(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return the automations of ``automations.yaml`` as plain values."""
    found: list[dict[str, Any]] = _read(folder / "automations.yaml")["automations"]
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path.name} is not beside this installation ({path.parent}). Clone the repository "
            "and install it with `python3 run.py setup`."
        ) from None
    return values


def prepare_deployments(
    config: AdaptConfig, base_folder: Path, *, pool: str, scheduled: bool, names: tuple[str, ...]
) -> dict[str, Any]:
    """Return ``prefect.yaml`` for this configuration.

    Args:
        config: Default of the deployments in `CONFIGURED`.
        base_folder: Where relative paths of the configuration start from; runs start there.
        pool: Work pool.
        scheduled: Whether the schedules of `SCHEDULED` are on.
        names: Deployments to apply; empty means all.
    """
    values = read_deployments()
    values["pull"] = [
        {"prefect.deployments.steps.set_working_directory": {"directory": str(base_folder)}}
    ]
    listed = [d for d in values["deployments"] if not names or d["name"] in names]
    for deployment in listed:
        deployment["work_pool"] = dict(deployment["work_pool"]) | {
            "name": pool,
            "job_variables": {"env": run_environment()},
        }
        if deployment["name"] in CONFIGURED:
            deployment["parameters"] = {"config": config.model_dump(mode="json")}
        for schedule in deployment.get("schedules", ()):
            schedule["active"] = scheduled and deployment["name"] in SCHEDULED
    return values | {"deployments": listed}


def run_environment() -> dict[str, str]:
    """Return what runs on a worker need to find the state and the registry of whoever deploys.

    An MLflow address with credentials is left out, because a server shows what a deployment holds:
    it has to be set where the worker is started.
    """
    home = compass_home()
    found = {
        "COMPASS_HOME": str(home),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "prefect" / "results"),
    }
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address and not _has_credentials(address):
        found["MLFLOW_TRACKING_URI"] = address
    return found


def _has_credentials(address: str) -> bool:
    """Say whether an address has a user, a password or settings, which may be secrets."""
    parts = urlsplit(address)
    return "@" in parts.netloc or bool(parts.query)


def apply_deployments(values: Mapping[str, Any]) -> None:
    """Apply a prepared ``prefect.yaml`` with Prefect's own command; pools are made where missing.

    Raises:
        ConfigError: no server is configured, or Prefect refuses the file.
    """
    if server_address() is None:
        raise ConfigError(
            "No Prefect server is configured, so there is nothing to deploy to. Start one "
            "(`prefect server start`) and set PREFECT_API_URL=http://127.0.0.1:4200/api.",
            code="E42",
        )
    for pool in sorted({d["work_pool"]["name"] for d in values["deployments"]}):
        _prefect("work-pool", "create", pool, "--type", "process", known_if="already exists")
    with tempfile.TemporaryDirectory(prefix="compass-deploy-") as folder:
        path = Path(folder) / "prefect.yaml"
        path.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
        _prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(path))


def _prefect(*arguments: str, known_if: str = "") -> None:
    command = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
        cwd=FOLDER.parent,
        env={**os.environ, "PREFECT_LOGGING_LEVEL": "ERROR", "COLUMNS": "200"},
    )
    output = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode and not (known_if and known_if in output):
        raise ConfigError(f"`prefect {' '.join(arguments)}` failed:\n{output[-2000:]}")


def apply_automations(automations: list[dict[str, Any]]) -> dict[str, str]:
    """Create each automation, or replace the one of the same name; return created or replaced.

    Raises:
        ConfigError: an automation names a deployment that the server does not have.
        TransientError: the server did not answer.
    """
    done: dict[str, str] = {}
    try:
        with get_client(sync_client=True) as client:
            for values in automations:
                wanted = AutomationCore.model_validate(_with_ids(client, values))
                known = client.read_automations_by_name(wanted.name)
                if known:
                    client.update_automation(known[0].id, wanted)
                else:
                    client.create_automation(wanted)
                for other in known[1:]:
                    client.delete_automation(other.id)
                done[wanted.name] = "replaced" if known else "created"
    except httpx.HTTPError as error:
        raise TransientError(f"{server_address()} did not answer: {error}") from error
    return done


def _with_ids(client: SyncPrefectClient, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the automation with the ids of the deployments it names."""
    actions = []
    for action in values["actions"]:
        filled = dict(action)
        name = filled.pop("deployment", None)
        if name is not None:
            try:
                filled["deployment_id"] = client.read_deployment_by_name(name).id
            except ObjectNotFound:
                raise ConfigError(
                    f"The automation {values['name']!r} starts the deployment {name}, which the "
                    "server does not have. Deploy it first: `compass deploy CONFIG`."
                ) from None
        actions.append(filled)
    return {**values, "actions": actions}

"""Work pools: how their runs start and what they get, from the files in ``deployments/pools/``.

A pool is made once, from the template of Prefect's own worker with COMPASS's additions laid over
it; one that is there already stays as it is, because somebody may have changed it in the interface.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from compass_core.errors import ConfigError
from compass_core.strict_yaml import parse_yaml
from compass_core.version import __version__
from tasks.settings import compass_home, has_credentials

POOL_TYPES = ("process", "docker", "kubernetes")
HEARTBEAT_SECONDS = 30
"""How often a run says that it is alive; `compass-crash-zombies` waits for five of them."""
DEPLOYMENT_VARIABLE = "COMPASS_DEPLOYMENT"
_FILE_KEYS = ("type", "home", "folder", "job_variables", "base_job_template")


@dataclass(frozen=True)
class PoolKind:
    """One file of ``deployments/pools/``, filled in.

    Attributes:
        type: Of Prefect's worker.
        folder: Where runs start.
        job_variables: What every deployment gives to its runs.
        template_changes: What is laid over the worker's base job template.
    """

    type: str
    folder: str
    job_variables: Mapping[str, Any]
    template_changes: Mapping[str, Any]


def read_pool_kind(
    files: Path, kind: str, folder: Path, *, image: str = "", name: str = ""
) -> PoolKind:
    """Return what a pool of this type needs.

    Args:
        files: The folder ``deployments``.
        kind: One of `POOL_TYPES`.
        folder: Where the configuration's relative paths start from.
        image: Container image; empty: the one in the file.
        name: Name that the deployments were given; runs read it to find their siblings.

    Raises:
        ConfigError: no such type, or the file is not as it should be.
    """
    if kind not in POOL_TYPES:
        raise ConfigError(f"--pool-type {kind!r} is not one of {', '.join(POOL_TYPES)}.")
    values = _read(files / "pools" / f"{kind}.yaml")
    home = values.get("home", str(compass_home()))
    known = {
        "home": home,
        "folder": str(folder.resolve()),
        "version": __version__,
        "user": f"{os.getuid()}:{os.getgid()}",
    }
    variables = _fill(values["job_variables"], known)
    variables["env"] = run_environment(home, name) | variables["env"]
    if image and "image" in variables:
        variables["image"] = image
    changes = values.get("base_job_template", {})
    return PoolKind(values["type"], _fill(values["folder"], known), variables, changes)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; restore it from the repository.") from None
    values = document.values
    unknown = sorted(set(values) - set(_FILE_KEYS))
    if document.problems or unknown or "job_variables" not in values:
        told = [*document.problems, *(f"unknown key {key!r}" for key in unknown)]
        raise ConfigError(f"{path} cannot be used: {'; '.join(told) or 'no job_variables'}.")
    return values


def _fill(value: Any, known: Mapping[str, str]) -> Any:
    """Put the known values where their names stand in single braces."""
    if isinstance(value, dict):
        return {key: _fill(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, known) for item in value]
    if isinstance(value, str):
        for name, text in known.items():
            value = value.replace(f"{{{name}}}", text)
    return value


def run_environment(home: str, name: str = "") -> dict[str, str]:
    """Return what runs on a worker need to find the state and the registry of whoever deploys.

    An address with credentials is left out, because a server shows what a deployment holds: it has
    to be set where the worker is started.
    """
    found = {
        "COMPASS_HOME": home,
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": f"{home}/prefect/results",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    }
    for variable in ("MLFLOW_TRACKING_URI", "COMPASS_STORE"):
        address = os.environ.get(variable, "")
        if address and not has_credentials(address):
            found[variable] = address
    return found | ({DEPLOYMENT_VARIABLE: name} if name else {})


def base_job_template(kind: PoolKind) -> dict[str, Any]:
    """Return the template of Prefect's worker with COMPASS's additions.

    Raises:
        ConfigError: there are no such workers, or they do not know one of the job variables.
    """
    template = asyncio.run(get_default_base_job_template_for_infrastructure_type(kind.type))
    if template is None:
        raise ConfigError(
            f"This Prefect knows no workers of type {kind.type}. "
            f"Install them: pip install 'compass-adapt[{kind.type}]'."
        )
    merged: dict[str, Any] = _lay_over(template, kind.template_changes)
    known = merged["variables"]["properties"]
    unknown = sorted(set(kind.job_variables) - set(known))
    if unknown:
        raise ConfigError(
            f"pools/{kind.type}.yaml: workers of type {kind.type} know no job variable "
            f"{', '.join(unknown)}; they know {', '.join(sorted(known))}."
        )
    return merged


def _lay_over(base: Any, changes: Any) -> Any:
    """Merge mappings key by key and lists item by item; other values are replaced."""
    if isinstance(base, Mapping) and isinstance(changes, Mapping):
        added = {key: value for key, value in changes.items() if key not in base}
        return {k: _lay_over(v, changes[k]) if k in changes else v for k, v in base.items()} | added
    if isinstance(base, list) and isinstance(changes, list):
        both = [_lay_over(a, b) for a, b in zip(base, changes, strict=False)]
        return both + base[len(both) :] + changes[len(both) :]
    return changes


def ensure_pool(client: SyncPrefectClient, name: str, kind: PoolKind) -> str:
    """Make the pool if it is missing; return ``created`` or ``known``.

    Raises:
        ConfigError: there is one of that name and another type.
    """
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = base_job_template(kind)
        wanted = WorkPoolCreate(name=name, type=kind.type, base_job_template=template)
        client.create_work_pool(wanted)
        return "created"
    if pool.type != kind.type:
        raise ConfigError(
            f"The work pool {name!r} is of type {pool.type}, and --pool-type asks for {kind.type}. "
            f"Choose another name (--pool {name}-{kind.type}) or --pool-type {pool.type}."
        )
    return "known"

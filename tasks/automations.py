"""Automations on a Prefect server, from ``deployments/automations.yaml``.

Prefect adds an automation each time it is given one, so each is looked up by name, replaced only
where it differs, and removed when this release does not have it any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound

from compass_core.errors import ConfigError
from tasks.deployment_checks import TAG, read_document
from tasks.deployments import FOLDER, Wanted
from tasks.events import PROJECT_LABEL

NO_BLOCK = "none"
"""What `--notify` says to have the notification removed."""
_SET_TAG = "set-"
_EVERYBODYS = ("compass-crash-zombies", "compass-retry-crashed")
"""Automations that serve all configurations of a server, by the tag of their runs."""


def read_automations(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return the automations of ``automations.yaml`` as plain values."""
    found: list[dict[str, Any]] = read_document(folder / "automations.yaml").values["automations"]
    return found


def prepare_automations(
    client: SyncPrefectClient, wanted: Wanted, *, notify: str = "", folder: Path = FOLDER
) -> tuple[list[AutomationCore], list[str]]:
    """Return what is to be applied, and the names of those that stay as they are.

    Args:
        client: Connection to the server, which knows the ids.
        wanted: What was deployed.
        notify: Notification block, ``type/name``; empty: as it is; `NO_BLOCK`: no notification.
        folder: Where ``automations.yaml`` is.

    Raises:
        ConfigError: the server has no such deployment, or no such block.
    """
    block = _block(client, notify) if notify not in ("", NO_BLOCK) else None
    prepared: list[AutomationCore] = []
    untouched: list[str] = []
    for values in read_automations(folder):
        name = _name(values["name"], wanted)
        if block is None and any("block" in action for action in values["actions"]):
            untouched += [] if notify == NO_BLOCK else [name]
            continue
        actions = [_with_ids(client, action, wanted, block) for action in values["actions"]]
        tags = [TAG] if values["name"] in _EVERYBODYS else [TAG, _set_tag(wanted)]
        changes = {"name": name, "tags": tags, "actions": actions, "trigger": _own(values, wanted)}
        prepared.append(AutomationCore.model_validate({**values, **changes}))
    return prepared, untouched


def _name(name: str, wanted: Wanted) -> str:
    return f"{name}-{wanted.name}" if wanted.name and name not in _EVERYBODYS else name


def _set_tag(wanted: Wanted) -> str:
    return f"{_SET_TAG}{wanted.name}"


def _own(values: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """Return the trigger, narrowed to the project where the automation is one of its own."""
    trigger = dict(values["trigger"])
    if values["name"] in _EVERYBODYS:
        return trigger
    if "match_related" in trigger:
        tag = f"prefect.tag.project-{wanted.config.project}"
        trigger["match_related"] = {**trigger["match_related"], "prefect.resource.id": tag}
    else:
        trigger["match"] = {**trigger["match"], PROJECT_LABEL: wanted.config.project}
    return trigger


def _block(client: SyncPrefectClient, notify: str) -> str:
    """Return the id of a notification block.

    Raises:
        ConfigError: there is none of that type and name.
    """
    kind, slash, name = notify.partition("/")
    try:
        if not slash:
            raise ObjectNotFound(ValueError(notify))
        return str(client.read_block_document_by_name(name, kind).id)
    except ObjectNotFound:
        raise ConfigError(
            f"--notify {notify}: the server has no such block. Make one in the interface (Blocks, "
            "for example Slack Webhook) and give its type and name: --notify slack-webhook/ops. "
            "`prefect block ls` lists them."
        ) from None


def _with_ids(
    client: SyncPrefectClient, action: Mapping[str, Any], wanted: Wanted, block: str | None
) -> dict[str, Any]:
    """Return an action with ids in the place of names."""
    filled = {key: value for key, value in action.items() if key not in ("deployment", "block")}
    if "block" in action:
        filled["block_document_id"] = block
    if "deployment" in action:
        name = f"{action['deployment']}/{wanted.deployment_name(action['deployment'])}"
        try:
            filled["deployment_id"] = client.read_deployment_by_name(name).id
        except ObjectNotFound:
            raise ConfigError(
                f"An automation starts the deployment {name}, which the server does not have. "
                "Deploy it first: `compass deploy CONFIG`."
            ) from None
    return filled


def apply_automations(
    client: SyncPrefectClient, prepared: list[AutomationCore], untouched: list[str], wanted: Wanted
) -> dict[str, str]:
    """Create, replace or keep each automation by name, and remove what is not wanted any more.

    Returns:
        ``created``, ``replaced``, ``unchanged`` or ``removed``, by name.
    """
    done: dict[str, str] = {}
    for automation in prepared:
        known = client.read_automations_by_name(automation.name)
        if not known:
            client.create_automation(automation)
            done[automation.name] = "created"
        elif _same(known[0], automation):
            done[automation.name] = "unchanged"
        else:
            client.update_automation(known[0].id, automation)
            done[automation.name] = "replaced"
        for other in known[1:]:
            client.delete_automation(other.id)
    keep = {*done, *untouched}
    for known_one in client.read_automations():
        if _set_tag(wanted) in known_one.tags and known_one.name not in keep:
            client.delete_automation(known_one.id)
            done[known_one.name] = "removed"
    return done


def _same(known: Automation, wanted: AutomationCore) -> bool:
    """Say whether the server has it like that already; `enabled` is the interface's own switch."""
    left, right = (
        {**one.model_dump(mode="json", exclude={"id", "enabled"})} for one in (known, wanted)
    )
    for one in (left, right):
        for key in ("after", "expect", "for_each"):
            one["trigger"][key] = sorted(one["trigger"].get(key, ()))
        one["tags"] = sorted(one["tags"])
        one["trigger"].pop("id", None)
    return bool(left == right)

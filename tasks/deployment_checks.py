"""What is wrong with ``prefect.yaml`` and ``automations.yaml``, found before anything is applied.

Prefect passes over keys it does not know, finds an entrypoint that does not import only when a run
starts, and a parameter that no flow takes only when an event comes. Not checked: whether a work
pool or a notification block exists, which only a server knows.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from jinja2 import TemplateError
from prefect import Flow
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import construct_schedule
from prefect.events.actions import ActionTypes
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.server.utilities.user_templates import TemplateSecurityError, validate_user_template
from pydantic import BaseModel, ValidationError

from compass_core.errors import ConfigError, bounded_list
from compass_core.strict_yaml import Document, parse_yaml
from compass_core.strict_yaml import Path as KeyPath

TAG = "compass"
"""Tag of every deployment; automations find its runs by it."""
STATES = frozenset(
    {
        *("Scheduled", "Late", "Pending", "Running", "Completed", "Failed", "Crashed"),
        *("Cancelled", "Cancelling", "TimedOut", "Paused", "Suspended", "Resuming"),
        *("AwaitingRetry", "Retrying", "AwaitingConcurrencySlot", "heartbeat"),
        *("CompletedWithFailures", "AlreadyDone", "NoChampion"),
    }
)
"""Names that follow ``prefect.flow-run.``: Prefect's own, then those that our flows end with."""
OWN_EVENTS = frozenset({"compass.drift"})
_OWN_ACTION_KEYS = frozenset({"deployment", "block"})
_NIL = UUID(int=0)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")


def check_deployment_files(folder: Path) -> None:
    """Check both files of a folder.

    Raises:
        ConfigError: with every problem: file, line, deployment, key, and what was probably meant.
    """
    checked = _Checked(folder)
    checked.deployments()
    checked.automations()
    if checked.problems:
        raise ConfigError(f"{folder} cannot be applied:\n{bounded_list(checked.problems)}")


def check_time_zone(name: str) -> None:
    """Refuse a time zone that does not exist; empty is none.

    Raises:
        ConfigError: with the nearest one.
    """
    if name and not _is_zone(name):
        raise ConfigError(f"--timezone: {_no_zone(name)}.")


def check_name(name: str) -> None:
    """Refuse a name of deployments that does not fit into a path; empty is none.

    Raises:
        ConfigError: with the rule.
    """
    if name and not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r}: lower-case letters, digits and dashes only.")


def read_document(path: Path) -> Document:
    """Parse one of the files.

    Raises:
        ConfigError: it is missing, or not YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError:
        raise ConfigError(
            f"{path.name} is not beside this installation ({path.parent}). Clone the repository "
            "and install it with `python3 run.py setup`."
        ) from None


class _Checked:
    """Both files of a folder while they are checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.flows: dict[str, Flow[..., Any]] = {}
        self.document = Document({})
        self.file = ""

    def _open(self, name: str) -> dict[str, Any]:
        self.file = name
        self.document = read_document(self.folder / name)
        self.problems += [f"{name}: {problem}" for problem in self.document.problems]
        return self.document.values

    def _add(self, path: KeyPath, where: str, text: str) -> None:
        while path and path not in self.document.lines:
            path = path[:-1]
        line = self.document.lines.get(path)
        place = f"{self.file}:{line}" if line else self.file
        self.problems.append(f"{place}: {where}: {text}" if where else f"{place}: {text}")

    def _keys(self, values: Any, known: Collection[str], path: KeyPath, where: str) -> None:
        """Add every key that is not known."""
        if isinstance(values, Mapping):
            for key in values:
                if key not in known:
                    self._add((*path, key), where, f"unknown key {key!r}{_nearest(key, known)}")

    # -- prefect.yaml
    def deployments(self) -> None:
        """Check ``prefect.yaml``."""
        values = self._open("prefect.yaml")
        self._keys(values, _fields(PrefectYamlModel), (), "")
        for position, step in enumerate(values.get("pull") or ()):
            self._step(step, ("pull", position))
        for position, deployment in enumerate(values.get("deployments") or ()):
            self._deployment(deployment, ("deployments", position))

    def _step(self, step: Mapping[str, Any], path: KeyPath) -> None:
        for name, inputs in step.items():
            function = _import(name)
            if function is None:
                self._add(path, "pull", f"there is no step {name!r}")
                continue
            known = set(inspect.signature(function).parameters) | {"id", "requires"}
            self._keys(inputs, known, (*path, name), f"pull {name}")

    def _deployment(self, values: Mapping[str, Any], path: KeyPath) -> None:
        name = str(values.get("name", f"number {path[-1]}"))
        self._keys(values, _fields(DeploymentConfig), path, name)
        self._keys(values.get("work_pool"), _fields(WorkPoolConfig), (*path, "work_pool"), name)
        if name in self.flows:
            self._add(path, name, "there is a deployment of this name already")
        if TAG not in (values.get("tags") or ()):
            self._add(path, name, f"the tag {TAG!r} is missing, by which automations find its runs")
        self._limit(values.get("concurrency_limit"), (*path, "concurrency_limit"), name)
        flow = self._flow(values, path, name)
        if flow is None:
            return
        self.flows[name] = flow
        self._parameters(values.get("parameters"), flow, (*path, "parameters"), name)
        self._schedules(values, flow, path, name)

    def _flow(self, values: Mapping[str, Any], path: KeyPath, name: str) -> Flow[..., Any] | None:
        entrypoint = str(values.get("entrypoint", ""))
        path = (*path, "entrypoint")
        module_name, _, attribute = entrypoint.rpartition(".")
        if not module_name or ":" in entrypoint:
            self._add(path, name, f"entrypoint {entrypoint!r}: write module.function")
            return None
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            self._add(path, name, f"entrypoint {entrypoint!r} does not import: {error}")
            return None
        flow = getattr(module, attribute, None)
        if not isinstance(flow, Flow):
            flows = [key for key, value in vars(module).items() if isinstance(value, Flow)]
            text = f"{module_name} has no flow {attribute!r}{_nearest(attribute, flows)}"
            self._add(path, name, text)
            return None
        if flow.name != name:
            self._add(path, name, f"its flow is called {flow.name!r}; give both one name")
        return flow

    def _limit(self, limit: Any, path: KeyPath, name: str) -> None:
        if not isinstance(limit, Mapping):
            return
        self._keys(limit, _fields(ConcurrencyLimitSpec), path, name)
        strategies = [strategy.value for strategy in ConcurrencyLimitStrategy]
        strategy = limit.get("collision_strategy", strategies[0])
        if strategy not in strategies:
            text = f"unknown collision strategy {strategy!r}{_nearest(str(strategy), strategies)}"
            self._add((*path, "collision_strategy"), name, text)
            return
        try:
            ConcurrencyLimitConfig.model_validate(limit)
        except ValidationError as error:
            self._add(path, name, _told(error))

    def _schedules(
        self, values: Mapping[str, Any], flow: Flow[..., Any], path: KeyPath, name: str
    ) -> None:
        slugs: set[str] = set()
        for position, schedule in enumerate(values.get("schedules") or ()):
            where = (*path, "schedules", position)
            slug = str(schedule.get("slug", ""))
            told = f"{name}, schedule {slug or position}"
            self._keys(schedule, _fields(RawScheduleConfig), where, told)
            if not slug or slug in slugs:
                self._add(where, told, "needs a slug of its own, or it is added again each time")
            slugs.add(slug)
            self._timing(schedule, where, told)
            self._parameters(schedule.get("parameters"), flow, (*where, "parameters"), told)

    def _timing(self, schedule: Mapping[str, Any], path: KeyPath, told: str) -> None:
        zone = schedule.get("timezone")
        if not zone:
            self._add(path, told, "has no timezone; write one, for example Etc/UTC")
        elif not _is_zone(str(zone)):
            self._add((*path, "timezone"), told, _no_zone(str(zone)))
            return
        kinds = {key: schedule[key] for key in ("cron", "interval", "rrule") if key in schedule}
        if len(kinds) != 1:
            self._add(path, told, "needs exactly one of cron, interval, rrule")
            return
        try:
            construct_schedule(**kinds, timezone=zone)
        except (ValidationError, ValueError, TypeError) as error:
            self._add(path, told, f"{kinds}: {_told(error)}")

    def _parameters(self, parameters: Any, flow: Flow[..., Any], path: KeyPath, where: str) -> None:
        known = flow.parameters.properties
        for key in parameters or {}:
            if key not in known:
                text = f"{flow.name} takes no parameter {key!r}{_nearest(key, known)}"
                self._add((*path, key), where, text)

    # -- automations.yaml
    def automations(self) -> None:
        """Check ``automations.yaml``, against the deployments that were checked before."""
        values = self._open("automations.yaml")
        self._keys(values, {"automations"}, (), "")
        names: set[str] = set()
        for position, automation in enumerate(values.get("automations") or ()):
            path: KeyPath = ("automations", position)
            name = str(automation.get("name", f"number {position}"))
            if name in names:
                self._add(path, name, "there is an automation of this name already")
            names.add(name)
            self._automation(automation, path, name)

    def _automation(self, values: Mapping[str, Any], path: KeyPath, name: str) -> None:
        self._keys(values, _fields(AutomationCore), path, name)
        trigger = values.get("trigger") or {}
        self._keys(trigger, _fields(EventTrigger), (*path, "trigger"), name)
        for key in ("after", "expect"):
            for event in trigger.get(key) or ():
                self._event(str(event), (*path, "trigger", key), name)
        actions = list(values.get("actions") or ())
        for position, action in enumerate(actions):
            self._action(action, (*path, "actions", position), name)
        try:
            AutomationCore.model_validate({**values, "actions": [_complete(a) for a in actions]})
        except ValidationError as error:
            self._add(path, name, _told(error))

    def _event(self, event: str, path: KeyPath, name: str) -> None:
        state = event.rpartition(".")[2]
        known = {f"prefect.flow-run.{known}" for known in STATES} | OWN_EVENTS
        if event not in known and state != "*":
            self._add(path, name, f"nothing sends {event!r}{_nearest(event, known)}")

    def _action(self, action: Mapping[str, Any], path: KeyPath, name: str) -> None:
        models = {str(model.model_fields["type"].default): model for model in get_args(ActionTypes)}
        kind = str(action.get("type", ""))
        if kind not in models:
            self._add(path, name, f"unknown action {kind!r}{_nearest(kind, models)}")
            return
        self._keys(action, _fields(models[kind]) | _OWN_ACTION_KEYS, path, name)
        for key, template in _templates(action):
            try:
                validate_user_template(template)
            except (TemplateSecurityError, TemplateError) as error:
                self._add((*path, key), name, f"{key}: {error}")
        if "deployment" in action:
            self._started(action, path, name)

    def _started(self, action: Mapping[str, Any], path: KeyPath, name: str) -> None:
        deployment = str(action["deployment"])
        flow = self.flows.get(deployment)
        if flow is None:
            text = f"there is no deployment {deployment!r}{_nearest(deployment, self.flows)}"
            self._add((*path, "deployment"), name, text)
            return
        given = action.get("parameters") or {}
        self._parameters(given, flow, (*path, "parameters"), name)
        # The configuration is the deployment's own.
        for key in sorted(set(flow.parameters.required) - set(given) - {"config"}):
            self._add(path, name, f"{flow.name} needs the parameter {key!r}")


def _complete(action: Mapping[str, Any]) -> dict[str, Any]:
    """Return an action with an id in the place of each name."""
    values = {key: value for key, value in action.items() if key not in _OWN_ACTION_KEYS}
    ids = {"deployment": "deployment_id", "block": "block_document_id"}
    return values | {ids[key]: _NIL for key in _OWN_ACTION_KEYS & set(action)}


def _templates(action: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give every text of an action that the server fills in."""
    for key in ("subject", "body"):
        if key in action:
            yield key, str(action[key])
    for key, value in (action.get("parameters") or {}).items():
        if isinstance(value, Mapping) and value.get("__prefect_kind") == "jinja":
            yield key, str(value.get("template", ""))


def _fields(model: type[BaseModel]) -> set[str]:
    """Return the keys that a model reads."""
    return {field.alias or name for name, field in model.model_fields.items()}


def _nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known)[:12])}"


def _import(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError):
        return None


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return False
    return True


def _no_zone(name: str) -> str:
    return f"unknown time zone {name!r}{_nearest(name, available_timezones())}"


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}"
            for detail in error.errors()[:3]
        )
    return str(error)

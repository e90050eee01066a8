"""One deployment run per language, on whatever worker serves the pool: the engine of fleets.

The parent prepares what all languages share, so that the children find it in the store, keeps at
most `max_parallel` of them in flight and gathers what they leave there. A child that fails, crashes
or is cancelled is that language's failure; a parent that is stopped cancels its children.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, WorkPoolStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling

from compass_core.config import AdaptConfig
from compass_core.errors import CompassError, ConfigError, TransientError
from tasks.events import server_address
from tasks.outcomes import PART_TAG, read_outcome
from tasks.progress import beat
from tasks.reporting import failed_outcome

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 2.0
_RUNS_PER_QUESTION = 100
"""Fewer than the server gives at most (200)."""
_STARTS = 3
"""The automation starts a crashed run again until it was started so often."""
_COMES_BACK_SECONDS = 120.0
"""It does so 60 seconds after the crash."""
_STAGE = "run"


def check_fan_out(name: str) -> None:
    """Check that there is somebody to spread the languages over, before anything expensive starts.

    Args:
        name: Flow and name of the deployment that adapts one language.

    Raises:
        ConfigError: no server is configured, it has no such deployment, or the pool has no room
            for parent and child.
        TransientError: the server did not answer.
    """
    if server_address() is None:
        raise ConfigError(
            "execution.fan_out=deployments needs a Prefect server, and none is configured. Start "
            "one (`prefect server start`) and set PREFECT_API_URL=http://127.0.0.1:4200/api."
        )
    try:
        with get_client(sync_client=True) as client:
            _check_deployment(client, name)
    except httpx.HTTPError as error:
        raise TransientError(f"{server_address()} did not answer: {error}") from error


def _check_deployment(client: SyncPrefectClient, name: str) -> None:
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound:
        raise ConfigError(
            f"execution.language_deployment={name}: the server has no such deployment. Apply it "
            "with `compass deploy CONFIG`, or name one of `prefect deployment ls`."
        ) from None
    if deployment.paused:
        raise ConfigError(
            f"The deployment {name} is paused, so no language would start. Resume it in the "
            "interface, or with `prefect deployment schedule resume`."
        )
    if deployment.work_pool_name is None:
        raise ConfigError(
            f"The deployment {name} has no work pool, so nothing would run it. Apply it with "
            "`compass deploy CONFIG`."
        )
    pool = client.read_work_pool(deployment.work_pool_name)
    own_pool = client.read_flow_run(UUID(flow_run.id)).work_pool_name if flow_run.id else None
    if pool.concurrency_limit == 1 and own_pool == pool.name:
        raise ConfigError(
            f"The work pool {pool.name!r} allows one run at a time, and this run is that one, so "
            "its languages would wait for ever. Raise the limit of the pool (`prefect work-pool "
            f"set-concurrency-limit {pool.name} 3`) or give adapt-language a pool of its own."
        )
    if pool.is_paused or pool.status != WorkPoolStatus.READY:
        _LOG.warning(
            "No worker of the pool %r is online, so the languages wait until one is. Start it: "
            "prefect worker start --pool %s",
            pool.name,
            pool.name,
        )


@dataclass
class _Flight:
    """Children under way.

    Attributes:
        client: Of the server.
        runs: By language, the child's run.
        told: By language, the name of its state that was told last.
        crashed: By language, when its process was first seen to have died (monotonic seconds).
    """

    client: SyncPrefectClient
    runs: dict[str, UUID] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    crashed: dict[str, float] = field(default_factory=dict)

    def poll(self) -> dict[str, FlowRun | None]:
        """Return the children that ended, None for one that was deleted; tell what changed.

        A server that is away is waited for. So is a child whose process died: the automation
        `compass-retry-crashed` starts it again, and its outcome is then the one that counts.
        """
        try:
            found = self._read()
        except (httpx.HTTPError, PrefectException) as error:
            _LOG.warning("The Prefect server does not answer: %s", error)
            self.crashed.clear()  # nor does it start anything again meanwhile
            return {}
        ended: dict[str, FlowRun | None] = {}
        for language, run_id in list(self.runs.items()):
            run = found.get(run_id)
            if run is None:
                ended[language] = None
                continue
            if run.state is None or self._may_come_back(language, run, run.state):
                continue
            if run.state.is_final():
                ended[language] = run
            elif self.told.get(language) != run.state.name:
                self.told[language] = run.state.name or ""
                beat(language, _STAGE, "running", detail=self.told[language])
        return ended

    def _read(self) -> dict[UUID, FlowRun]:
        ids = list(self.runs.values())
        found: dict[UUID, FlowRun] = {}
        for first in range(0, len(ids), _RUNS_PER_QUESTION):
            wanted = FlowRunFilterId(any_=ids[first : first + _RUNS_PER_QUESTION])
            runs = self.client.read_flow_runs(flow_run_filter=FlowRunFilter(id=wanted))
            found |= {run.id: run for run in runs}
        return found

    def _may_come_back(self, language: str, run: FlowRun, state: State[Any]) -> bool:
        if not _is_started_again(run, state):
            self.crashed.pop(language, None)
            return False
        since = self.crashed.setdefault(language, time.monotonic())
        if self.told.get(language) != state.name:
            self.told[language] = state.name or ""
            beat(language, _STAGE, "running", detail="crashed; it may be started again")
        return time.monotonic() - since < _COMES_BACK_SECONDS

    def cancel(self) -> None:
        """Ask the server to stop what is still under way."""
        why = "The run that started it was stopped."
        for language, run_id in self.runs.items():
            # A dead one has nobody who would stop it, and must not be started again.
            dead = language in self.crashed
            state: State[Any] = Cancelled(message=why) if dead else Cancelling(message=why)
            with contextlib.suppress(Exception):  # the next one may be reached
                self.client.set_flow_run_state(run_id, state)


def _is_started_again(run: FlowRun, state: State[Any]) -> bool:
    return state.is_crashed() and 1 <= run.run_count < _STARTS


def run_children(
    config: AdaptConfig, refused: Mapping[tuple[str, int], Exception]
) -> dict[str, dict[str, Any]]:
    """Run one deployment run per language; return the outcomes in the order of the languages.

    Args:
        config: Of the parent.
        refused: Languages and seeds that cannot work; no run is started for them.
    """
    outcomes: dict[str, dict[str, Any]] = {}
    waiting = []
    for language in config.languages:
        if (language, config.seed) in refused:
            outcomes[language] = failed_outcome(language, refused[language, config.seed])
        else:
            waiting.append(language)
    with get_client(sync_client=True) as client:
        flight = _Flight(client)
        try:
            while waiting or flight.runs:
                while waiting and len(flight.runs) < config.execution.max_parallel:
                    try:
                        flight.runs[waiting[0]] = _start(config, waiting[0])
                    except httpx.HTTPError as error:
                        if not _passes(error):
                            raise
                        _LOG.warning("%s is started a moment later: %s", waiting[0], error)
                        break
                    waiting.pop(0)
                time.sleep(_POLL_SECONDS)
                for language, run in flight.poll().items():
                    del flight.runs[language]
                    outcomes[language] = _outcome(language, run)
        finally:
            flight.cancel()
    return {language: outcomes[language] for language in config.languages}


def _passes(error: httpx.HTTPError) -> bool:
    """Say whether the server is away or overloaded, and does not refuse what it was asked."""
    server_error = 500
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= server_error
    return isinstance(error, httpx.TransportError)


def _start(config: AdaptConfig, language: str) -> UUID:
    """Start a child; a parent that is tried again takes over those that it started before."""
    name = config.execution.language_deployment
    key = f"{flow_run.id}-{language}"
    run = _create(config, name, language, key)
    state = run.state
    if state is None or _is_started_again(run, state):
        return run.id
    if state.is_final() and not state.is_completed():
        run = _create(config, name, language, f"{key}-{flow_run.run_count}")
    return run.id


def _create(config: AdaptConfig, name: str, language: str, key: str) -> FlowRun:
    values = config.model_dump(mode="json", exclude={"languages"}) | {"language": language}
    values["execution"]["fan_out"] = "tasks"
    run = run_deployment(
        name,
        parameters={"config": values},
        timeout=0,
        flow_run_name=f"adapt-{language}",
        tags=[PART_TAG],
        idempotency_key=key,
    )
    return cast(FlowRun, run)


def _outcome(language: str, run: FlowRun | None) -> dict[str, Any]:
    """Return what a child left; one that left nothing, such as a crashed one, has failed."""
    outcome = read_outcome(run.id, run.run_count) if run is not None else None
    if outcome is None:
        outcome = failed_outcome(language, CompassError(_no_outcome(language, run), code="E96"))
    if outcome["status"] == "failed":
        beat(language, _STAGE, "failed", detail=outcome["error"])
    else:
        beat(language, _STAGE, "done", 1.0, outcome["status"])
    return outcome


def _no_outcome(language: str, run: FlowRun | None) -> str:
    if run is None:
        return (
            f"The run of {language} was deleted while it was waited for. Run it again: finished "
            "work is kept."
        )
    said = f"{run.state.name}: {run.state.message}" if run.state is not None else "no state"
    return (
        f"The run {run.name} left no outcome; it ended as {said}. Run it again: finished work is "
        f"kept (flow run {run.id})."
    )

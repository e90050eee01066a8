"""The event `compass.drift`: sent to Prefect, where an automation starts the update.

The outbox (`compass_core.monitoring.outbox`) holds what is to be sent. Sending goes by one request
whose answer is awaited: Prefect's own background worker only logs what it could not deliver. An
event that was not delivered stays pending, and the next monitor sends it again.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.events import Event, RelatedResource
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

from compass_core.errors import TransientError
from compass_core.languages import language_name
from compass_core.monitoring.outbox import DriftEvent, Outbox
from tasks.retries import RETRIED
from tasks.settings import usage_folder

EVENT_NAME = "compass.drift"
PROJECT_LABEL = "compass.project"
"""Label of the event that says whose update answers it."""
_NAMESPACE = uuid.UUID("6f1b8f5c-6f0c-5a43-9f7b-5d1b1f5f0a11")


def open_outbox(language: str) -> Outbox:
    """Return the drift events of a language (canonical code)."""
    return Outbox(usage_folder(language) / "events")


def server_address() -> str | None:
    """Return the Prefect server that events go to; None where a run makes do with its own."""
    address: str | None = PREFECT_API_URL.value()
    return address


def resource_of(language: str, project: str) -> dict[str, str]:
    """Return what a drift event is about, as Prefect names it."""
    return {
        "prefect.resource.id": f"compass.language.{language}",
        "prefect.resource.name": language_name(language),
        PROJECT_LABEL: project,
    }


def prefect_event(event: DriftEvent, project: str) -> Event:
    """Return the event as Prefect knows it.

    One sending has one identity: if it was delivered and the process died before it noted so, the
    server knows it already. A later sending is another one, because it has to start a run again.
    """
    return Event(
        event=EVENT_NAME,
        id=uuid.uuid5(_NAMESPACE, f"{event.id} {len(event.sent)}"),
        resource=resource_of(event.language, project),
        related=_run_of_monitor(),
        payload=event.payload(),
    )


def _run_of_monitor() -> list[RelatedResource]:
    """Return the flow run that is going on, so that the interface shows the event there."""
    run_id = flow_run.get_id()
    if not run_id:
        return []
    values = {
        "prefect.resource.id": f"prefect.flow-run.{run_id}",
        "prefect.resource.role": "flow-run",
    }
    return [RelatedResource.model_validate(values)]


@task(
    name="send-event",
    task_run_name="send-event-{language}",
    cache_policy=NO_CACHE,
    **RETRIED,
)
def send_event(language: str, event_id: str, project: str) -> None:
    """Send one event of the outbox to a project's update and note that it was sent.

    Raises:
        TransientError: the server did not take it; it stays pending.
        DataError: there is no such event.
    """
    outbox = open_outbox(language)
    deliver(outbox.get(event_id), project)
    outbox.mark_sent(event_id, datetime.now(UTC))


def deliver(event: DriftEvent, project: str) -> None:
    """Give the event to the server and wait for its answer.

    Raises:
        TransientError: the server did not take it.
    """
    body = [prefect_event(event, project).model_dump(mode="json")]
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=body).raise_for_status()
    except Exception as error:
        raise TransientError(
            f"The event {event.id} of {language_name(event.language)} was not delivered to "
            f"{server_address() or 'Prefect'}: {type(error).__name__}: {error}. It stays pending "
            "and is sent again by the next `compass monitor`."
        ) from error

"""A Prefect server that goes away in the middle of a run costs its pages, never the results.

The engine keeps states in the process and sends them as events, so stages go on without a server.
What calls the server directly and can be missed goes through `tell_server`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

P = ParamSpec("P")
PATIENCE_SECONDS = 60.0
"""How long the first call waits for a server that is being restarted; later ones do not wait."""
_PAUSE_SECONDS = 2.0
_PROBE_SECONDS = 2.0
_NOISY = ("prefect.events.clients", "prefect._internal.concurrency", "EventsWorker")
_LOG = logging.getLogger(__name__)
_lost = threading.Event()


def tell_server(call: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call `call`, which writes something for the interface; an outage is logged, not raised."""
    if _lost.is_set() and not server_answers():
        return
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            call(*args, **kwargs)
        except Exception as error:
            if not is_outage(error):
                raise
            if time.monotonic() > deadline:
                note_outage(error)
                return
            time.sleep(_PAUSE_SECONDS)
        else:
            _lost.clear()
            return


def is_outage(error: BaseException) -> bool:
    """Return whether `error` means that the Prefect server could not be reached, or gave up."""
    import httpx

    def is_one(error: BaseException) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.is_server_error
        return isinstance(error, httpx.TransportError) or "Failed to reach API" in str(error)

    return any(is_one(one) for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def note_outage(error: BaseException) -> None:
    """Remember that the server is gone, and say so once."""
    if not _lost.is_set():
        _lost.set()
        _LOG.warning(
            "The Prefect server does not answer (%s). The run goes on; results are kept in the "
            "store, but its pages will miss what happens now.",
            type(error).__name__,
        )


def server_is_lost() -> bool:
    """Return whether the server was lost and does not answer now."""
    return _lost.is_set() and not server_answers()


def server_answers() -> bool:
    """Return whether the configured server answers; a temporary one that was lost stays lost."""
    import httpx
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    try:
        return url is not None and httpx.get(f"{url}/health", timeout=_PROBE_SECONDS).is_success
    except httpx.HTTPError:
        return False


def quieten() -> None:
    """Keep what Prefect says about every single event it could not send out of the terminal."""
    logging.raiseExceptions = False
    for name in _NOISY:  # a level would not do: Prefect sets them anew when a run starts
        logging.getLogger(name).addFilter(_nothing)


def _nothing(_record: logging.LogRecord) -> bool:
    return False

"""The temporary Prefect server of one command, which ends with the command however that ends.

Prefect starts its own as a plain child: Ctrl-C in a terminal then reaches the server first, so that
the interrupted run can no longer be reported, and a killed command leaves the server behind. One
that cannot start (full disk, damaged database) is started over and over. Here it is said at once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from compass_core.errors import CompassError, TransientError
from compass_core.orphans import exit_with_parent
from tasks.settings import compass_home

_EPHEMERAL = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
_ATTEMPTS = 3
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 10.0
_SHOWN_LINES = 3


def guard_temporary_server() -> None:
    """Make Prefect start its temporary server through this module, if it needs one.

    Raises:
        TransientError: a server is configured and does not answer (E93).
    """
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url:
        _require_server(url)
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    if not server.running:
        server._run_uvicorn_command = lambda: _start(server)  # type: ignore[method-assign]


def _require_server(url: str) -> None:
    """Raise unless the server answers, and takes the credentials of this process."""
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True, httpx_settings={"timeout": _ANSWER_SECONDS}) as client:
            client.api_version()
        return
    except httpx.HTTPStatusError as error:
        found = f"refused ({error.response.status_code})"
        advice = "Check PREFECT_API_AUTH_STRING (user:password) and the address"
    except (httpx.HTTPError, RuntimeError) as error:
        found = f"does not answer ({type(error.__cause__ or error).__name__})"
        advice = "Start it (`prefect server start`) or correct PREFECT_API_URL"
    raise TransientError(
        f"The Prefect server {url} {found}, so nothing was started. {advice}; without "
        "PREFECT_API_URL each run has a temporary server of its own.",
        code="E93",
    )


def server_log() -> Path:
    """Return the file that the temporary server writes to."""
    return compass_home() / "prefect" / "server.log"


def _start(server: Any) -> subprocess.Popen[bytes]:
    """Start the server and return once it listens.

    Raises:
        CompassError: it ended instead, or did not listen in time (E93).
    """
    from prefect.settings import get_current_settings

    limit = get_current_settings().server.ephemeral.startup_timeout_seconds
    for _attempt in range(_ATTEMPTS):
        process = _launch(server.port)
        deadline = time.monotonic() + limit
        while process.poll() is None and time.monotonic() < deadline:
            if _listens(server.port):
                return process
            time.sleep(_POLL_SECONDS)
        if process.poll() is None:
            process.kill()
            break
        if server.is_port_available(server.port):
            break
        server.port = server.find_available_port()  # somebody else took it meanwhile
    code = process.wait()
    raise CompassError(
        f"The temporary Prefect server did not start (exit code {code}). {_last_words()}Its log is "
        f"{server_log()}. If it names the database, move {compass_home() / 'prefect'} away: "
        "finished work is not in it. Or start a server yourself and set PREFECT_API_URL.",
        code="E93",
    )


def _last_words() -> str:
    try:
        lines = server_log().read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    shown = [line.strip()[:200] for line in lines if line.strip()][-_SHOWN_LINES:]
    return f"It said: {' / '.join(shown)}. " if shown else ""


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _launch(port: int) -> subprocess.Popen[bytes]:
    from prefect.settings import get_current_settings

    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    with server_log().open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks.local_server", str(port), str(os.getpid())],
            env={**os.environ, **_EPHEMERAL, **settings},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,  # what it retries by itself is no business of the terminal
            start_new_session=True,  # Ctrl-C is for the command, which then ends the server
        )


def _serve(port: int, parent: int) -> None:
    exit_with_parent(parent)
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))

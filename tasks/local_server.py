"""The temporary Prefect server of one command, which ends with the command however that ends.

Prefect starts its own as a plain child: Ctrl-C in a terminal then reaches the server first, so that
the interrupted run can no longer be reported, and a killed command leaves the server behind.
"""

from __future__ import annotations

import os
import subprocess
import sys

from compass_core.orphans import exit_with_parent

_EPHEMERAL = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


def guard_temporary_server() -> None:
    """Make Prefect start its temporary server through this module, if it needs one."""
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    if not server.running:
        server._run_uvicorn_command = lambda: _launch(server.port)  # type: ignore[method-assign]


def _launch(port: int | None) -> subprocess.Popen[bytes]:
    from prefect.settings import get_current_settings

    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tasks.local_server", str(port), str(os.getpid())],
        env={**os.environ, **_EPHEMERAL, **settings},
        stdin=subprocess.DEVNULL,
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

"""What `compass doctor` looks at beyond versions: models, store, ports."""

from __future__ import annotations

import os
import socket

from compass_core import starter
from compass_core.adaptation.bases import check_base
from compass_core.embedding import encoder_fingerprint
from compass_core.errors import CompassError
from compass_core.storage import write_text
from tasks.settings import open_store, store_address

_PORTS = {"Prefect server": 4200, "MLflow server": 5000}


def environment_checks() -> list[tuple[str, str, str]]:
    """Return (what, found, verdict) of each check; the verdict is ``ok`` or what is wrong."""
    rows = [
        ("store", store_address(), _verdict(_store_is_writable)),
        ("starter base", starter.base_path().name, _verdict(_base_is_whole)),
        ("starter encoder", starter.encoder_path().name, _verdict(_encoder_is_whole)),
    ]
    api = os.environ.get("PREFECT_API_URL")
    rows.append(("Prefect API", api or "none: a temporary server per run", "ok"))
    for name, port in _PORTS.items():
        state = "in use" if _is_open(port) else "free"
        rows.append((f"port {port} ({name})", state, "ok"))
    return rows


def _verdict(check: object) -> str:
    assert callable(check)
    try:
        check()
    except (CompassError, OSError) as error:
        return str(error)
    return "ok"


def _store_is_writable() -> None:
    store = open_store()
    store.check()
    probe = store.root / "tmp" / "doctor"
    write_text(probe, "")
    probe.unlink()


def _base_is_whole() -> None:
    check_base(str(starter.base_path()))


def _encoder_is_whole() -> None:
    encoder_fingerprint(str(starter.encoder_path()))


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.3)
        return probe.connect_ex(("127.0.0.1", port)) == 0

"""Outcomes of languages that ran as deployment runs of their own, on whatever machine.

They come back through the artefact store, which parent and children share in any case; Prefect
keeps a run's state and message, and no results where the processes share no disk.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from prefect.runtime import flow_run

from compass_core.storage import fingerprint, read_json, write_json
from tasks.settings import open_store

PART_TAG = "compass-part"
"""Tag of a run that is one language of another run, which writes the report of both."""
_KIND = "outcome"
_FILE = "outcome.json"


def is_part() -> bool:
    """Say whether the flow run of this process is one language of another run."""
    return PART_TAG in flow_run.tags


def keep_outcome(outcome: Mapping[str, Any]) -> None:
    """Leave this run's outcome where its parent finds it."""
    run = str(flow_run.id)
    provenance = {"flow_run": run, "language": outcome["language"]}
    with open_store().build(_KIND, _key(run, flow_run.run_count), provenance) as draft:
        write_json(draft.folder / _FILE, dict(outcome))


def read_outcome(run_id: uuid.UUID, run_count: int) -> dict[str, Any] | None:
    """Return what attempt `run_count` of a run has left; None if it left nothing."""
    store = open_store()
    ref = store.find(_KIND, _key(str(run_id), run_count))
    if ref is None:
        return None
    found: dict[str, Any] = read_json(store.folder(ref) / _FILE)
    return found


def _key(run: str, run_count: int) -> str:
    return fingerprint(_KIND, run, run_count)

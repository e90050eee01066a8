"""What monitors, updates and the registry leave of a language; only the registry is real."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
from safetensors.numpy import save_file

from compass_core.monitoring.history import History
from compass_core.monitoring.outbox import DriftEvent, Outbox
from compass_core.storage import sha256_file, write_json
from tasks import registry, tracking

CODE = "swh_Latn"
NAME = registry.model_name("starter", CODE)
NOW = datetime(2026, 11, 20, 2, tzinfo=UTC)


def promote(home, value, language=CODE, tags=None, **metrics):
    """Register and promote one adapter with these scores."""
    name = registry.model_name("starter", language)
    folder = home / f"adapter-{language}-{value}"
    folder.mkdir()
    save_file(
        {"a.weight": np.full((2, 2), value, np.float32)}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    files = {path.name: {"sha256": sha256_file(path)} for path in folder.iterdir()}
    (folder / "ADAPTER.json").write_text(json.dumps({"files": files}))
    run = tracking.start_run(
        "compass", f"r{value}", tags={"language": language}, params={"v": value}
    )
    tracking.log_metrics(run, metrics)
    champion = registry.champion(name)
    version = registry.register_adapter(
        name, folder, run_id=run, tags={"base": "starter"} | (tags or {})
    )
    registry.promote(name, version, expected_champion=champion and champion.version)
    return version


def decided(day, status="stable", **values):
    entry = {
        "space": "s",
        "name": f"2026-11-{day:02}T00:00Z/1d",
        "start": f"2026-11-{day:02}T00:00:00+00:00",
        "end": f"2026-11-{day + 1:02}T00:00:00+00:00",
        "status": status,
        "n_prompts": 900,
        "n_units": 300,
        "n_late": 2,
        "score": 0.03,
        "threshold": 0.02,
        "p_value": 0.001,
        "unit": "prompt",
        "settings": {"unit": "session"},
        "min_shown": 7,
        "n_clusters": 12,
        "champion": "1",
        "drift_detected": False,
        "moved": [],
        "notes": [],
    }
    return entry | values


def remember(home, *entries):
    history = History(home / "usage" / CODE / "history.json")
    history.path.parent.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        history.add(entry)


def drift_event(home, **values):
    fields = {
        "language": CODE,
        "champion_version": "1",
        "windows": ("2026-11-18T00:00Z/1d", "2026-11-19T00:00Z/1d"),
        "p_value": 0.001,
        "drift_score": 0.03,
        "occurred": NOW.isoformat(),
        "space": "s",
    }
    return Outbox(home / "usage" / CODE / "events").put(DriftEvent(**fields | values))


def updated(home, event="", status="refused", run="u1", **outcome):
    """Leave the record of one update."""
    verdict = {
        "reasons": ["slice first lost"],
        "new": {"accuracy_before": 0.4, "accuracy_after": 0.5},
        "forgetting": 0.06,
    }
    record = {
        "run_id": run,
        "flow": "update-adapter",
        "started": NOW.isoformat(),
        "finished": NOW.isoformat(),
        "languages": {
            CODE: {
                "status": status,
                "event": event,
                "registry": {"name": NAME, "version": "2"},
                "verdict": verdict,
                **outcome,
            }
        },
    }
    write_json(home / "runs" / run / "run.json", record)

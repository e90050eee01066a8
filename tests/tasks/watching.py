"""A champion whose space is known by heart: a prompt ``c7 …`` lies in cluster 7, ``x7 …`` outside.

Everything else of the monitor is real: log, observations, windows, test, store, outbox.
`be_monitor` is the body of one monitor process, killed with SIGKILL at the point that is named.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from compass_core.config import AdaptConfig
from compass_core.monitoring.drift import Sample
from compass_core.monitoring.observations import Observed

LANGUAGE = "swh_Latn"
N_CLUSTERS = 8
FIRST = datetime(2026, 11, 1, tzinfo=UTC)
EVEN = [1 / N_CLUSTERS] * N_CLUSTERS
SHIFTED = [0.02, 0.02, 0.02, 0.02, 0.02, 0.1, 0.3, 0.5]


@dataclass(frozen=True)
class FakeBaseline:
    """What `tasks.baseline.Baseline` offers, without encoder and registry."""

    version: str = "1"
    fingerprint: str = "5pace"
    adapter_sha256: str = "ada"
    seed: int = 0
    n_clusters: int = N_CLUSTERS
    labels: tuple[str, ...] = tuple(f"topic {k}" for k in range(N_CLUSTERS))
    lineage: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(language=LANGUAGE))

    @property
    def reference(self) -> Sample:
        """1,000 users with two prompts each, evenly over the clusters."""
        rng = np.random.default_rng(self.seed)
        ids = rng.choice(N_CLUSTERS, 2_000, p=EVEN).astype(np.int32)
        return Sample(ids, np.zeros(2_000, bool), np.repeat(np.arange(1_000), 2))

    def observe(self, texts: list[str]) -> Observed:
        """Place texts by their first word."""
        ids = np.array([int(text[1]) for text in texts], np.int32)
        outside = np.array([text[0] == "x" for text in texts])
        return Observed(ids, np.where(outside, 0.9, 0.1).astype(np.float32), outside)


def make_config(logs: Path | None, languages=(LANGUAGE,), **monitoring) -> AdaptConfig:
    log = None if logs is None else {"path": str(logs)}
    drift = {"min_units": 100, "min_prompts": 200, "n_permutations": 199, "max_permutations": 1999}
    drift |= {"correct_languages": False} | monitoring.pop("drift", {})
    values = {"log": log, "drift": drift} | monitoring
    return AdaptConfig.model_validate({"languages": list(languages), "monitoring": values})


def write_day(logs: Path, day: int, shares=EVEN, *, n=600, n_users=300, seed=None, prefix="c"):
    """Write one day of a log; every prompt is another one."""
    logs.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(day if seed is None else seed)
    start = FIRST + timedelta(days=day)
    rows = [
        {
            "id": f"{day}-{prefix}-{n}-{i}",
            "time": (start + timedelta(seconds=int(rng.integers(86_400)))).isoformat(),
            "prompt": f"{prefix}{rng.choice(N_CLUSTERS, p=shares)} question {day} {i}",
            "language": LANGUAGE,
            "user": f"user {day} {rng.integers(n_users)}",
        }
        for i in range(n)
    ]
    path = logs / f"{day:02d}-{prefix}-{n}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def at(day: float) -> datetime:
    """Return a time after the windows before `day` have closed."""
    return FIRST + timedelta(days=day, hours=3)


class Clock(datetime):
    """A clock that says what it is told."""

    moment = FIRST

    @classmethod
    def now(cls, tz=None):
        return cls.moment.astimezone(tz)


def be_monitor(home: str, logs: str, day: float, out: str, point: str = "") -> None:
    """Be one monitor process that may be killed just before it gets to `point`."""
    from compass_core.monitoring.history import History
    from compass_core.monitoring.observations import ObservationLog
    from compass_core.monitoring.outbox import Outbox
    from compass_core.storage import ArtifactStore
    from tasks import monitoring

    os.environ["COMPASS_HOME"] = home
    Clock.moment = at(day)
    monitoring.datetime = Clock
    monitoring.open_baseline = lambda *_: FakeBaseline()
    monitoring.server_address = lambda: "http://127.0.0.1:1/api"

    def note_sent(_language, event_id, _project):
        with (Path(logs).parent / "sent.txt").open("a") as stream:
            stream.write(f"{event_id}\n")

    monitoring.send_event = note_sent
    points = {
        "publish": (ArtifactStore, "_publish", 3),
        "put": (Outbox, "put", 1),
        "add": (History, "add", 4),
        "mark": (ObservationLog, "mark_decided", 4),
        "send": (monitoring, "send_event", 1),
    }
    if point:
        _die_before(*points[point])
    outcome = monitoring.monitor_language(LANGUAGE, make_config(Path(logs)), ".")
    Path(out).write_text(json.dumps(outcome), encoding="utf-8")


def _die_before(target, name: str, nth: int) -> None:
    """Kill this process when `target.name` is called for the `nth` time."""
    original, calls = getattr(target, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(target, name, wrapped)

"""A usage log on the disk, a language's observations, and a stand-in for the encoder."""

import gzip
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from compass_core.config import MonitoringConfig
from compass_core.monitoring.observations import ObservationLog, Observed
from compass_core.monitoring.privacy import open_key

START = datetime(2026, 3, 2, tzinfo=UTC)
"""A Monday."""
SPACE = "space1"
LANGUAGE = "swh_Latn"


def observe(texts):
    """Place texts by their length: cheap, and the same in every process."""
    sizes = np.array([len(text) for text in texts])
    return Observed(
        cluster_ids=(sizes % 5).astype(np.int32),
        distances=(sizes / 1000).astype(np.float32),
        outside=sizes > 100,
    )


def row(number, minutes=0, **changes):
    """Return one record of a log, as a mapping."""
    return {
        "id": f"record-{number}",
        "time": (START + timedelta(minutes=minutes)).isoformat(),
        "prompt": f"swali la {number}",
        "language": "sw",
        "user": f"user-{number % 7}",
    } | changes


@dataclass
class Usage:
    """A home with a folder of logs, and the observations of one language."""

    home: Path
    log: ObservationLog

    def config(self, **changes):
        log = {"path": str(self.home / "logs")} | changes.pop("log", {})
        return MonitoringConfig.model_validate({"log": log} | changes)

    def write(self, rows, name="a.jsonl"):
        """Write rows (text as it stands, mappings as JSON) to a file of the log."""
        lines = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in rows]
        path = self.home / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(lines).encode("utf-8", "surrogateescape")
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    def take_in(self, config=None, *, now=None, space=SPACE, **changes):
        return self.log.take_in(
            config or self.config(),
            base_folder=self.home,
            observe=observe,
            space=space,
            now=now or START + timedelta(days=60),
            **changes,
        )

    def append(self, rows, *, now=None, space=SPACE, **changes):
        now = now or START + timedelta(days=60)
        return self.log.append(rows, observe, space, now=now, **changes)

    def windows(self, config=None, *, now=None, space=SPACE):
        now = now or START + timedelta(days=60)
        return self.log.windows(config or self.config(), now, space)

    def again(self):
        """Return the same observations as another process would open them."""
        self.log = ObservationLog(self.log.folder, open_key(self.home / "usage", {}))
        return self


@pytest.fixture
def usage(tmp_path):
    home = tmp_path / "home"
    (home / "usage").mkdir(parents=True)
    (home / "logs").mkdir()
    log = ObservationLog(home / "usage" / LANGUAGE, open_key(home / "usage", {}))
    return Usage(home, log)

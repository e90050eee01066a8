"""A home is backed up while a run goes on, lost, and brought back: by the command line alone."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "starter.yaml"
SMALL = [
    "data.n_coverage=60", "data.n_usage=60", "data.n_test=120", "clustering.n_clusters=8",
    "selection.budget=40", "training.min_steps=12", "training.max_steps=12", "training.lora_rank=4",
    "execution.trainers=0", "baselines=", "clustering.relevance_quantile=0",
]  # fmt: skip


PATIENT = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600"}
"""A busy machine takes its time to start a server; how long is not what is tested here."""


def environment(home, **values):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    return (
        kept
        | {"COMPASS_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
        | PATIENT
        | values
    )


def start(home, *arguments, **values):
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *map(str, arguments)],
        cwd=ROOT,
        env=environment(home, **values),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def compass(home, *arguments, **values):
    process = start(home, *arguments, **values)
    out, err = process.communicate(timeout=1_500)
    assert process.returncode == 0, err
    return out, err


def champions(home):
    out, _ = compass(home, "status", "--json")
    kept = ("champion", "adapter_sha256", "since", "accuracy", "run_id", "decision", "data")
    rows = json.loads(out)["languages"]
    return {row["language"]: {name: row[name] for name in kept} for row in rows}


def made(home):
    return {path.parent for path in home.glob("store/*/*/MANIFEST.json")}


@pytest.mark.nightly
@pytest.mark.timeout(3_000)
def test_backup_of_a_running_home_restores_to_the_same_service(tmp_path):
    home, backup = tmp_path / "home", tmp_path / "backup"
    _, err = compass(home, "adapt", CONFIG, *SMALL, "languages=sw", COMPASS_LOG_FORMAT="json")
    rows = [json.loads(line) for line in err.splitlines()]
    trained = [row for row in rows if row["stage"].startswith("adapter-train")]
    assert {row["language"] for row in trained} == {"swh_Latn"}
    assert len({row["run"] for row in trained if row["run"]}) == 1
    other = start(home, "adapt", CONFIG, *SMALL, "languages=tr")
    deadline = time.monotonic() + 900
    while len(list(home.glob("runs/*/config.yaml"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    compass(home, "backup", backup)
    assert other.poll() is None, "the back-up was to be made while a run goes on"
    other.communicate(timeout=1_500)
    before = champions(home)["swh_Latn"]
    compass(home, "backup", backup)
    whole = len(list(backup.glob("objects/*/*")))
    compass(home, "backup", backup, "--verify")
    shutil.rmtree(home)

    home = tmp_path / "elsewhere"
    compass(home, "restore", backup)
    assert champions(home)["swh_Latn"] == before
    assert compass(home, "generate", "-l", "sw", "<kind?> Paris =", "--max-new-tokens", "4")
    artefacts = made(home)
    compass(home, "adapt", CONFIG, *SMALL, "languages=sw")
    new = {path.parent.name for path in made(home) - artefacts}
    assert new <= {"evaluate", "decision"}, "only the comparison with the champion is new"
    assert whole < 1_000
    shutil.rmtree(home)
    first = sorted(backup.glob("snapshots/*.json"))
    first[1].unlink()
    compass(home, "restore", backup)
    assert champions(home)["swh_Latn"] == before
    compass(home, "upgrade", "--check")

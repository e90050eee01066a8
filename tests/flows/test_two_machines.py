"""Two machines, one bucket, one PostgreSQL for Prefect and MLflow: the second finds all done."""

import subprocess
import sys
import time

import boto3
import psycopg2
import pytest
import yaml

from tests.object_storage import CREDENTIALS, Bucket
from tests.real_server import ROOT, PrefectServer, clean_environment, end

pytest_plugins = ["tests.object_storage", "tests.postgres"]

SMALL = {
    "project": "small",
    "languages": ["swh_Latn"],
    "data": {"kind": "starter", "n_coverage": 60, "n_usage": 60, "n_test": 120},
    "clustering": {"n_clusters": [8], "relevance_quantile": 0},
    "selection": {"budget": 40},
    "training": {
        "lora_rank": 4,
        "learning_rate": 3e-3,
        "batch_size": 8,
        "min_steps": 4,
        "max_steps": 4,
        "max_length": 96,
    },
    "evaluation": {"n_bootstrap": 100},
    "baselines": [],
    "execution": {"trainers": 0, "max_parallel": 1},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory, s3_server, postgres):
    """What machines share: a bucket, a registry and a Prefect server, both on PostgreSQL."""
    folder = tmp_path_factory.mktemp("shared")
    database = postgres.database("postgresql+asyncpg")
    server = PrefectServer(folder, PREFECT_SERVER_DATABASE_CONNECTION_URL=database)
    secrets = CREDENTIALS | {"AWS_ENDPOINT_URL": s3_server}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="two-machines")
        server.env |= secrets | {
            "COMPASS_STORE": "s3://two-machines/compass",
            "MLFLOW_TRACKING_URI": postgres.database("postgresql"),
            "PYTHONPATH": str(ROOT),
        }
        server.database, server.password = database, postgres.password
        server.start()
        yield server
        server.stop()


_STEPS = "prefect.deployments.steps"


class Machine:
    """A home of its own and the command line, with what all machines share."""

    def __init__(self, home, shared):
        self.home = home
        ours = {"COMPASS_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
        self.env = clean_environment() | shared.env | ours
        del self.env["PREFECT_SERVER_DATABASE_CONNECTION_URL"]  # only the server's
        home.mkdir()
        self.config = home / "compass.yaml"
        self.config.write_text(yaml.safe_dump(SMALL), "utf-8")

    def compass(self, *arguments):
        command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments]
        ran = subprocess.run(
            command, env=self.env, cwd=self.home, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def made(self):
        """Return the kinds of artefacts whose files lie in this machine's mirror."""
        root = self.home / "store"
        return {path.parent.parent.name for path in root.glob("*/*/MANIFEST.json")}


def texts_with(folder, word):
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes()
    ]


@pytest.mark.nightly
def test_second_machine_finds_everything_done_and_no_password_is_written(shared, tmp_path):
    bucket = Bucket("s3://two-machines/compass")
    first, second = Machine(tmp_path / "a", shared), Machine(tmp_path / "b", shared)
    said = first.compass("adapt", "compass.yaml")
    objects = bucket.names()
    assert any(name.startswith("adapter-train/") for name in objects)
    said += second.compass("adapt", "compass.yaml")
    assert bucket.names() == objects, "the second machine made nothing"
    assert "adapter-train" in first.made()
    fetched = second.made() & {"embed", "sketch", "assign", "fit"}
    assert not fetched, "what nobody opened was not fetched"
    said += second.compass("rebuild-index")
    manifest = second.compass("manifest", "-l", "sw")
    assert "40" in manifest
    said += second.compass("status") + second.compass("doctor") + manifest
    limits = shared.post("/v2/concurrency_limits/filter", {})
    assert [limit["name"] for limit in limits] == ["compass-language-swh_Latn"]
    for word in (shared.password, CREDENTIALS["AWS_SECRET_ACCESS_KEY"]):
        assert word not in said
        assert texts_with(first.home, word) == texts_with(second.home, word) == []
        with psycopg2.connect(shared.database.replace("+asyncpg", "")) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT count(*) FROM log WHERE message LIKE %s", [f"%{word}%"])
            assert cursor.fetchall() == [(0,)]


@pytest.mark.nightly
def test_deployment_runs_on_a_worker_of_a_third_machine(shared, tmp_path):
    home = tmp_path / "worker"
    machine = Machine(home, shared)
    flow = shared.post("/flows/", {"name": "adapt-language"})
    worker = shared.worker("shared", machine.env)
    config = {name: value for name, value in SMALL.items() if name != "languages"}
    deployment = {
        "name": "small",
        "flow_id": flow["id"],
        "work_pool_name": "shared",
        "entrypoint": "flows.adapt_language.adapt_language",
        "path": str(ROOT),
        "pull_steps": [{f"{_STEPS}.set_working_directory": {"directory": str(home)}}],
        "parameters": {"config": config | {"language": "swh_Latn"}},
    }
    try:
        made = shared.post("/deployments/", deployment)
        started = time.monotonic()
        body = {"state": {"type": "SCHEDULED"}}
        run = shared.post(f"/deployments/{made['id']}/create_flow_run", body)
        ended = shared.wait_for_end(run["id"])
        assert ended["state"]["type"] == "COMPLETED", ended["state"]
        assert time.monotonic() - started < 400
        assert (home / "runs" / "LAST").is_file()
        worker_log = (shared.folder / "worker.log").read_text("utf-8")
        assert shared.password not in worker_log
    finally:
        end(worker)

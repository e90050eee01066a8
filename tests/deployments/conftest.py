"""A real Prefect server and a real worker process on loopback, as a person would start them."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
POOL = "compass-test"
_START_SECONDS = 180
_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Server:
    """A running server: its address, its environment, and requests as the interface sends them."""

    url: str
    env: dict
    folder: Path

    def get(self, path):
        return httpx.get(f"{self.url}{path}", timeout=60).raise_for_status().json()

    def post(self, path, body):
        answer = httpx.post(f"{self.url}{path}", json=body, timeout=60)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def run_deployment(self, name, parameters=None):
        """Start a deployment's run as the button in the interface does; return its id."""
        deployment = self.get(f"/deployments/name/{name}")
        body = {"parameters": parameters or {}, "state": {"type": "SCHEDULED"}}
        return self.post(f"/deployments/{deployment['id']}/create_flow_run", body)["id"]

    def flow_run(self, run_id):
        return self.get(f"/flow_runs/{run_id}")

    def runs_of(self, name):
        body = {"deployments": {"name": {"any_": [name.partition("/")[2]]}}}
        return self.post("/flow_runs/filter", body)

    def events(self, name):
        body = {"filter": {"event": {"name": [name]}, "order": "ASC"}, "limit": 50}
        return self.post("/events/filter", body)["events"]

    def states(self, run_id):
        return self.get(f"/flow_run_states/?flow_run_id={run_id}")

    def wait_for(self, condition, what, seconds=240):
        """Return the first true value of `condition`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.5)
        raise AssertionError(f"{what} did not happen within {seconds} s")

    def wait_for_end(self, run_id, seconds=400):
        """Return the run once it ended."""
        final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

        def ended():
            run = self.flow_run(run_id)
            return run if run["state"]["type"] in final else None

        return self.wait_for(ended, f"the end of run {run_id}", seconds)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _clean_environment():
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "MLFLOW_", "COMPASS_"))
    }
    if "COMPASS_TEST_DATA" in os.environ:
        kept["COMPASS_TEST_DATA"] = os.environ["COMPASS_TEST_DATA"]
    return kept


def _start(arguments, env, log, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", *arguments],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _end(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server with a home, a database and a port of its own."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = _clean_environment() | _SETTINGS
    env |= {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "COMPASS_HOME": str(folder / "home"),
    }
    process = _start(["server", "start"], env, folder / "server.log", folder)
    try:
        started = Server(url, env, folder)
        started.wait_for(lambda: _answers(url, process), "the server's start", _START_SECONDS)
        yield started
    finally:
        _end(process)


def _answers(url, process):
    assert process.poll() is None, "the server ended"
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
def worker(server):
    """A worker process of the server's pool; its runs see the tests' own flows too."""
    server.post("/work_pools/", {"name": POOL, "type": "process"})
    python_path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    env = server.env | {"PYTHONPATH": python_path}
    process = _start(
        ["worker", "start", "--pool", POOL, "--type", "process"],
        env,
        server.folder / "worker.log",
        server.folder,
    )
    try:
        yield process
    finally:
        _end(process)


@pytest.fixture
def connected(server, monkeypatch):
    """This process, and the home it works in, connected to the server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("COMPASS_HOME", server.env["COMPASS_HOME"])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.setenv(name, server.env[name])
    with temporary_settings({PREFECT_API_URL: server.url}):
        yield server

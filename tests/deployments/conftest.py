"""A real Prefect server and a real worker process on loopback, as a person would start them."""

import contextlib
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

from compass_core.config import AdaptConfig
from compass_core.config_files import dump_config

SMALL = {
    "project": "small",
    "languages": ["swh_Latn", "tur_Latn"],
    "data": {"kind": "starter", "n_coverage": 60, "n_usage": 60, "n_test": 120},
    "clustering": {"n_clusters": [8], "relevance_quantile": 0},
    "selection": {"budget": 40},
    "training": {
        "lora_rank": 4,
        "learning_rate": 3e-3,
        "batch_size": 8,
        "min_steps": 12,
        "max_steps": 12,
        "max_length": 128,
    },
    "evaluation": {"n_bootstrap": 100},
    "execution": {"trainers": 0, "max_parallel": 2},
}
collect_ignore = ["stub_update.py"]  # a flow that replaces part of the real one when imported

ROOT = Path(__file__).parents[2]
POOL = "compass-test"
_START_SECONDS = 180
_ANSWER_SECONDS = 180
_LOCKED_TIMES = 20
_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
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

    def ask(self, method, path, body=None, known=()):
        """Send a request; again while SQLite is locked, which on a busy machine it is for long."""
        for _ in range(_LOCKED_TIMES):
            answer = httpx.request(method, f"{self.url}{path}", json=body, timeout=_ANSWER_SECONDS)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(2)
        assert answer.is_success or answer.status_code in known, answer.text
        return answer.json() if answer.content else None

    def get(self, path):
        return self.ask("GET", path)

    def post(self, path, body):
        return self.ask("POST", path, body)

    def patch(self, path, body):
        self.ask("PATCH", path, body)

    def make_pool(self, name):
        body = {"name": name, "type": "process"}
        self.ask("POST", "/work_pools/", body, known=[httpx.codes.CONFLICT])

    def run_deployment(self, name, parameters=None):
        """Start a deployment's run as the button in the interface does; return its id."""
        deployment = self.get(f"/deployments/name/{name}")
        body = {"parameters": parameters or {}, "state": {"type": "SCHEDULED"}}
        return self.post(f"/deployments/{deployment['id']}/create_flow_run", body)["id"]

    def flow_run(self, run_id):
        return self.get(f"/flow_runs/{run_id}")

    def runs_of(self, name):
        named = zip(("flows", "deployments"), name.split("/"), strict=True)
        body = {key: {"name": {"any_": [value]}} for key, value in named}
        return self.post("/flow_runs/filter", body)

    def task_runs(self, run_id):
        return self.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})

    def retry(self, run_id):
        """Do what the button Retry of the interface does."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
        return self.post(f"/flow_runs/{run_id}/set_state", {"state": state})

    def trace(self, *run_ids, names=()):
        """Return what happened to runs when, as the server tells it, with events of `names`."""
        rows = []
        for run_id in run_ids:
            name = self.flow_run(run_id)["name"]
            for state in self.states(run_id):
                told = (state["message"] or "").split("\n")[0][:110]
                rows.append((state["timestamp"], f"{name:<18}{state['name']:<22}{told}"))
            for task in self.task_runs(run_id):
                if task["end_time"]:
                    rows.append((task["end_time"], f"  {task['name']:<34}{task['state']['name']}"))
        start = min(time for time, _ in rows)
        for name in names:
            for event in self.events(name):
                told = event["resource"].get("prefect.resource.name", "")
                rows.append((event["occurred"], f"{'event':<18}{name:<22}{told}"))
        return "".join(f"{time[11:19]}  {text}\n" for time, text in sorted(rows) if time >= start)

    def events(self, name):
        body = {"filter": {"event": {"name": [name]}, "order": "ASC"}, "limit": 50}
        return self.post("/events/filter", body)["events"]

    def states(self, run_id):
        return self.get(f"/flow_run_states/?flow_run_id={run_id}")

    def wait_for(self, condition, what, seconds=400):
        """Return the first true value of `condition`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if found := condition():
                    return found
            time.sleep(0.5)
        raise AssertionError(f"{what} did not happen within {seconds} s")

    def wait_for_end(self, run_id, seconds=600):
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


@contextlib.contextmanager
def _working(server, pool=POOL, **more):
    """A worker process of a pool; its runs see the tests' own flows too."""
    server.make_pool(pool)
    python_path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    env = server.env | {"PYTHONPATH": python_path} | more
    process = _start(
        ["worker", "start", "--pool", pool, "--type", "process"],
        env,
        server.folder / f"worker-{pool}.log",
        server.folder,
    )
    try:
        yield process
    finally:
        _end(process)


@pytest.fixture(scope="session")
def worker(server):
    """A worker process of the server's pool."""
    with _working(server) as process:
        yield process


@pytest.fixture(scope="session")
def working(server):
    """Start a worker of a pool, with more in its environment: a context manager."""
    return lambda pool=POOL, **more: _working(server, pool, **more)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A configuration file whose runs are real and short."""
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(dump_config(AdaptConfig.model_validate(SMALL)), "utf-8")
    return path


@pytest.fixture(scope="session")
def command(server, small):
    """The command line in the folder of the small configuration, connected to the server."""

    def run(name, *options):
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", name, str(small), *options],
            cwd=small.parent,
            env=server.env | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    return run


@pytest.fixture
def deploy(connected):
    """Deploy flows by name, some of them from a stub, with all automations."""
    return _deploy


def _deploy(entrypoints, config, *, pool=POOL, name="", notify="", folder=None):
    from prefect.client.orchestration import get_client

    from tasks.automations import apply_automations, prepare_automations
    from tasks.deployments import FOLDER, Wanted, apply_deployments, prepare_deployments
    from tasks.work_pools import read_pool_kind

    folder = folder or FOLDER
    kind = read_pool_kind(FOLDER, "process", Path.cwd(), name=name)
    wanted = Wanted(config, pool, kind, name)
    values = prepare_deployments(wanted, only=tuple(entrypoints), folder=folder)
    flows = [d["entrypoint"].rpartition(".")[2].replace("_", "-") for d in values["deployments"]]
    for flow, deployment in zip(flows, values["deployments"], strict=True):
        deployment["entrypoint"] = entrypoints[flow] or deployment["entrypoint"]
    with get_client(sync_client=True) as client:
        apply_deployments(client, values, wanted, replace=True)
        prepared = prepare_automations(client, wanted, notify=notify, folder=folder)
        return apply_automations(client, *prepared, wanted)


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

"""A real Prefect server and workers on loopback, that a test may kill and start again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
SETTINGS = {
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
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def clean_environment():
    """Return this process's environment without what points at a server, a registry or a home."""
    ours = ("PREFECT_", "MLFLOW_", "COMPASS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    if "COMPASS_TEST_DATA" in os.environ:
        kept["COMPASS_TEST_DATA"] = os.environ["COMPASS_TEST_DATA"]
    return kept


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what, seconds=240):
    """Return the first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def start(arguments, env, log, cwd):
    """Start ``python -m …`` in a session of its own, writing to `log`."""
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process, number=signal.SIGTERM):
    """End a process and its children."""
    if process.poll() is None:
        os.killpg(process.pid, number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def processes_of(home):
    """Return the running processes whose environment names this home."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            named = f"COMPASS_HOME={home}\0".encode()
            if folder.name.isdigit() and named in (folder / "environ").read_bytes() + b"\0":
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_for_end_of(home, seconds=60):
    """Wait until no process of this home is left, but for Python's own helper of this one."""
    left = []

    def ended():
        left[:] = [(pid, command_of(pid)) for pid in processes_of(home)]
        left[:] = [entry for entry in left if "resource_tracker" not in entry[1]]
        return not left

    try:
        wait_for(ended, "the end of every process", seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}: {left}") from None


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    except OSError:
        return ""


class PrefectServer:
    """A server with a home, a database and a port of its own, which survive a restart.

    Requests are those that the interface sends.
    """

    def __init__(self, folder, **settings):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.env = clean_environment() | SETTINGS | settings
        self.env |= {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self.port),
            "COMPASS_HOME": str(folder / "home"),
        }
        self.process = None

    def start(self):
        arguments = ["prefect", "server", "start"]
        self.process = start(arguments, self.env, self.folder / "server.log", self.folder)
        wait_for(self._answers, "the server's start", 180)
        return self

    def _answers(self):
        assert self.process.poll() is None, "the server ended"
        try:
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def kill(self):
        end(self.process, signal.SIGKILL)

    def stop(self):
        end(self.process)

    def worker(self, pool, env=None):
        """Start a worker process of a process pool, which is made where it is missing."""
        body = {"name": pool, "type": "process"}
        self.send("POST", "/work_pools/", body)
        python_path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "deployments")])
        arguments = ["prefect", "worker", "start", "--pool", pool, "--type", "process"]
        environment = self.env | {"PYTHONPATH": python_path} | (env or {})
        return start(arguments, environment, self.folder / "worker.log", self.folder)

    def send(self, method, path, body=None):
        """Send a request as the interface does, and again while the server says that it is busy."""

        def answered():
            answer = httpx.request(method, f"{self.url}{path}", json=body, timeout=60)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        return wait_for(answered, f"an answer to {path}", 60)

    def get(self, path):
        return self.send("GET", path).raise_for_status().json()

    def post(self, path, body):
        answer = self.send("POST", path, body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def deploy(self, flow, entrypoint, pool, folder, env):
        """Make a deployment of a flow whose runs start in `folder` with `env`; return its name."""
        flow_id = self.post("/flows/", {"name": flow})["id"]
        body = {"name": folder.name, "flow_id": flow_id, "entrypoint": entrypoint}
        body |= {"work_pool_name": pool, "job_variables": {"env": env}, "path": str(folder)}
        step = "prefect.deployments.steps.set_working_directory"
        body |= {"pull_steps": [{step: {"directory": str(folder)}}]}
        self.post("/deployments/", body)
        return f"{flow}/{folder.name}"

    def run_deployment(self, name, parameters=None):
        """Start a deployment's run as the button in the interface does; return its id."""
        deployment = self.get(f"/deployments/name/{name}")
        body = {"parameters": parameters or {}, "state": {"type": "SCHEDULED"}}
        return self.post(f"/deployments/{deployment['id']}/create_flow_run", body)["id"]

    def cancel(self, run_id):
        """Cancel a run as the button in the interface does."""
        self.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})

    def flow_run(self, run_id):
        return self.get(f"/flow_runs/{run_id}")

    def task_runs(self, run_id):
        body = {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200}
        return self.post("/task_runs/filter", body)

    def runs(self):
        return self.post("/flow_runs/filter", {"sort": "START_TIME_DESC"})

    def wait_for_end(self, run_id, seconds=400):
        """Return the run once it ended."""

        def ended():
            run = self.flow_run(run_id)
            return run if run["state"]["type"] in FINAL else None

        return wait_for(ended, f"the end of run {run_id}", seconds)

"""A real MLflow server that is down, goes down, or whose answer is lost."""

import http.client
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.real_server import clean_environment, end, free_port, start, wait_for

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1500)]
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}


class MlflowServer:
    def __init__(self, folder):
        self.folder, self.port, self.process = folder, free_port(), None
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        arguments = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        arguments += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/served.db"]
        arguments += ["--artifacts-destination", str(self.folder / "served")]
        env = clean_environment() | quiet
        self.process = start(arguments, env, self.folder / "mlflow.log", self.folder)

        def answers():
            assert self.process.poll() is None, (self.folder / "mlflow.log").read_text()
            try:
                return httpx.get(f"{self.url}/health", timeout=5).is_success
            except httpx.HTTPError:
                return False

        wait_for(answers, "MLflow's start", 240)
        return self

    def kill(self):
        end(self.process, signal.SIGKILL)


@pytest.fixture
def mlflow(tmp_path):
    folder = tmp_path / "mlflow"
    folder.mkdir()
    started = MlflowServer(folder).start()
    yield started
    started.kill()


def stopped(process):
    with open(f"/proc/{process.pid}/stat") as stat:  # noqa: PTH123 - no file, but a view
        return stat.read().rpartition(")")[2].split()[0] == "T"


def test_registry_that_is_down_is_said_before_anything_is_trained(bench):
    env = QUICK | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    done = bench.write().adapt(**env)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "E95" in said
    assert "MLFLOW_TRACKING_URI" in said
    assert "Traceback" not in said
    assert not bench.artefacts()


def test_training_is_kept_when_the_registry_goes_down_and_registered_by_the_next_run(
    bench, mlflow, ended
):
    bench.write()
    env = QUICK | {"MLFLOW_TRACKING_URI": mlflow.url}
    run = bench.begin(**env, COMPASS_FAULT="settle.start:stop")
    ended.append(run)
    wait_for(lambda: stopped(run), "the moment before the registration", 240)
    mlflow.kill()
    os.kill(run.pid, signal.SIGCONT)
    assert run.wait(400) == 1
    said = bench.said()
    assert "E94" in said
    assert "registers without training" in said
    assert "Traceback" not in said
    run_id = bench.server.runs()[0]["id"]
    assert bench.server.flow_run(run_id)["state"]["type"] in ("FAILED", "COMPLETED")
    before = bench.written()
    trained = [p.parent for p in bench.home.glob("store/adapter-train/*/MANIFEST.json")]
    (record,) = bench.home.glob("runs/*/run.json")
    assert trained
    for folder in trained:
        assert folder.name in record.read_text(), "a cleaning would delete what waits"

    mlflow.start()
    again = bench.adapt(**env)
    assert again.returncode == 0, again.stdout + again.stderr
    after = bench.written()
    assert {p: after[p] for p in before} == before, "finished work was done again"
    (model,) = bench.serving(**env)["models"].values()
    assert (list(model["versions"]), model["champion"]) == (["1"], "1")


class _Forgetful(BaseHTTPRequestHandler):
    """Pass a request on; of those named in `drop`, lose the answer as often as is said there."""

    protocol_version = "HTTP/1.1"

    def _pass(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else None
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        upstream.request(self.command, self.path, body, kept)
        answer = upstream.getresponse()
        data = answer.read()
        for path, times in self.server.drop.items():
            if self.path.endswith(path) and times and answer.status == http.HTTPStatus.OK:
                self.server.drop[path] -= 1
                self.close_connection = True
                self.connection.close()
                return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments):
        return

    def handle(self):
        try:
            super().handle()
        except (OSError, ValueError):  # the connection was closed on purpose
            return


for _method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Forgetful, f"do_{_method}", _Forgetful._pass)


@pytest.fixture
def forgetful(mlflow):
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Forgetful)
    proxy.upstream, proxy.drop = mlflow.port, {}
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield proxy
    proxy.shutdown()


@pytest.mark.parametrize("times", [1, 2])
def test_answer_that_is_lost_makes_no_second_version_and_no_second_run(bench, forgetful, times):
    forgetful.drop = {"/runs/create": times, "/model-versions/create": times}
    env = QUICK | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{forgetful.server_address[1]}"}
    done = bench.write().adapt(**env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(forgetful.drop.values()) == {0}, "every answer was lost as often as asked"
    view = bench.serving(**env)
    (model,) = view["models"].values()
    assert len(model["versions"]) == 1
    assert model["champion"] in model["versions"]
    assert view["runs"] == ["FINISHED"]

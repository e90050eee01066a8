"""The image's installation and every role of the compose file, run for real, without an engine.

`COMPASS_IMAGE_FOLDER` keeps the installation for the next time (some minutes less).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.docker.native import LIBRARY, Database, Image, Stack, ask
from tests.docker.rules import ROOT
from tests.real_server import FINAL, processes_of, wait_for

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1500)]
SMALL = [
    "data.n_coverage=60", "data.n_usage=60", "data.n_test=120", "clustering.n_clusters=8",
    "selection.budget=40", "execution.trainers=1", "baselines=", "languages=sw",
]  # fmt: skip
INFO = {"/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info"}
OPEN = {
    "prefect": {"/api/health", "/api/ready", "/ui-settings"},
    "mlflow": {"/health"} | INFO,
}
"""Answered without a login: health, and what both pages ask before they know who looks (which kind
of store, whether there is a login); nothing of anybody's."""


@pytest.fixture(scope="module")
def image(dockerfile):
    """The image's files, installed with the Dockerfile's own command into a clean environment."""
    kept = os.environ.get("COMPASS_IMAGE_FOLDER")
    folder = Path(kept or tempfile.mkdtemp(prefix="compass-image-"))
    folder.mkdir(exist_ok=True)
    for place in ("home", "mlflow", "tmp"):
        shutil.rmtree(folder / place, ignore_errors=True)
    built = Image(folder, dockerfile)
    built.copy()
    if not Path(built.here("/opt/compass/venv/bin/compass")).exists():
        built.install(folder / "install.log")
    yield built
    if not kept:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stack(image, tmp_path_factory):
    """PostgreSQL and both servers, started with the commands and settings of the compose file."""
    if not list(LIBRARY.glob("*/bin/initdb")):
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="compass-stack-"))
    folder.chmod(0o755)
    subprocess.run([sys.executable, ROOT / "docker" / "make_env.py", folder], check=True)
    secrets = folder / "secrets"
    secrets.chmod(0o755)
    stack = Stack(image, secrets)
    arguments = stack.services["postgres"]["environment"]["POSTGRES_INITDB_ARGS"]
    stack.database = Database(folder / "pg", stack.ports["postgres"], arguments, secrets)
    try:
        stack.run("check", "check")
        stack.database.start()
        for service in ("prefect", "mlflow"):
            stack.start(service)
        for service in ("prefect", "mlflow"):
            wait_for(lambda s=service: _alive(stack, s), f"{service}'s start", 300)
        yield stack
    finally:
        stack.end()
        stack.database.stop()
        shutil.rmtree(folder)


def _alive(stack, service):
    log = stack.image.folder / f"{service}.log"
    assert stack.running[service].poll() is None, log.read_text()[-2000:]
    return stack.is_well(service)


@pytest.fixture(scope="module")
def logins(stack):
    return {
        name: f"compass:{(stack.secrets / f'{name}_password').read_text()}"
        for name in ("prefect", "mlflow")
    }


def test_the_image_holds_the_runtime_and_no_development_tools(image):
    probe = (
        "import torch, prefect, mlflow, psycopg2, s3fs, flask_wtf, flows.cli; print('all there')"
    )
    python = image.here("/opt/compass/venv/bin/python")
    answer = subprocess.run(
        [python, "-c", probe], env=image.environment, capture_output=True, text=True, check=False
    )
    assert answer.stdout == "all there\n", answer.stderr
    packages = Path(image.here("/opt/compass/venv")).glob("lib/python*/site-packages/*")
    names = {path.name.split("-")[0] for path in packages}
    assert not names & {"pytest", "ruff", "mypy", "moto", "hypothesis", "ray", "distributed"}


def test_each_service_reaches_its_own_database_only(stack):
    database = stack.database
    secret = {n: (stack.secrets / f"{n}_db_password").read_text() for n in ("prefect", "mlflow")}
    assert database.ask("prefect", "prefect", secret["prefect"]) == ""
    assert database.ask("mlflow", "mlflow_auth", secret["mlflow"]) == ""
    assert "permission denied" in database.ask("mlflow", "prefect", secret["mlflow"])
    assert "permission denied" in database.ask("prefect", "postgres", secret["prefect"])
    assert "no password supplied" in database.ask("prefect", "prefect")
    assert "authentication failed" in database.ask("prefect", "prefect", secret["mlflow"])


def test_prefect_wants_a_login_and_a_csrf_token(stack, logins):
    url = stack.url("prefect", "/api/flows/filter")
    page = stack.url("prefect", "/api/admin/version")
    for login in ("", "compass:wrong-0123456789"):
        assert ask(page, login=login)[0] == 401
        assert ask(stack.url("prefect", "/api/csrf-token?client=test"), login=login)[0] == 401
    assert ask(page, login=logins["prefect"])[0] == 200
    status, said = ask(url, "POST", logins["prefect"], body=b"{}")
    assert (status, b"CSRF" in said) == (403, True)
    token = ask(stack.url("prefect", "/api/csrf-token?client=test"), login=logins["prefect"])[1]
    headers = {
        "Prefect-Csrf-Token": json.loads(token)["token"],
        "Prefect-Csrf-Client": "test",
    }
    assert ask(url, "POST", headers=headers, body=b"{}")[0] == 401
    assert ask(url, "POST", logins["prefect"], headers, b"{}")[0] == 200


def test_mlflow_wants_a_login(stack, logins):
    url = stack.url("mlflow", "/api/2.0/mlflow/experiments/search")
    body = b'{"max_results": 1}'
    assert ask(url, "POST", body=body)[0] == 401
    assert ask(url, "POST", "compass:password1234", body=body)[0] == 401
    assert ask(url, "POST", logins["mlflow"], body=body)[0] == 200


def test_an_unknown_host_name_is_not_answered(stack, logins):
    strange = {"Host": "evil.example"}
    assert ask(stack.url("prefect", "/api/health"), headers=strange)[0] == 400
    url = stack.url("mlflow", "/api/2.0/mlflow/experiments/get?experiment_id=0")
    assert ask(url, login=logins["mlflow"])[0] == 200
    assert ask(url, login=logins["mlflow"], headers=strange)[0] == 403


def test_without_a_login_only_health_answers(stack, logins, capsys):
    """Every route that the servers themselves list, asked by a stranger (S17, G30)."""
    asked = {
        "prefect": _prefect_routes(stack, logins["prefect"]),
        "mlflow": _mlflow_routes(stack.image),
    }
    lines = []
    for service, routes in asked.items():
        answers = {route: ask(stack.url(service, route[1]), route[0])[0] for route in routes}
        answered = {path for (_, path), status in answers.items() if status < 400}
        counts = sorted(Counter(answers.values()).items())
        lines.append(
            f"{service:8} {len(routes):4} routes  " + "  ".join(f"{s}: {n}" for s, n in counts)
        )
        lines += [f"         open  {path}" for path in sorted(answered)]
        assert len(routes) >= 100
        assert answered <= OPEN[service], answered
        assert set(answers.values()) <= {200, 401, 403}
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert ask(stack.url("prefect", path))[0] == 404
        assert ask(stack.url("mlflow", path))[0] == 401
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


def _prefect_routes(stack, login):
    described = json.loads(ask(stack.url("prefect", "/api/openapi.json"), login=login)[1])
    prefix = "" if any(path.startswith("/api/") for path in described["paths"]) else "/api"
    found = {
        (method.upper(), re.sub(r"\{\w+\}", "1", prefix + path))
        for path, methods in described["paths"].items()
        for method in methods
    }
    return sorted(found | {("GET", "/ui-settings"), ("GET", "/api/health"), ("GET", "/api/ready")})


def _mlflow_routes(image):
    listing = (
        "import json; from mlflow.server import app; print(json.dumps([[m, r.rule] "
        "for r in app.url_map.iter_rules() for m in r.methods - {'HEAD', 'OPTIONS'}]))"
    )
    python = image.here("/opt/compass/venv/bin/python")
    command = [python, "-c", listing]
    answer = subprocess.run(
        command, env=image.environment, capture_output=True, text=True, check=True
    )
    rules = json.loads(answer.stdout.splitlines()[-1])
    static = ("/static-files", "/<path")
    return sorted({(m, re.sub(r"<[^>]+>", "1", r)) for m, r in rules if not r.startswith(static)})


def test_a_worker_runs_a_deployment_and_stops_when_told(stack, logins):
    home = stack.image.folder / "home"
    before = set(processes_of(home))
    _deploy(stack, "training.min_steps=20", "training.max_steps=20")
    stack.start("worker")
    wait_for(lambda: stack.is_well("worker"), "the worker's start", 240)
    run = _run(stack, "adapt-languages/adapt-languages")
    state = wait_for(lambda: _final(stack, logins, run), "the run's end", 600)
    assert state == "COMPLETED", (stack.image.folder / "worker.log").read_text()[-3000:]
    url = stack.url("mlflow", "/api/2.0/mlflow/registered-models/search?max_results=5")
    assert b"compass." in ask(url, login=logins["mlflow"])[1]
    assert list((stack.image.folder / "mlflow").rglob("adapter_model.safetensors"))

    long = [
        "training.min_steps=100000",
        "training.max_steps=100000",
        "training.checkpoint_every=20",
    ]
    _deploy(stack, *long)
    _run(stack, "adapt-languages/adapt-languages")
    wait_for(lambda: list(home.glob("store/checkpoints/*/step-*")), "a checkpoint", 600)
    assert len(set(processes_of(home)) - before) >= 3  # worker, flow, trainer
    assert stack.stop("worker", seconds=85) < 85  # the compose file's grace period is 90 s
    assert not stack.is_well("worker")
    # What is left now dies with the container's first process; nothing should need that.
    wait_for(lambda: not set(processes_of(home)) - before, "the trainer's end", 30)


def _deploy(stack, *overrides):
    words = ["compass", "deploy", "configs/starter.yaml", "--no-schedule", *SMALL, *overrides]
    stack.run("worker", *words)


def _run(stack, name):
    said = stack.run("worker", "prefect", "deployment", "run", name)
    return re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", said)[0]


def _final(stack, logins, run):
    answer = ask(stack.url("prefect", f"/api/flow_runs/{run}"), login=logins["prefect"])[1]
    state = json.loads(answer)["state"]["type"]
    return state if state in FINAL else None


def test_health_turns_red_when_a_service_or_its_database_dies(stack):
    assert stack.is_well("prefect")
    assert stack.is_well("mlflow")
    stack.stop("mlflow")
    assert not stack.is_well("mlflow")
    stack.database.stop()
    wait_for(lambda: not stack.is_well("prefect"), "a red light", 60)
    assert stack.running["prefect"].poll() is None
    assert stack.stop("prefect") < 60
    assert not stack.is_well("prefect")

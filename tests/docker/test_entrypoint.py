"""The entry of the image refuses weak secrets, hands logins on, and prints none of them."""

import configparser
import os
import re
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.docker.rules import ROOT

GOOD = {
    "postgres_password": "r8Jm2-Qx71-vLp0-Zs4d-a",
    "prefect_db_password": "r8Jm2-Qx71-vLp0-Zs4d-b",
    "prefect_password": "r8Jm2-Qx71-vLp0-Zs4d-c",
    "mlflow_db_password": "p%40d/9:Q+x71-vLp0-Zs4d",
    "mlflow_password": "r8Jm2-Qx71-vLp0-Zs4d-e",
    "mlflow_secret_key": "r8Jm2-Qx71-vLp0-Zs4d-f",
    "s3_secret_key": "r8Jm2-Qx71-vLp0-Zs4d-g",
}


@pytest.fixture
def secrets(tmp_path):
    folder = tmp_path / "secrets"
    folder.mkdir()
    for name, value in GOOD.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def run_entry(*arguments, **env):
    command = [sys.executable, str(ROOT / "docker" / "entrypoint.py"), *arguments]
    environment = {"PATH": os.environ["PATH"], "COMPASS_HOME": "/var/lib/compass", **env}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def files(folder):
    return {f"COMPASS_{name.upper()}_FILE": str(folder / name) for name in GOOD}


def test_good_secrets_pass_the_check_and_are_not_printed(secrets):
    answer = run_entry("check", **files(secrets))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "compass: 7 secrets are strong and different\n"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is missing"),
        ("short-0x9aQ", "has 11 characters, at least 16 are needed"),
        ("passwordpassword", "is made of words and digits that everybody tries"),
        ("change-me-change-me", "is made of words and digits that everybody tries"),
        ("Compass-Postgres-2026!", "is made of words and digits that everybody tries"),
        ("minioadmin1234567", "is made of words and digits that everybody tries"),
        ("aaaaaaaaaaaabbbbbbbb", "repeats a few characters"),
        ("r8Jm2 Qx71 vLp0 Zs4d", "holds a space or a line break"),
    ],
)
def test_a_weak_secret_is_refused_with_its_reason(secrets, value, reason):
    (secrets / "prefect_password").write_text(value)
    answer = run_entry("check", **files(secrets))
    assert answer.returncode == 1
    assert f"Secret prefect_password {reason}" in answer.stderr
    assert "docker/make_env.py" in answer.stderr
    assert not value or value not in answer.stderr


def test_one_secret_for_two_services_is_refused(secrets):
    (secrets / "mlflow_password").write_text(GOOD["prefect_password"])
    answer = run_entry("check", **files(secrets))
    assert answer.returncode == 1
    assert "prefect_password and mlflow_password are equal" in answer.stderr


def test_a_store_on_s3_wants_its_secret(secrets):
    (secrets / "s3_secret_key").unlink()
    assert run_entry("check", **files(secrets)).returncode == 0
    answer = run_entry("check", COMPASS_STORE="s3://b/p", **files(secrets))
    assert "Secret s3_secret_key is missing" in answer.stderr


def test_prefect_gets_its_database_and_login(entrypoint, secrets):
    env = {"PREFECT_API_URL": "http://elsewhere/api", "COMPASS_DATABASE_PORT": ""}
    command = entrypoint.plan(["prefect-server"], env, secrets)
    assert command[0] == "python"
    assert Path(command[1]).name == "prefect_server.py"
    assert env["PREFECT_SERVER_API_AUTH_STRING"] == f"compass:{GOOD['prefect_password']}"
    assert env["PREFECT_SERVER_DATABASE_PASSWORD"] == GOOD["prefect_db_password"]
    assert env["PREFECT_SERVER_DATABASE_PORT"] == "5432"
    assert "PREFECT_API_URL" not in env


def test_mlflow_gets_its_databases_by_a_file_that_only_it_reads(entrypoint, secrets):
    env = {}
    command = entrypoint.plan(["mlflow-server"], env, secrets)
    assert command == ["mlflow", "server", "--app-name", "basic-auth", "--serve-artifacts"]
    assert not any(value in " ".join(command) for value in GOOD.values())
    assert env["MLFLOW_BACKEND_STORE_URI"].endswith(
        "mlflow:p%2540d%2F9%3AQ%2Bx71-vLp0-Zs4d@postgres:5432/mlflow"
    )
    path = Path(env["MLFLOW_AUTH_CONFIG_PATH"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = configparser.ConfigParser()
    config.read(path)
    assert config["mlflow"]["database_uri"] == f"{env['MLFLOW_BACKEND_STORE_URI']}_auth"
    assert config["mlflow"]["default_permission"] == "NO_PERMISSIONS"


def test_a_worker_gets_the_logins_of_both_servers(entrypoint, secrets):
    env = {
        "COMPASS_HOME": "/var/lib/compass",
        "PREFECT_API_URL": "http://prefect:4200/api",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "COMPASS_STORE": "",
    }
    command = entrypoint.plan(["worker", "--name", "w1"], env, secrets)
    assert command[:4] == ["prefect", "worker", "start", "--pool"]
    assert command[-2:] == ["--name", "w1"]
    assert env["PREFECT_API_AUTH_STRING"] == f"compass:{GOOD['prefect_password']}"
    assert env["MLFLOW_TRACKING_PASSWORD"] == GOOD["mlflow_password"]
    assert env["AWS_SECRET_ACCESS_KEY"] == GOOD["s3_secret_key"]
    assert "COMPASS_STORE" not in env


def test_a_worker_without_a_login_does_not_start(entrypoint, secrets):
    (secrets / "mlflow_password").unlink()
    with pytest.raises(entrypoint.RefusedError, match=r"mlflow_password is missing.*make_env"):
        entrypoint.plan(["worker"], {"COMPASS_HOME": "/x"}, secrets)


def test_any_other_command_is_run_with_the_logins(secrets):
    show = "import os; print(sorted(n for n in os.environ if 'PASSWORD' in n or 'AUTH' in n))"
    answer = run_entry(
        sys.executable,
        "-c",
        show,
        PREFECT_API_URL="http://prefect:4200/api",
        COMPASS_PREFECT_PASSWORD=GOOD["prefect_password"],
    )
    assert answer.stdout == "['PREFECT_API_AUTH_STRING']\n"


def test_nothing_to_run_and_an_unknown_command_are_said():
    assert "Say what to run" in run_entry().stderr
    answer = run_entry("no-such-program")
    assert answer.returncode == 1
    assert "cannot run no-such-program" in answer.stderr


def test_a_bucket_is_made_once(secrets):
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "COMPASS_STORE": "s3://compass/store",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        **files(secrets),
    }
    try:
        for _ in range(2):
            answer = run_entry("bucket", **env)
            assert answer.stdout == "compass: bucket compass is there\n", answer.stderr
    finally:
        server.stop()
    assert "no s3://bucket/prefix" in run_entry("bucket", COMPASS_STORE="/data").stderr


# ------------------------------------------------------------------ health
class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


def health(*arguments, **env):
    command = [sys.executable, str(ROOT / "docker" / "healthcheck.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False).returncode


def test_a_role_is_well_while_it_answers_and_ill_afterwards(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = str(server.server_port)
    assert health("mlflow-server", MLFLOW_PORT=port) == 0
    assert health("prefect-server", PREFECT_SERVER_API_PORT=port) == 1  # its database is away: 503
    (tmp_path / "compass-role").write_text("mlflow-server")
    assert health(MLFLOW_PORT=port, TMPDIR=str(tmp_path)) == 0
    server.shutdown()
    server.server_close()
    assert health(MLFLOW_PORT=port, TMPDIR=str(tmp_path)) == 1


def test_what_does_not_serve_is_well(tmp_path):
    assert health(TMPDIR=str(tmp_path)) == 0


def test_every_role_has_a_health_check(entrypoint):
    text = (ROOT / "docker" / "healthcheck.py").read_text(encoding="utf-8")
    assert set(entrypoint.ROLES) == set(re.findall(r'^    "([\w-]+)":', text, re.MULTILINE))

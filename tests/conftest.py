"""One home and one Prefect API for the session; real runs, no mocks."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine, nothing about the code.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")

# Prefect reads its settings when it is imported, so the home has to exist before any test module.
_HOME = tempfile.TemporaryDirectory(prefix="compass-tests-")
os.environ["COMPASS_HOME"] = _HOME.name
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_"))]:
    del os.environ[_name]

from tasks.settings import prepare_environment  # noqa: E402 - see above

prepare_environment()


# Workers of pytest-xdist ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure():
    _HOME.cleanup()


@pytest.fixture(scope="session")
def prefect_backend():
    """A temporary Prefect API for all flow tests of the session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(autouse=True)
def _own_registry():
    """A process stays with the registry that it used first; the next test may use another."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty COMPASS home of one test."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("COMPASS_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture(scope="session")
def test_data():
    """The folder of real multilingual data, or a skip that says how to get it."""
    folder = Path(os.environ.get("COMPASS_TEST_DATA", "../shared/data")).resolve()
    if not (folder / "sib200.jsonl.gz").is_file():
        pytest.skip(f"no sib200.jsonl.gz in {folder}: set COMPASS_TEST_DATA to run this test")
    return folder

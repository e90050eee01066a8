"""One Prefect server, and the command line on small corpora, in processes that may be killed."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from compass_core.storage import ArtifactStore
from tests.faults.corpora import write_corpora
from tests.real_server import ROOT, PrefectServer, end, start


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server that every test of the session may use, but none may kill."""
    started = PrefectServer(tmp_path_factory.mktemp("server")).start()
    yield started
    started.stop()


@dataclass
class Bench:
    """A home, its corpora and the command line."""

    folder: Path
    server: PrefectServer
    env: dict = field(default_factory=dict)

    def __post_init__(self):
        self.home = self.folder / "home"
        self.env = self.server.env | {
            "COMPASS_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(self.folder / "results"),
            **self.env,
        }
        self.config = None

    def write(self, *arguments, **changes):
        self.config = write_corpora(self.folder / "corpora", *arguments, **changes)
        return self

    def compass(self, *arguments, **env):
        """Run the command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=self.env | env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def adapt(self, *overrides, **env):
        return self.compass("adapt", str(self.config), *overrides, **env)

    def begin(self, *overrides, **env):
        """Start `compass adapt` and return its process; it writes to ``run.log``."""
        arguments = ["flows.cli", "adapt", str(self.config), *overrides]
        return start(arguments, self.env | env, self.folder / "run.log", self.folder)

    def said(self):
        return (self.folder / "run.log").read_text("utf-8")

    def artefacts(self, kind="*"):
        """Return kind/fingerprint → hash of the content of every finished artefact."""
        store = ArtifactStore(self.home / "store")
        found = {}
        for path in self.home.glob(f"store/{kind}/*/MANIFEST.json"):
            ref = store.find(path.parent.parent.name, path.parent.name)
            assert ref is not None, f"{path.parent} is torn"
            store.verify(ref)
            found[ref.path] = ref.sha256
        return found

    def written(self):
        """Return when each finished artefact was written."""
        return {p: p.stat().st_mtime_ns for p in self.home.glob("store/*/*/MANIFEST.json")}

    def checkpoints(self):
        """Return the folders of finished checkpoints."""
        found = self.home.glob("store/checkpoints/*/step-*")
        return [path for path in found if path.name.partition("-")[2].isdigit()]

    def newest_step(self):
        """Return the step of the newest checkpoint."""
        return max((int(path.name.partition("-")[2]) for path in self.checkpoints()), default=0)

    def serving(self, **env):
        """Return versions, champion and hash of every registered model."""
        script = (
            "import json; from tests.faults.registry_view import view; print(json.dumps(view()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=self.env | env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def bench(server, tmp_path):
    """An empty home with a registry of its own, on the session's server."""
    return Bench(tmp_path, server)


@pytest.fixture
def ended():
    """Processes that are ended after the test, however it went."""
    processes = []
    yield processes
    for process in processes:
        end(process)

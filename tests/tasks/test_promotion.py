"""What a run tells the registry once, and what a later run finds there of it."""

import pytest

from compass_core.config import BaseConfig, ExecutionConfig
from compass_core.records import ArtifactRef
from tasks import registry, tracking
from tasks.caching import ModelRef
from tasks.lineage import LINEAGE_TAG
from tasks.promotion import find_champion, is_settled, register_and_promote, settle_champion
from tests.tasks.test_registry import NAME, make_adapter

CODE = "swh_Latn"


@pytest.fixture
def adapter(mlflow_home, monkeypatch):
    """One adapter whose files are registered, so that nothing has to be loaded to check them."""
    monkeypatch.setenv("COMPASS_HOME", str(mlflow_home))
    folder = make_adapter(mlflow_home / "adapter", 1.0)
    run = tracking.start_run("faults", "earlier", tags={}, params={})
    registry.register_adapter(NAME, folder, run_id=run, tags={})
    return folder


def attempt(folder, run="r1", accuracy=0.5):
    return {
        "experiment": "compass",
        "run_name": "swh_Latn-compass",
        "params": {"seed": 0},
        "tags": {"language": CODE, "prefect_flow_run_id": run, "evaluation_fingerprint": "e1"},
        "metrics": {"accuracy": accuracy, "accuracy_low": 0.4, "accuracy_high": 0.6},
        "datasets": [],
        "history": [],
        "adapter": str(folder),
    }


def tell(what, reasons=("no better",), *, promote=False):
    verdict = {"promote": promote, "reasons": list(reasons), "champion": None}
    return register_and_promote.fn(
        CODE, NAME, what, verdict, ModelRef("base", "0" * 64), BaseConfig(), ExecutionConfig()
    )


def n_writes(monkeypatch):
    """Count what is written to the registry from now on."""
    written = []
    for method in (
        "set_model_version_tag",
        "set_registered_model_alias",
        "log_batch",
        "create_run",
    ):
        plain = getattr(tracking.client(), method)

        def call(self, *args, plain=plain, **kwargs):
            written.append(plain.__name__)
            return plain(*args, **kwargs)

        monkeypatch.setattr(type(tracking.client()), method, call)
    return written


def test_the_same_attempt_is_told_once_whichever_run_repeats_it(adapter, monkeypatch):
    first = tell(attempt(adapter))
    assert (first["version"], first["status"]) == ("1", "kept")
    written = n_writes(monkeypatch)
    assert tell(attempt(adapter, run="r2")) == first
    assert written == []
    assert registry.get_version(NAME, "1").tags["prefect_flow_run_id"] == "r1"


@pytest.mark.parametrize(
    "changed",
    [
        {"accuracy": 0.51},
        {"tags": {"evaluation_fingerprint": "e2"}},
        {"reasons": ("too few items",)},
    ],
    ids=["scores", "evaluation", "reasons"],
)
def test_an_attempt_that_differs_is_told_again(adapter, monkeypatch, changed):
    tell(attempt(adapter))
    written = n_writes(monkeypatch)
    what = attempt(adapter, accuracy=changed.get("accuracy", 0.5))
    what["tags"] |= changed.get("tags", {})
    tell(what, changed.get("reasons", ("no better",)))
    assert "set_model_version_tag" in written
    version = registry.get_version(NAME, "1")
    assert version.tags["verdict"] == "; ".join(changed.get("reasons", ("no better",)))
    assert version.tags["evaluation_fingerprint"] == what["tags"]["evaluation_fingerprint"]
    assert version.scores["accuracy"] == what["metrics"]["accuracy"]


def test_an_attempt_after_another_one_is_the_challenger_again(adapter, mlflow_home):
    tell(attempt(adapter))
    other = make_adapter(mlflow_home / "other", 2.0)
    run = tracking.start_run("faults", "earlier", tags={}, params={})
    registry.register_adapter(NAME, other, run_id=run, tags={})
    assert tell(attempt(other))["version"] == "2"
    assert registry.challenger(NAME).version == "2"
    assert tell(attempt(adapter))["version"] == "1"
    assert registry.challenger(NAME).version == "1"


def test_a_damaged_challenger_is_restored_by_the_same_attempt(adapter, mlflow_home):
    tell(attempt(adapter))
    (stored,) = (
        path
        for path in (mlflow_home / "mlartifacts").rglob("adapter_model.safetensors")
        if path.is_file()
    )
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-4])
    tell(attempt(adapter))
    assert stored.read_bytes() == whole


def test_a_promotion_is_never_taken_for_told(adapter):
    """A champion that somebody took away by hand is put back by the run that promoted it."""
    tell(attempt(adapter), promote=True)
    tracking.client().delete_registered_model_alias(NAME, registry.CHAMPION)
    tell(attempt(adapter), promote=True)
    assert registry.champion(NAME).version == "1"


def test_a_promotion_that_was_interrupted_is_finished_by_the_next_run(adapter):
    tell(attempt(adapter), promote=True)
    found = find_champion(NAME)
    assert found["half_moved"] == ""
    tracking.client().set_registered_model_alias(NAME, registry.CHALLENGER, "1")
    found = find_champion(NAME)
    assert (found["half_moved"], is_settled(found)) == ("yes", False)
    lineage = ArtifactRef(kind="lineage", fingerprint="f" * 32, sha256="0" * 64, path="", bytes=0)
    settle_champion.fn(CODE, NAME, found, lineage)
    assert registry.challenger(NAME) is None
    assert registry.champion(NAME).tags[LINEAGE_TAG] == lineage.fingerprint

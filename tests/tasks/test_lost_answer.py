"""A write that landed although its answer was lost, and that MLflow's client then repeated."""

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from compass_core.errors import TransientError
from tasks import registry, tracking
from tests.tasks.test_registry import NAME, make_adapter


def twice(monkeypatch, method):
    """Let the client send a request twice, as it does when the first answer does not arrive."""
    plain = getattr(MlflowClient, method)

    def call(*args, **kwargs):
        plain(*args, **kwargs)
        return plain(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, method, call)


def all_lost(monkeypatch, method):
    """Let every request land, the client's second one too, and no answer arrive."""
    plain = getattr(MlflowClient, method)

    def call(*args, **kwargs):
        plain(*args, **kwargs)
        plain(*args, **kwargs)
        raise MlflowException("no answer", error_code=TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(MlflowClient, method, call)


@pytest.mark.usefixtures("mlflow_home")
def test_version_created_twice_is_kept_once(monkeypatch, tmp_path):
    run = tracking.start_run("compass", "one", tags={}, params={})
    twice(monkeypatch, "create_model_version")
    version = registry.register_adapter(
        NAME, make_adapter(tmp_path / "a", 1.0), run_id=run, tags={}
    )
    assert [entry.version for entry in registry.versions(NAME)] == [version] == ["1"]
    assert registry.promote(NAME, version, expected_champion=None).version == "1"


@pytest.mark.usefixtures("mlflow_home")
def test_version_whose_every_answer_was_lost_is_kept_once_by_the_next_try(monkeypatch, tmp_path):
    run = tracking.start_run("compass", "one", tags={}, params={})
    all_lost(monkeypatch, "create_model_version")
    folder = make_adapter(tmp_path / "a", 1.0)
    with pytest.raises(TransientError):
        registry.register_adapter(NAME, folder, run_id=run, tags={})
    assert len(registry.versions(NAME)) == 2
    twice(monkeypatch, "delete_model_version")
    assert registry.register_adapter(NAME, folder, run_id=run, tags={}) == "1"
    assert [entry.version for entry in registry.versions(NAME)] == ["1"]


@pytest.mark.usefixtures("mlflow_home")
def test_run_opened_twice_is_kept_once(monkeypatch):
    twice(monkeypatch, "create_run")
    opened = tracking.start_run("compass", "one", tags={}, params={}, attempt="a")
    again = tracking.start_run("compass", "one", tags={}, params={}, attempt="a")
    assert again == opened
    client = tracking.client()
    experiment = client.get_experiment_by_name("compass").experiment_id
    assert [run.info.run_id for run in client.search_runs([experiment])] == [opened]


@pytest.mark.usefixtures("mlflow_home")
def test_run_whose_every_answer_was_lost_is_kept_once_by_the_next_try(monkeypatch):
    all_lost(monkeypatch, "create_run")
    with pytest.raises(TransientError):
        tracking.start_run("compass", "one", tags={}, params={}, attempt="a")
    twice(monkeypatch, "delete_run")
    opened = tracking.start_run("compass", "one", tags={}, params={}, attempt="a")
    client = tracking.client()
    experiment = client.get_experiment_by_name("compass").experiment_id
    assert [run.info.run_id for run in client.search_runs([experiment])] == [opened]

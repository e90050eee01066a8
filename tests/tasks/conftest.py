"""A real MLflow store per test; its schema takes seconds, so it is made once and copied."""

import shutil

import pytest

from tasks import tracking


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory):
    home = tmp_path_factory.mktemp("mlflow")
    tracking.configure(tracking.default_tracking_uri(home), home / "mlartifacts")
    return home / "mlflow.db"


@pytest.fixture
def mlflow_home(tmp_path, migrated_store):
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    tracking.configure(tracking.default_tracking_uri(tmp_path), tmp_path / "mlartifacts")
    return tmp_path

"""Deployments: every entrypoint is a flow, every key is one that Prefect reads."""

import importlib
from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parents[1] / "deployments" / "prefect.yaml"
DEPLOYMENTS = yaml.safe_load(FILE.read_text(encoding="utf-8"))["deployments"]


def test_there_are_deployments():
    assert len(DEPLOYMENTS) >= 3


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_entrypoint_is_a_flow_of_that_name_by_module(deployment):
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    assert flow.name == deployment["name"]
    assert ":" not in deployment["entrypoint"], "a file entrypoint shadows other modules"


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_every_key_is_known_to_prefect(deployment):
    from prefect.cli.deploy._models import DeploymentConfig

    assert set(deployment) <= set(DeploymentConfig.model_fields)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_form_describes_every_field(deployment):
    module, _, name = deployment["entrypoint"].rpartition(".")
    schema = getattr(importlib.import_module(module), name).parameters.model_dump()
    models = schema["definitions"]
    assert "training" in str(models)
    undescribed = [
        f"{model}.{field}"
        for model, values in models.items()
        for field, details in values.get("properties", {}).items()
        if "description" not in details
    ]
    assert undescribed == []


def test_form_asks_for_the_languages_first():
    from compass_core.config import AdaptConfig, AdaptLanguageConfig, StudyConfig

    assert next(iter(AdaptConfig.model_json_schema()["properties"])) == "languages"
    assert next(iter(StudyConfig.model_json_schema()["properties"])) == "languages"
    assert next(iter(AdaptLanguageConfig.model_json_schema()["properties"])) == "language"

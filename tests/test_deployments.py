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


def flow_of(deployment):
    module, _, name = deployment["entrypoint"].rpartition(".")
    return getattr(importlib.import_module(module), name)


SCHEDULES = [(d["name"], s) for d in DEPLOYMENTS for s in d.get("schedules", ())]
AUTOMATIONS = yaml.safe_load((FILE.parent / "automations.yaml").read_text(encoding="utf-8"))
ACTIONS = [(a["name"], action) for a in AUTOMATIONS["automations"] for action in a["actions"]]


def test_schedules_say_their_time_zone_and_are_off_until_there_is_a_configuration():
    assert [name for name, _ in SCHEDULES] == ["monitor-drift"]
    for _name, schedule in SCHEDULES:
        assert schedule["timezone"]
        assert schedule["slug"]
        assert schedule["active"] is False


@pytest.mark.parametrize(("name", "action"), ACTIONS, ids=lambda value: str(value)[:30])
def test_an_automation_starts_a_deployment_with_parameters_its_flow_takes(name, action):
    flow_name, _, deployment_name = action["deployment"].partition("/")
    (deployment,) = [d for d in DEPLOYMENTS if d["name"] == deployment_name]
    flow = flow_of(deployment)
    assert flow.name == flow_name
    assert set(action["parameters"]) <= set(flow.parameters.properties)
    missing = set(flow.parameters.required) - set(action["parameters"])
    assert missing <= {"config"}, "the configuration is the deployment's own"
    assert all(value["__prefect_kind"] == "jinja" for value in action["parameters"].values())


def test_automations_are_ones_that_prefect_takes():
    import uuid

    from prefect.events.schemas.automations import AutomationCore

    assert ACTIONS
    for values in AUTOMATIONS["automations"]:
        actions = [
            {name: value for name, value in action.items() if name != "deployment"}
            | {"deployment_id": uuid.uuid4()}
            for action in values["actions"]
        ]
        automation = AutomationCore.model_validate({**values, "actions": actions})
        assert set(values) <= set(AutomationCore.model_fields)
        assert automation.trigger.expect == {"compass.drift"}


def test_a_configuration_becomes_the_default_of_what_takes_it_and_turns_the_monitor_on(
    home, tmp_path
):
    from compass_core.config import AdaptConfig
    from tasks.deployments import CONFIGURED, prepare_deployments, read_deployments

    config = AdaptConfig(languages=("sw", "tr"))
    values = prepare_deployments(config, tmp_path, pool="own", scheduled=True, names=())
    assert len(values["deployments"]) == len(DEPLOYMENTS)
    for deployment in values["deployments"]:
        assert deployment["work_pool"]["name"] == "own"
        environment = deployment["work_pool"]["job_variables"]["env"]
        assert environment["COMPASS_HOME"] == str(home)
        assert bool(deployment["parameters"]) == (deployment["name"] in CONFIGURED)
        if deployment["parameters"]:
            rest = {"language": "sw"} if deployment["name"] == "update-adapter" else {}
            flow_of(deployment).validate_parameters(deployment["parameters"] | rest)
    (monitor,) = [d for d in values["deployments"] if d["name"] == "monitor-drift"]
    assert [schedule["active"] for schedule in monitor["schedules"]] == [True]
    assert values["pull"][0]["prefect.deployments.steps.set_working_directory"] == {
        "directory": str(tmp_path)
    }
    assert read_deployments()["deployments"] == DEPLOYMENTS, "the file itself stays as it is"


def test_updates_run_one_after_the_other_and_none_is_dropped():
    from prefect.cli.deploy._models import ConcurrencyLimitSpec
    from prefect.client.schemas.objects import ConcurrencyLimitConfig

    limited = {d["name"]: d["concurrency_limit"] for d in DEPLOYMENTS if "concurrency_limit" in d}
    assert limited == {"update-adapter": {"limit": 1, "collision_strategy": "ENQUEUE"}}
    for limit in limited.values():
        assert set(limit) <= set(ConcurrencyLimitSpec.model_fields)
        ConcurrencyLimitConfig.model_validate(limit)


@pytest.mark.parametrize(
    ("address", "passed"),
    [
        ("", False),
        ("http://mlflow.local:5000", True),
        ("sqlite:////data/mlflow.db", True),
        ("https://me:secret@mlflow.local", False),
        ("https://token@mlflow.local", False),
        ("postgresql://db.local/mlflow?password=secret", False),
    ],
)
def test_a_worker_gets_the_registry_of_who_deploys_but_no_credentials(
    home, monkeypatch, address, passed
):
    from tasks.deployments import run_environment

    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    environment = run_environment()
    assert environment.get("MLFLOW_TRACKING_URI") == (address if passed else None)
    assert "secret" not in str(environment)
    assert "token" not in str(environment)


def test_deploying_without_a_server_says_how_to_start_one(monkeypatch):
    from compass_core.errors import ConfigError
    from tasks import deployments

    monkeypatch.setattr(deployments, "server_address", lambda: None)
    with pytest.raises(ConfigError, match="prefect server start"):
        deployments.apply_deployments({"deployments": []})

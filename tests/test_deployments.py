"""Deployments: what the files say, what the checks find in broken ones, what is made of them."""

import importlib
import pkgutil
import shutil
from datetime import UTC, datetime

import pytest
from prefect import Flow

import flows
from compass_core.config import AdaptConfig, AdaptLanguageConfig, StudyConfig
from compass_core.errors import ConfigError
from tasks.automations import read_automations
from tasks.deployment_checks import (
    STATES,
    TAG,
    check_deployment_files,
    check_name,
    check_time_zone,
)
from tasks.deployments import FOLDER, Wanted, next_run, prepare_deployments, read_deployments
from tasks.work_pools import HEARTBEAT_SECONDS, read_pool_kind, run_environment

DEPLOYMENTS = read_deployments()["deployments"]
AUTOMATIONS = {automation["name"]: automation for automation in read_automations()}


def flow_of(deployment) -> Flow:
    module, _, name = deployment["entrypoint"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def wanted(home, **changes):
    kind = read_pool_kind(FOLDER, "process", home, name=changes.get("name", ""))
    config = AdaptConfig(languages=("sw", "tr"), project="news")
    return Wanted(**({"config": config, "pool": "own", "kind": kind} | changes))


# ------------------------------------------------------------------ the files as they are
def test_the_files_have_no_problem():
    check_deployment_files(FOLDER)


def test_every_flow_has_a_deployment():
    found = set()
    for module in pkgutil.iter_modules(flows.__path__, "flows."):
        values = vars(importlib.import_module(module.name)).values()
        found |= {value.name for value in values if isinstance(value, Flow)}
    assert len(found) >= 6
    assert found == {deployment["name"] for deployment in DEPLOYMENTS}


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_form_describes_every_field(deployment):
    schema = flow_of(deployment).parameters.model_dump()
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
    assert next(iter(AdaptConfig.model_json_schema()["properties"])) == "languages"
    assert next(iter(StudyConfig.model_json_schema()["properties"])) == "languages"
    assert next(iter(AdaptLanguageConfig.model_json_schema()["properties"])) == "language"


def test_retraining_and_the_monitor_are_scheduled_and_off_until_there_is_a_configuration():
    scheduled = {d["name"]: d["schedules"] for d in DEPLOYMENTS if "schedules" in d}
    assert set(scheduled) == {"adapt-languages", "monitor-drift"}
    for schedules in scheduled.values():
        assert [schedule["active"] for schedule in schedules] == [False]


def test_runs_that_would_repeat_each_other_wait_and_a_second_monitor_is_dropped():
    limits = {d["name"]: d["concurrency_limit"] for d in DEPLOYMENTS if "concurrency_limit" in d}
    strategies = {name: limit["collision_strategy"] for name, limit in limits.items()}
    assert strategies.pop("monitor-drift") == "CANCEL_NEW"
    assert set(strategies.values()) == {"ENQUEUE"}, "a run that somebody asked for is never lost"
    assert limits["adapt-languages"]["limit"] == 1
    assert "adapt-language" not in limits, "a fleet of workers adapts many languages at once"


def test_a_zombie_is_given_five_heartbeats_and_knows_every_end_of_our_flows():
    trigger = AUTOMATIONS["compass-crash-zombies"]["trigger"]
    assert trigger["within"] == 5 * HEARTBEAT_SECONDS
    assert run_environment("/h")["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)
    named = {event.rpartition(".")[2] for event in trigger["expect"]}
    ends = {"Completed", "CompletedWithFailures", "AlreadyDone", "NoChampion", "Failed"}
    assert ends <= named <= STATES
    assert "Running" not in named, "it would pass for a sign of life after the last heartbeat"


def test_a_crashed_run_is_retried_a_bounded_number_of_times():
    trigger = AUTOMATIONS["compass-retry-crashed"]["trigger"]
    assert trigger["match"]["prefect.run-count"] == ["1", "2"]
    assert trigger["within"] >= 60, "the worker's own report of the crash comes before the retry"


# ------------------------------------------------------------------ broken files
@pytest.fixture
def broken(tmp_path):
    """Change one of the files and return what is said about it."""

    def check(file, *changes):
        folder = tmp_path / "deployments"
        shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
        path = folder / file
        text = path.read_text("utf-8")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path.write_text(text, "utf-8")
        with pytest.raises(ConfigError) as caught:
            check_deployment_files(folder)
        return str(caught.value)

    return check


PREFECT, OTHER = "prefect.yaml", "automations.yaml"
DRIFT = "compass-update-after-drift"
FAULTS = {
    "an unknown key at the top": (
        (PREFECT, ("name: compass\n", "name: compass\ndeploymnets: []\n")),
        ("prefect.yaml:", "unknown key 'deploymnets'; did you mean 'deployments'?"),
    ),
    "an unknown key of a deployment": (
        (PREFECT, ("    schedules:\n", "    scedules:\n")),
        ("adapt-languages: unknown key 'scedules'; did you mean 'schedules'?",),
    ),
    "an unknown key of a schedule": (
        (PREFECT, ("timezone: Etc/UTC", "timezon: Etc/UTC")),
        ("schedule weekly: unknown key 'timezon'; did you mean 'timezone'?", "has no timezone"),
    ),
    "an unknown key of a work pool": (
        (PREFECT, ("{name: compass}", "{name: compass, queue: x}")),
        ("adapt-languages: unknown key 'queue'", "work_queue_name"),
    ),
    "an unknown key of a limit": (
        (PREFECT, ("{limit: 1, coll", "{limits: 1, coll")),
        ("unknown key 'limits'; did you mean 'limit'?",),
    ),
    "a key twice": (
        (PREFECT, ("    parameters: {}\n", "    parameters: {}\n    parameters: {}\n")),
        ("prefect.yaml", "parameters", "twice"),
    ),
    "an unknown input of a step": (
        (PREFECT, ("      directory:", "      folder:")),
        ("set_working_directory: unknown key 'folder'", "directory"),
    ),
    "a step that does not exist": (
        (PREFECT, ("steps.set_working_directory", "steps.set_directory")),
        ("there is no step 'prefect.deployments.steps.set_directory'",),
    ),
    "a parameter that the flow does not take": (
        (PREFECT, ("    parameters: {}\n", "    parameters: {confg: 1}\n")),
        ("adapt-languages: adapt-languages takes no parameter 'confg'; did you mean 'config'?",),
    ),
    "a parameter of a schedule that the flow does not take": (
        (PREFECT, ("      - slug: daily\n", "      - slug: daily\n        parameters: {day: 1}\n")),
        ("monitor-drift, schedule daily: monitor-drift takes no parameter 'day'",),
    ),
    "an entrypoint whose module does not import": (
        (PREFECT, ("flows.adapt_language.adapt", "flows.adapt_lang.adapt")),
        ("adapt-language: entrypoint", "does not import", "flows.adapt_lang"),
    ),
    "an entrypoint without a flow": (
        (PREFECT, ("flows.adapt_language.adapt_language", "flows.adapt_language.adapt_one")),
        ("adapt-language: flows.adapt_language has no flow 'adapt_one'", "adapt_language"),
    ),
    "an entrypoint by file": (
        (
            PREFECT,
            ("flows.adapt_language.adapt_language", "flows/adapt.py:adapt_language"),
        ),
        ("adapt-language: entrypoint", "write module.function"),
    ),
    "a name that is not the flow's": (
        (PREFECT, ("- name: adapt-language\n", "- name: adapt-one\n")),
        ("adapt-one: its flow is called 'adapt-language'",),
    ),
    "two deployments of one name": (
        (PREFECT, ("- name: adapt-language\n", "- name: adapt-languages\n")),
        ("adapt-languages: there is a deployment of this name already",),
    ),
    "a deployment without the tag": (
        (PREFECT, ("[compass, update]", "[update]")),
        ("update-adapter: the tag 'compass' is missing",),
    ),
    "a cron that is none": (
        (PREFECT, ('"0 2 * * 6"', '"0 25 * * 6"')),
        ("schedule weekly:", "0 25 * * 6", "Invalid cron"),
    ),
    "an unknown time zone": (
        (PREFECT, ("timezone: Etc/UTC", "timezone: Europe/Berln")),
        ("unknown time zone 'Europe/Berln'; did you mean 'Europe/Berlin'?",),
    ),
    "no kind of schedule": (
        (PREFECT, ('        cron: "0 2 * * 6"\n', "")),
        ("schedule weekly: needs exactly one of cron, interval, rrule",),
    ),
    "a schedule without a slug": (
        (PREFECT, ("      - slug: weekly\n        cron:", "      - cron:")),
        ("needs a slug of its own",),
    ),
    "an unknown collision strategy": (
        (PREFECT, ("collision_strategy: CANCEL_NEW", "collision_strategy: CANCEL_OLD")),
        ("monitor-drift: unknown collision strategy 'CANCEL_OLD'; did you mean 'CANCEL_NEW'?",),
    ),
    "an unknown key of an automation": (
        (OTHER, ("    description: Usage", "    descripton: Usage")),
        ("automations.yaml:", f"{DRIFT}: unknown key 'descripton'; did you mean 'description'?"),
    ),
    "an unknown key of a trigger": (
        (OTHER, ("      threshold: 1", "      treshold: 1")),
        (f"{DRIFT}: unknown key 'treshold'; did you mean 'threshold'?",),
    ),
    "an unknown key of an action": (
        (OTHER, ("        source: selected", "        sources: selected")),
        (f"{DRIFT}: unknown key 'sources'; did you mean 'source'?",),
    ),
    "an unknown action": (
        (OTHER, ("type: run-deployment", "type: start-deployment")),
        (f"{DRIFT}: unknown action 'start-deployment'; did you mean 'run-deployment'?",),
    ),
    "an automation of a missing deployment": (
        (OTHER, ("deployment: update-adapter", "deployment: update-adaptor")),
        (f"{DRIFT}: there is no deployment 'update-adaptor'; did you mean 'update-adapter'?",),
    ),
    "a jinja parameter that no flow takes": (
        (OTHER, ("          language:\n", "          lang:\n")),
        ("update-adapter takes no parameter 'lang'", "needs the parameter 'language'"),
    ),
    "a template that is none": (
        (OTHER, ("{{ event.payload.language }}", "{{ event.payload.language }")),
        (f"{DRIFT}: language:",),
    ),
    "an event that nobody sends": (
        (OTHER, ("after: [prefect.flow-run.Crashed]", "after: [prefect.flow-run.Crash]")),
        ("compass-retry-crashed: nothing sends 'prefect.flow-run.Crash'", "flow-run.Crashed"),
    ),
    "two automations of one name": (
        (OTHER, ("name: compass-crash-zombies", f"name: {DRIFT}")),
        (f"{DRIFT}: there is an automation of this name already",),
    ),
    "an automation that Prefect refuses": (
        (OTHER, ("posture: Proactive", "posture: Productive")),
        ("compass-crash-zombies:", "posture"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_refused_with_what_was_meant(broken, fault):
    (file, *changes), told = FAULTS[fault]
    message = broken(file, *changes)
    assert file in message
    assert [text for text in told if text not in message] == [], message


def test_all_problems_are_told_together_with_their_lines(broken):
    message = broken(PREFECT, ("    schedules:\n", "    scedules:\n"), ("limit: 2,", "limt: 2,"))
    line = (FOLDER / PREFECT).read_text("utf-8").splitlines().index("    schedules:") + 1
    assert f"prefect.yaml:{line}: adapt-languages: unknown key 'scedules'" in message
    assert "update-adapter: unknown key 'limt'" in message


def test_a_missing_file_says_where_it_comes_from(tmp_path):
    with pytest.raises(ConfigError, match="Clone the repository"):
        check_deployment_files(tmp_path)


@pytest.mark.parametrize("name", ["News", "a/b", "x y", "-a", "a" * 60])
def test_a_name_that_does_not_fit_into_a_path_is_refused(name):
    with pytest.raises(ConfigError, match="lower-case letters"):
        check_name(name)


def test_an_unknown_time_zone_on_the_command_line_names_the_nearest():
    check_time_zone("")
    with pytest.raises(ConfigError, match="did you mean 'Asia/Tokyo'"):
        check_time_zone("Asia/Tokio")


# ------------------------------------------------------------------ with a configuration
def test_a_configuration_becomes_the_default_of_every_deployment(home):
    values = prepare_deployments(wanted(home))
    assert len(values["deployments"]) == len(DEPLOYMENTS)
    for deployment in values["deployments"]:
        assert deployment["work_pool"]["name"] == "own"
        assert deployment["work_pool"]["job_variables"]["env"]["COMPASS_HOME"] == str(home)
        assert deployment["tags"][-1] == "project-news"
        assert TAG in deployment["tags"]
        parameters = deployment["parameters"]
        if deployment["name"] == "adapt-language":
            assert "language" not in parameters["config"], "that only a person can say"
            parameters["config"]["language"] = "sw"
        rest = {"language": "sw"} if deployment["name"] == "update-adapter" else {}
        flow_of(deployment).validate_parameters(parameters | rest)
    assert values["pull"][0]["prefect.deployments.steps.set_working_directory"] == {
        "directory": str(home)
    }
    assert read_deployments()["deployments"] == DEPLOYMENTS, "the file itself stays as it is"


def test_schedules_are_on_with_a_configuration_and_retraining_follows_the_time_zone(home):
    def schedules(**changes):
        values = prepare_deployments(wanted(home, **changes))["deployments"]
        return {
            d["name"]: (s["active"], s["timezone"]) for d in values for s in d.get("schedules", ())
        }

    assert schedules() == {
        "adapt-languages": (True, "Etc/UTC"),
        "monitor-drift": (True, "Etc/UTC"),
    }
    assert schedules(timezone="Asia/Tokyo", scheduled=False) == {
        "adapt-languages": (False, "Asia/Tokyo"),
        "monitor-drift": (False, "Etc/UTC"),
    }


def test_as_many_languages_are_updated_at_once_as_are_in_flight(home):
    config = AdaptConfig(languages=("sw",), execution={"max_parallel": 5})
    values = prepare_deployments(wanted(home, config=config), only=("update-adapter",))
    (update,) = values["deployments"]
    assert update["concurrency_limit"] == {"limit": 5, "collision_strategy": "ENQUEUE"}


def test_own_files_have_no_continual_study_to_prefill(home):
    data = {role: {"path": f"{role}.jsonl"} for role in ("usage", "coverage", "pool", "test")}
    config = AdaptConfig(languages=("sw",), data={"kind": "files", **data})
    values = prepare_deployments(wanted(home, config=config), only=("continual-study",))
    assert values["deployments"][0]["parameters"] == {}


def test_a_second_project_has_a_name_of_its_own_and_finds_its_own_languages(home):
    values = prepare_deployments(wanted(home, name="news"))
    assert {d["name"] for d in values["deployments"]} == {"news"}
    (adapt,) = [d for d in values["deployments"] if "adapt_languages" in d["entrypoint"]]
    execution = adapt["parameters"]["config"]["execution"]
    assert execution["language_deployment"] == "adapt-language/news"


def test_the_next_run_is_told_in_the_schedules_own_time_zone():
    schedule = {"cron": "0 2 * * 6", "timezone": "Europe/Berlin"}
    when = next_run(schedule, datetime(2026, 3, 26, tzinfo=UTC))
    assert when.isoformat() == "2026-03-28T02:00:00+01:00"
    after_the_clocks_changed = next_run(schedule, datetime(2026, 3, 29, tzinfo=UTC))
    assert after_the_clocks_changed.isoformat() == "2026-04-04T02:00:00+02:00"


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
def test_a_worker_gets_the_registry_of_who_deploys_but_no_credentials(monkeypatch, address, passed):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    environment = run_environment("/home")
    assert environment.get("MLFLOW_TRACKING_URI") == (address if passed else None)
    assert "secret" not in str(environment)
    assert "token" not in str(environment)


def test_deploying_without_a_server_says_how_to_start_one(home, monkeypatch):
    from flows import deploying

    monkeypatch.setattr(deploying, "server_address", lambda: None)
    with pytest.raises(ConfigError, match="prefect server start"):
        deploying.deploy(FOLDER.parent / "configs" / "starter.yaml", [], deploying.Options())


def test_checking_needs_no_server_and_tells_what_would_be_on(home, monkeypatch, capsys):
    from flows import deploying

    monkeypatch.setattr(deploying, "server_address", lambda: None)
    path = FOLDER.parent / "configs" / "starter.yaml"
    deploying.deploy(path, [], deploying.Options(timezone="Asia/Tokyo"), check=True)
    told = capsys.readouterr().out
    assert "weekly 0 2 * * 6 Asia/Tokyo, next 20" in told
    assert "can be applied" in told

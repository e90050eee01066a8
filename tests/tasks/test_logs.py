"""Logs: one JSON object per line, of a real run in a process of its own; text stays readable."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL

from compass_core.errors import ConfigError
from tasks.logs import JsonLines, Tidy, in_context, wants_json, without_secrets

ROOT = Path(__file__).parents[2]
FLOW = """
import logging
import flows
from prefect import flow, task
from tasks.logs import note_run

@task(name="cluster", persist_result=True)
def cluster(language):
    logging.getLogger("tasks.selection").warning("split\\nFAKE ERROR \\x1b[31m of %s", language)

@flow(name="tiny")
def tiny(language="swh_Latn"):
    from prefect import get_run_logger
    note_run("20261121T000000-abcdef")
    get_run_logger().info("hello https://me:hunter22@host/x and s3cr3t-of-mlflow")
    for _ in range(2):
        cluster("tur_Latn")

tiny()
logging.getLogger("tasks").error("no run")
"""


def record(message, *arguments, name="tasks.x"):
    return logging.LogRecord(name, logging.WARNING, __file__, 1, message, arguments, None)


def run_flow(tmp_path, first="", **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "COMPASS_"))}
    found = subprocess.run(
        [sys.executable, "-c", f"{first}\n{FLOW}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=kept
        | {
            "PREFECT_HOME": str(tmp_path),
            "COMPASS_HOME": str(tmp_path),
            "PREFECT_API_URL": PREFECT_API_URL.value(),
            "MLFLOW_TRACKING_PASSWORD": "s3cr3t-of-mlflow",
            **environment,
        },
    )
    return found.stderr


def test_run_logs_one_json_object_per_line_that_says_what_it_is_about(tmp_path, prefect_backend):
    lines = run_flow(tmp_path, COMPASS_LOG_FORMAT="json").splitlines()
    rows = [json.loads(line) for line in lines]
    hello = next(row for row in rows if row["message"].startswith("hello"))
    assert hello["language"] == "swh_Latn"
    assert hello["run"] == "20261121T000000-abcdef"
    assert hello["message"] == "hello https://me:***@host/x and ***"
    split = next(row for row in rows if row["message"].startswith("split"))
    assert split["message"] == "split\nFAKE ERROR \x1b[31m of tur_Latn"
    assert (split["language"], split["stage"]) == ("tur_Latn", "cluster")
    assert split["flow_run"] == hello["flow_run"] != ""
    assert split["level"] == "WARNING"
    after = next(row for row in rows if row["message"] == "no run")
    assert (after["flow_run"], after["language"]) == ("", "")
    assert after["time"].endswith("+00:00")
    assert hello["message"] in logs_at_the_server(hello["flow_run"])


@pytest.mark.parametrize("first", ["", "import prefect.main"], ids=["command", "worker"])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_server_is_told_no_secret_and_no_stage_that_was_kept(
    tmp_path, prefect_backend, log_format, first
):
    said = run_flow(tmp_path, first, COMPASS_LOG_FORMAT=log_format)
    assert "hunter22" not in said
    with get_client(sync_client=True) as client:
        (newest,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[newest.id]))
        stages = client.read_task_runs(flow_run_filter=wanted)
    assert {run.state_name for run in stages} == {"Completed", "Cached"}
    told = logs_at_the_server(newest.id)
    assert "hello https://me:***@host/x and ***" in told
    assert "hunter22" not in "".join(told)
    assert "Finished in state Completed()" in told
    assert not [text for text in told if "Cached" in text]


def logs_at_the_server(flow_run):
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[UUID(str(flow_run))]))
    with get_client(sync_client=True) as client:
        return [log.message for log in client.read_logs(wanted)]


def test_control_characters_never_leave_the_line():
    line = JsonLines().format(record("a\n\x1b[31m\x9b\u2028b"))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert json.loads(line)["message"] == "a\n\x1b[31m\x9b\u2028b"


def test_text_says_language_and_stage_and_escapes_what_could_fake_a_line():
    def job(spec):
        found = record("odd\r\n12:00:00 | ERROR | fake \x1b[2J")
        Tidy().filter(found)
        return {"text": found.getMessage()}

    about = {"language": "swh_Latn", "stage": "train"}
    text = in_context(job, {}, about)["text"]
    assert text == "[swh_Latn train] odd\\u000d\n    12:00:00 | ERROR | fake \\u001b[2J"


def test_secrets_of_the_environment_are_masked(monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:correct horse")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcd1234efgh")
    text = without_secrets("x correct horse y abcd1234efgh postgresql://u:pw@h/db")
    assert text == "x *** y *** postgresql://u:***@h/db"


def test_text_of_an_exception_is_masked_and_cannot_fake_a_line(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcd1234efgh")
    try:
        raise ValueError("broken abcd1234efgh\r\n12:00:00 | ERROR | fake")
    except ValueError:
        found = record("it failed")
        found.exc_info = sys.exc_info()
    Tidy().filter(found)
    Tidy().filter(found)
    text = logging.Formatter("%(message)s").format(found)
    assert "abcd1234efgh" not in text
    assert "\n12:00:00" not in text
    assert text.count("it failed") == 1


def test_exception_is_part_of_its_line():
    try:
        raise ValueError("broken")
    except ValueError:
        found = record("it failed")
        found.exc_info = sys.exc_info()
    values = json.loads(JsonLines().format(found))
    assert "ValueError: broken" in values["exception"]


def test_unknown_format_says_which_there_are(monkeypatch):
    monkeypatch.setenv("COMPASS_LOG_FORMAT", "xml")
    with pytest.raises(ConfigError, match="text or json"):
        wants_json()

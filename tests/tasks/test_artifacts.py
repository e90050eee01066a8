"""What the interface shows of a run's end: outcomes, the remedy, the report."""

import contextvars
import json
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from compass_core.config import AdaptConfig, AdaptLanguageConfig
from compass_core.report.data import ArmResult, LanguageReport, RunReport
from tasks import artifacts
from tasks.artifacts import (
    again_link,
    pages_on_the_side,
    publish,
    publish_run,
    report_markdown,
    run_slug,
)

FOLDER = Path("/srv/compass/runs/20260302T020000-abc123")
DEPLOYMENT = "8aa16043-7a83-419d-991f-a4a3410b0ab7"


def recipe(**changes):
    values = {"project": "night", "languages": ["sw", "tr"], "selection": {"budget": 40}}
    return AdaptConfig.model_validate(values | changes)


def language(code, name, status="promoted", error=""):
    arms = [ArmResult("zero-shot", accuracy=0.5), ArmResult("compass", accuracy=0.75)]
    found = [] if status == "failed" else arms
    return LanguageReport(
        language=code, name=name, script="Latn", status=status, error=error, arms=found
    )


def report(*languages):
    return RunReport(
        run_id=FOLDER.name,
        project="night",
        title="COMPASS",
        started="2026-03-02T02:00:00+00:00",
        finished="2026-03-02T03:00:00+00:00",
        languages=list(languages),
    )


@pytest.fixture
def pages(monkeypatch):
    """Return what is published, by key, without a server."""
    found = {}
    monkeypatch.setattr(artifacts, "publish", lambda key, *page: found.update({key: page}))
    return found


@pytest.fixture
def deployed(monkeypatch):
    monkeypatch.setattr(artifacts.deployment, "get_id", lambda: DEPLOYMENT)


ERROR = "E64 No space left on the device. Free some space and run the same command again."
BOTH = (
    language("swh_Latn", "Swahili"),
    language("tur_Latn", "Turkish", "failed", ERROR),
)


def test_a_failed_language_comes_first_with_its_error_in_full(pages):
    publish_run(report(*BOTH), recipe(), "adapt-languages", FOLDER)
    page, description = pages["outcome-night"]
    assert description == "1 of 2 languages done; failed: tur_Latn"
    assert page.index("**Turkish") < page.index("| Turkish") < page.index("| Swahili")
    assert "Free some space and run the same command again" in page
    assert "1 of 2 languages done, 1 FAILED" in page


def test_the_remedy_is_a_command_for_the_failed_languages_alone(pages):
    publish_run(report(*BOTH), recipe(), "adapt-languages", FOLDER)
    command = f"compass adapt \\\n  {FOLDER}/config.yaml \\\n  languages=tur_Latn"
    assert command in pages["outcome-night"][0]


def test_a_run_without_failures_offers_no_remedy(pages):
    publish_run(report(BOTH[0]), recipe(languages=["sw"]), "adapt-languages", FOLDER)
    page, description = pages["outcome-night"]
    assert description == "1 of 1 languages done"
    assert "again" not in page
    assert "| Swahili (swh\\_Latn) | ✓ Promoted | 50.0% | 75.0% | 0 |" in page


@pytest.mark.usefixtures("deployed")
def test_the_form_that_the_link_opens_has_the_failed_languages_and_the_same_settings():
    link = urlsplit(again_link(recipe(), ["tur_Latn"]))
    assert link.path == f"/v2/deployments/deployment/{DEPLOYMENT}/run"
    (filled,) = parse_qs(link.query)["parameters"]
    config = AdaptConfig.model_validate(json.loads(filled)["config"])
    assert config == recipe(languages=["tur_Latn"])


@pytest.mark.usefixtures("deployed")
def test_of_a_run_of_one_language_the_link_opens_the_form_of_that_language():
    one = AdaptLanguageConfig(language="tr")
    (filled,) = parse_qs(urlsplit(again_link(one, ["tur_Latn"])).query)["parameters"]
    assert AdaptLanguageConfig.model_validate(json.loads(filled)["config"]) == one


def test_a_run_of_the_command_line_has_no_form_to_link_to():
    assert again_link(recipe(), ["tur_Latn"]) == ""


@pytest.mark.usefixtures("deployed")
def test_an_address_that_is_too_long_for_browsers_is_left_out():
    long = recipe(selection={"sources": [f"source-{number}" * 10 for number in range(100)]})
    assert again_link(long, ["tur_Latn"]) == ""


def test_the_report_is_named_as_a_file_with_a_hint_where_no_address_is_known(monkeypatch):
    monkeypatch.delenv("COMPASS_REPORTS_URL", raising=False)
    text = report_markdown(FOLDER)
    assert f"\n{FOLDER}/report.html\n" in text
    assert "COMPASS_REPORTS_URL" in text
    assert "file://" not in text, "a browser does not open it from a page of a server"


def test_the_report_is_a_link_where_its_address_is_known(monkeypatch):
    monkeypatch.setenv("COMPASS_REPORTS_URL", "https://reports.example.org/compass/")
    text = report_markdown(FOLDER)
    address = f"https://reports.example.org/compass/{FOLDER.name}/report.html"
    assert f"[Open the report]({address})" in text


def test_keys_are_stable_so_that_an_artifact_has_a_history():
    assert run_slug(recipe()) == "night"
    assert run_slug(AdaptLanguageConfig(language="sw")) == "swh-latn"


def test_a_page_that_cannot_be_shown_costs_a_warning(monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("too large")

    monkeypatch.setattr(artifacts, "create_markdown_artifact", refuse)
    publish("gap-swh-latn", "text", "words")
    assert "gap-swh-latn could not be shown: too large" in caplog.text


@pytest.fixture
def slow_server(monkeypatch):
    """Return the keys that a server was told, which answers only when it may."""
    told, may_answer = [], threading.Event()

    def create(_page, key, description):
        assert may_answer.wait(30), description
        told.append(key)

    monkeypatch.setattr(artifacts, "create_markdown_artifact", create)
    return told, may_answer


KEYS = [f"page-{number}" for number in range(9)]


def a_run(error=None, done=lambda: None):
    with pages_on_the_side():
        for key in KEYS:
            publish(key, "page", "a page")
        done()
        if error is not None:
            raise error


def test_pages_on_the_side_let_the_run_go_on_and_are_all_there_in_the_end(slow_server):
    told, may_answer = slow_server

    def done():
        assert told == [], "nobody waits for a server that is slow"
        may_answer.set()

    a_run(done=done)
    assert sorted(told) == KEYS


def test_pages_of_languages_that_are_done_are_shown_though_the_run_fails(slow_server):
    told, may_answer = slow_server
    may_answer.set()
    with pytest.raises(OSError, match="full"):
        a_run(OSError("the disk is full"))
    assert sorted(told) == KEYS


def test_pages_of_a_run_that_is_stopped_hold_up_nobody(slow_server):
    told, may_answer = slow_server
    with pytest.raises(KeyboardInterrupt):
        a_run(KeyboardInterrupt())
    assert told == []
    may_answer.set()
    for thread in threading.enumerate():
        if thread.name.startswith("pages"):
            thread.join(30)
    assert len(told) < len(KEYS), "only those that were being told when the run was stopped"


def test_pages_outside_of_such_a_block_are_there_at_once(slow_server):
    told, may_answer = slow_server
    may_answer.set()
    publish("a", "page", "a page")
    assert told == ["a"]


def test_a_page_of_a_language_that_outlives_its_run_is_shown(slow_server):
    told, may_answer = slow_server
    may_answer.set()
    with pages_on_the_side():
        context = contextvars.copy_context()
    context.run(publish, "late", "page", "a page")
    assert told == ["late"]

"""From a drift event to the run of the update, on a real server with a real worker."""

from datetime import UTC, datetime

import pytest

from compass_core.config import AdaptConfig
from compass_core.monitoring.outbox import DriftEvent
from tasks.events import open_outbox, send_event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LANGUAGE, OTHER = "tur_Latn", "swh_Latn"
UPDATE = "update-adapter/update-adapter"
NOW = datetime(2026, 11, 20, 6, tzinfo=UTC)


@pytest.fixture
def deploy_stub(deploy):
    """Deploy the update with its work left out, and all automations."""

    def deploy_it(project, name=""):
        config = AdaptConfig(
            languages=(OTHER, LANGUAGE), project=project, execution={"max_parallel": 3}
        )
        return deploy({"update-adapter": "stub_update.update_adapter"}, config, name=name)

    return deploy_it


def put_event(*windows, language=LANGUAGE):
    event = DriftEvent(language, "1", "5pace", windows, 0.001, 0.08, NOW.isoformat())
    return open_outbox(language).put(event).id


def runs_for(server, event, place=UPDATE):
    return [r for r in server.runs_of(place) if r["parameters"].get("event") == event]


def run_of(server, event, number=1):
    """Return the newest run that was started for an event, once there are so many."""

    def started():
        runs = runs_for(server, event)
        return runs if len(runs) >= number else None

    runs = server.wait_for(started, f"run {number} of the update")
    assert len(runs) == number
    return max(runs, key=lambda run: run["created"])


def test_an_event_starts_the_update_of_its_language_once(connected, worker, deploy_stub):
    assert set(deploy_stub("once").values()) <= {"created", "replaced"}
    assert set(deploy_stub("once").values()) == {"unchanged"}
    event = put_event("a", "b")
    send_event.fn(LANGUAGE, event, "once")
    run = run_of(connected, event)
    assert run["parameters"]["language"] == LANGUAGE
    assert run["parameters"]["config"]["languages"] == [OTHER, LANGUAGE]
    assert connected.wait_for_end(run["id"])["state"]["type"] == "COMPLETED"
    kept = open_outbox(LANGUAGE).get(event)
    assert (kept.state, len(kept.sent), len(kept.attempts)) == ("done", 1, 1)


def test_an_update_that_is_killed_runs_again_by_itself(connected, worker, deploy_stub):
    deploy_stub("dies-once")
    event = put_event("c", "d")
    send_event.fn(LANGUAGE, event, "dies-once")
    run = run_of(connected, event)
    outbox = open_outbox(LANGUAGE)
    connected.wait_for(lambda: outbox.get(event).state == "done", "the update's second attempt")
    done = connected.wait_for_end(run["id"])
    assert (done["state"]["type"], done["run_count"]) == ("COMPLETED", 2)
    names = [state["name"] for state in connected.states(run["id"])]
    assert names.index("Crashed") < names.index("AwaitingRetry")
    kept = outbox.get(event)
    assert (len(kept.sent), len(kept.attempts)) == (1, 2)
    send_event.fn(LANGUAGE, event, "dies-once")
    repeated = connected.wait_for_end(run_of(connected, event, 2)["id"])
    assert repeated["state"]["name"] == "AlreadyDone"
    assert outbox.get(event).attempts == kept.attempts


def test_one_language_has_one_active_update_and_two_have_two(connected, worker, deploy_stub):
    deploy_stub("takes-long")
    languages = (LANGUAGE, LANGUAGE, OTHER)
    runs = [connected.run_deployment(UPDATE, {"language": code}) for code in languages]
    home = connected.folder / "home"

    def both_at_work():
        return all((home / f"at-work-{code}").exists() for code in (LANGUAGE, OTHER))

    def given_back():
        names = [state["name"] for run in runs[:2] for state in connected.states(run)]
        return "AwaitingConcurrencySlot" in names

    connected.wait_for(both_at_work, "two languages at work")
    connected.wait_for(given_back, "the second update of one language in line")
    (home / "enough").touch()
    for run in runs:
        state = connected.wait_for_end(run)["state"]
        assert state["type"] == "COMPLETED", state["message"]
    spans = [line.split() for line in (home / "intervals.txt").read_text().splitlines()]
    assert sorted(code for code, *_ in spans) == sorted(languages)
    same = sorted((start, end) for code, start, end in spans if code == LANGUAGE)
    assert same[0][1] <= same[1][0], "one after the other"


def test_a_second_project_answers_its_own_drifts_only(connected, worker, deploy_stub):
    deploy_stub("once")
    created = deploy_stub("news", name="news")
    assert created["compass-update-after-drift-news"] in ("created", "replaced")
    event = put_event("e", "f")
    send_event.fn(LANGUAGE, event, "news")

    def started():
        return runs_for(connected, event, "update-adapter/news")

    (run,) = connected.wait_for(started, "the run of the second project")
    assert connected.wait_for_end(run["id"])["state"]["type"] == "COMPLETED"
    assert runs_for(connected, event) == []

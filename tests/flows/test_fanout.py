"""What a parent makes of its children's states, on a real server."""

import time

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import AwaitingRetry, Completed, Crashed, Running

from flows import fanout
from flows.fanout import _Flight, _outcome
from tasks.progress import watch

pytestmark = pytest.mark.usefixtures("home")
CODE = "swh_Latn"


@flow
def nothing():
    """Stand in for a language."""


@pytest.fixture
def client():
    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def flight(client):
    run = client.create_flow_run(nothing, state=Running())
    return _Flight(client, runs={CODE: run.id})


def move(flight, state):
    flight.client.set_flow_run_state(flight.runs[CODE], state, force=True)


def test_a_child_that_died_is_waited_for_and_its_second_start_counts(flight):
    told = []
    stop = watch(lambda beat: told.append(beat.detail))
    move(flight, Crashed(message="its machine is gone"))
    assert flight.poll() == {} == flight.poll()
    move(flight, AwaitingRetry())
    assert flight.poll() == {}
    move(flight, Running())
    move(flight, Completed())
    assert flight.poll()[CODE].state.is_completed()
    stop()
    assert told == ["crashed; it may be started again", "AwaitingRetry"]


def test_a_child_that_nobody_starts_again_has_failed(flight, monkeypatch):
    monkeypatch.setattr(fanout, "_COMES_BACK_SECONDS", 0.0)
    move(flight, Crashed(message="its machine is gone"))
    outcome = _outcome(CODE, flight.poll()[CODE])
    assert outcome["status"] == "failed"
    assert outcome["error"].startswith("E96")
    assert "its machine is gone" in outcome["error"]


def test_a_child_that_died_is_not_started_again_for_a_parent_that_was_stopped(flight):
    move(flight, Crashed())
    flight.poll()
    flight.cancel()
    assert flight.client.read_flow_run(flight.runs[CODE]).state.is_cancelled()


def test_a_child_that_died_waits_for_a_server_that_is_away(flight, monkeypatch):
    monkeypatch.setattr(fanout, "_COMES_BACK_SECONDS", 0.2)
    move(flight, Crashed())
    assert flight.poll() == {}
    time.sleep(0.3)

    def away():
        raise httpx.ConnectError("nobody there")

    monkeypatch.setattr(flight, "_read", away, raising=False)
    assert flight.poll() == {}
    monkeypatch.undo()
    monkeypatch.setattr(fanout, "_COMES_BACK_SECONDS", 0.2)
    assert flight.poll() == {}


def test_a_child_that_died_three_times_is_not_waited_for(flight):
    for _ in range(2):
        move(flight, AwaitingRetry())
        move(flight, Running())
    move(flight, Crashed())
    assert flight.poll()[CODE].run_count == 3


def test_a_child_that_somebody_deleted_has_failed(flight):
    flight.client.delete_flow_run(flight.runs[CODE])
    ended = flight.poll()
    assert ended == {CODE: None}
    assert "deleted" in _outcome(CODE, None)["error"]


def test_more_children_than_one_answer_holds_are_all_seen(client, monkeypatch):
    monkeypatch.setattr(fanout, "_RUNS_PER_QUESTION", 2)
    runs = {f"l{n}": client.create_flow_run(nothing, state=Completed()).id for n in range(5)}
    assert set(_Flight(client, runs=runs).poll()) == set(runs)

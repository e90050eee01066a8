"""What the server cannot be told costs a page, never the result."""

import httpx
import pytest

from tasks import outage

REQUEST = httpx.Request("POST", "http://127.0.0.1:1/api/artifacts/")


def refused():
    raise httpx.ConnectError("refused", request=REQUEST)


def failing(status):
    raise httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(status))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(outage, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(outage, "_PAUSE_SECONDS", 0.0)
    outage._lost.clear()
    yield
    outage._lost.clear()


def test_lost_server_is_said_once_and_not_asked_again(monkeypatch, caplog):
    monkeypatch.setattr(outage, "server_answers", lambda: False)
    outage.tell_server(refused)
    outage.tell_server(refused)
    outage.tell_server(pytest.fail, "the server is not asked while it is gone")
    assert [record.name for record in caplog.records] == ["tasks.outage"]
    assert outage.server_is_lost()


def test_server_that_is_back_is_told_again(monkeypatch):
    monkeypatch.setattr(outage, "server_answers", lambda: True)
    told = []
    outage.tell_server(refused)
    outage.tell_server(told.append, 1)
    assert told == [1]
    assert not outage.server_is_lost()


def test_busy_server_is_an_outage_and_a_wrong_request_is_a_defect():
    outage.tell_server(failing, 503)
    outage._lost.clear()
    with pytest.raises(httpx.HTTPStatusError):
        outage.tell_server(failing, 422)
    with pytest.raises(ValueError, match="ours"):
        outage.tell_server(lambda: int("ours"))


def test_outage_is_found_behind_what_was_raised_from_it():
    behind = RuntimeError("Failed")
    behind.__cause__ = httpx.ConnectError("refused", request=REQUEST)
    assert outage.is_outage(behind)
    assert outage.is_outage(RuntimeError("Failed to reach API at http://127.0.0.1:1/api/"))
    assert not outage.is_outage(RuntimeError("something else"))

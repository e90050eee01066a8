import pytest

from compass_core.errors import DataError, TransientError
from tasks import retries
from tasks.retries import with_retries


@pytest.fixture
def slept(monkeypatch):
    delays = []
    monkeypatch.setattr(retries, "sleep_or_stop", delays.append)
    return delays


def failing(times, error):
    """Return a call that fails so often before it returns how often it was called."""
    calls = []

    def call():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return call


def test_what_may_pass_is_repeated_after_growing_pauses(slept):
    assert with_retries(failing(2, TransientError("busy"))) == 3
    assert slept == [2.0, 20.0]


def test_what_does_not_pass_is_raised_in_the_end(slept):
    with pytest.raises(TransientError, match="busy"):
        with_retries(failing(3, TransientError("busy")))
    assert len(slept) == 2


def test_what_the_caller_must_fix_is_not_repeated(slept):
    call = failing(1, DataError("empty"))
    with pytest.raises(DataError):
        with_retries(call)
    assert slept == []

"""A run that is cancelled stops the work of its languages, not only its own."""

import time

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from compass_core.config import ExecutionConfig
from flows import engines
from tasks.interruption import allow_work, stop_requested

pytestmark = pytest.mark.usefixtures("prefect_backend")


@pytest.fixture(autouse=True)
def work_is_allowed_afterwards():
    allow_work()
    yield
    allow_work()


@task(cache_policy=NO_CACHE)
def works_until_it_is_stopped(language):
    deadline = time.monotonic() + 300
    while not stop_requested() and time.monotonic() < deadline:
        time.sleep(0.05)
    return {"language": language, "stopped": stop_requested()}


def test_languages_are_told_to_stop_when_the_run_is_cancelled(monkeypatch, tmp_path):
    def cancelled(futures, _refused):
        assert futures
        raise KeyboardInterrupt

    monkeypatch.setattr(engines, "collect", cancelled)
    cells = {code: {"language": code} for code in ("swh_Latn", "tur_Latn")}

    @flow
    def run():
        with pytest.raises(KeyboardInterrupt):
            engines.run_cells(works_until_it_is_stopped, cells, ExecutionConfig(), tmp_path)

    started = time.monotonic()
    run()
    assert stop_requested()
    assert time.monotonic() - started < 200

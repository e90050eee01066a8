"""A stage inside a language's task: done when it ends, not when the language does."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import get_current_settings

from compass_core.errors import DataError, TransientError
from compass_core.storage import write_json
from flows.language_dag import Line
from tasks.caching import FlockLockManager, stage, stage_of_parts
from tasks.settings import open_store

pytestmark = pytest.mark.usefixtures("prefect_backend")
CALLS = []


@stage("line-toy", 1)
def toy(draft, language, number):
    CALLS.append(number)
    write_json(draft.folder / "number.json", number)


@stage("line-flaky", 1)
def flaky(draft, number):
    CALLS.append(number)
    if CALLS.count(number) < 2:
        raise TransientError("not yet")
    write_json(draft.folder / "number.json", number)


@stage_of_parts("line-parts")
def parts(language):
    yield "first", toy.part(language, 7)
    raise DataError("there is no second")


@pytest.fixture(autouse=True)
def no_calls(home):
    CALLS.clear()


def within_a_task(body):
    """Run `body(line)` as the pipeline of a language is run: inside one task of a flow."""

    @task(cache_policy=NO_CACHE)
    def language_task():
        return body(Line("swh_Latn"))

    @flow(name="one-line")
    def one_line():
        return language_task()

    return one_line()


def records():
    folder = open_store().root / "keys"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def is_free(record):
    """Ask the kernel, as another process would."""
    return not FlockLockManager().is_locked(record)


def test_a_stage_is_recorded_and_its_lock_is_free_while_the_language_still_runs():
    def body(line):
        line.run("toy", toy, language="swh_Latn", number=1)
        (record,) = records()
        assert is_free(record)
        return record

    assert within_a_task(body).startswith("line-toy-")


def test_one_key_asked_twice_by_a_language_is_made_once():
    def body(line):
        names = ("evaluate random", "evaluate champion")
        return [line.run(name, toy, language="swh_Latn", number=2) for name in names]

    first, second = within_a_task(body)
    assert first == second
    assert CALLS == [2]


def test_a_stage_after_one_that_was_retried_frees_its_lock_too():
    quick = flaky.with_options(retry_delay_seconds=0)

    def body(line):
        line.run("flaky", quick, number=3)
        line.run("toy", toy, language="swh_Latn", number=4)
        assert len(records()) == 2
        assert all(is_free(record) for record in records())

    within_a_task(body)
    assert CALLS == [3, 3, 4]


def test_parts_that_were_finished_before_one_failed_are_named():
    def body(line):
        with pytest.raises(DataError, match="no second"):
            line.run_parts("parts", parts, language="swh_Latn")
        return line.artifacts

    assert within_a_task(body) == {"first": toy.part("swh_Latn", 7)}
    assert CALLS == [7]


def test_a_failing_language_leaves_its_finished_stages_cached():
    def body(line):
        line.run("toy", toy, language="swh_Latn", number=5)
        raise DataError("the next stage cannot be")

    with pytest.raises(DataError, match="cannot be"):
        within_a_task(body)
    (record,) = records()
    assert is_free(record)


def test_a_killed_language_leaves_its_finished_stages_cached():
    script = textwrap.dedent(
        """
        import os, signal
        from tests_of_line import toy, within_a_task

        def body(line):
            line.run("toy", toy, language="swh_Latn", number=6)
            os.kill(os.getpid(), signal.SIGKILL)

        within_a_task(body)
        """
    ).replace("tests_of_line", __name__)
    paths = f"{Path.cwd()}{os.pathsep}{Path(__file__).parent}"
    environment = os.environ | get_current_settings().to_environment_variables(exclude_unset=True)
    killed = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    (record,) = records()
    assert is_free(record)
    within_a_task(lambda line: line.run("toy", toy, language="swh_Latn", number=6))
    assert CALLS == [], "the record of the killed language was believed"

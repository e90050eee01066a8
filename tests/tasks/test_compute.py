"""Trainer processes, for real: results, errors, deaths, progress, and nobody left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from compass_core.config import ExecutionConfig
from compass_core.errors import CompassError, ModelError, TransientError
from compass_core.storage import write_json
from tasks import interruption
from tasks.compute import TrainerPool, close_trainers, kill_trainers, run_job
from tasks.progress import watch

ONE = ExecutionConfig(trainers=1)


# Jobs have to be importable by the spawned process, so this module is put on its path.
def answer_job(spec):
    return {"pid": os.getpid(), "twice": 2 * spec["x"], "threads": spec.get("threads")}


def refuse_job(spec):
    raise ModelError("No such layer.", code="E35")


def die_job(spec):
    os.kill(os.getpid(), signal.SIGKILL)


def slow_job(spec):
    write_json(Path(spec["progress_path"]), {"step": 3, "total": 12, "loss": 1.5})
    Path(spec["started"]).touch()
    time.sleep(spec.get("seconds", 60))
    return {}


@pytest.fixture(autouse=True)
def importable(monkeypatch, home):
    """Give the jobs a module name that a spawned process can import."""
    folder = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder, prepend=os.pathsep)
    yield
    close_trainers()
    interruption.allow_work()


@pytest.fixture
def jobs():
    import importlib

    return importlib.import_module("test_compute")


@pytest.fixture
def pool():
    made = TrainerPool(1)
    yield made
    made.close()


def nothing():
    pass


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_run_beside_this_process_and_share_one(jobs, pool):
    first = pool.run(jobs.answer_job, {"x": 2}, nothing)
    second = pool.run(jobs.answer_job, {"x": 5}, nothing)
    assert (first["twice"], second["twice"]) == (4, 10)
    assert first["pid"] == second["pid"] != os.getpid()


def test_error_of_a_job_keeps_its_kind_code_and_words(jobs, pool):
    with pytest.raises(ModelError, match="No such layer") as failed:
        pool.run(jobs.refuse_job, {}, nothing)
    assert failed.value.code == "E35"
    assert pool.run(jobs.answer_job, {"x": 1}, nothing)["twice"] == 2


def test_killed_process_fails_its_own_job_only_and_is_replaced(jobs, pool):
    before = pool.run(jobs.answer_job, {"x": 1}, nothing)["pid"]
    with pytest.raises(TransientError, match="killed or out of memory") as failed:
        pool.run(jobs.die_job, {}, nothing)
    assert failed.value.code == "E91"
    assert pool.run(jobs.answer_job, {"x": 1}, nothing)["pid"] != before


def test_progress_of_a_job_reaches_the_watchers_and_its_file_goes(jobs, home, tmp_path):
    beats = []
    stop = watch(beats.append)
    try:
        spec = {"started": str(tmp_path / "started"), "seconds": 1.5}
        run_job(jobs.slow_job, spec, ONE, language="swh_Latn", stage="train")
    finally:
        stop()
    assert {(b.language, b.stage, b.state, b.fraction, b.detail) for b in beats} == {
        ("swh_Latn", "train", "running", 0.25, "loss 1.500")
    }
    assert not list((home / "store" / "tmp").glob("progress-*"))


def test_without_trainers_the_job_runs_here(jobs):
    found = run_job(
        jobs.answer_job, {"x": 1}, ExecutionConfig(trainers=0), language="", stage="check"
    )
    assert found["pid"] == os.getpid()
    assert found["threads"] == ExecutionConfig().threads_per_trainer


def test_interrupted_job_ends_at_once_and_is_no_reason_to_retry(jobs, tmp_path):
    errors = []

    def work():
        try:
            spec = {"started": str(tmp_path / "started")}
            run_job(jobs.slow_job, spec, ONE, language="", stage="train")
        except CompassError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_for((tmp_path / "started").exists)
    interruption.request_stop()
    kill_trainers()
    thread.join(20)
    assert not thread.is_alive()
    assert not isinstance(errors[0], TransientError)
    assert errors[0].code == "E92"
    with pytest.raises(CompassError, match="interrupted"):
        run_job(jobs.answer_job, {"x": 1}, ONE, language="", stage="train")


def test_trainer_ends_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import test_compute\n"
        "from tasks.compute import TrainerPool\n"
        "if __name__ == '__main__':\n"
        "    pool = TrainerPool(1)\n"
        "    print(pool.run(test_compute.answer_job, {'x': 1}, lambda: None)['pid'], flush=True)\n"
        f"    pool.run(test_compute.slow_job, {{'progress_path': {str(tmp_path / 'p')!r}, "
        f"'started': {str(tmp_path / 'started')!r}}}, lambda: None)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    with parent:
        trainer = int(parent.stdout.readline())
        wait_for((tmp_path / "started").exists)
        assert is_running(trainer)
        parent.kill()
    wait_for(lambda: not is_running(trainer), 10)

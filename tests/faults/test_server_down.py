"""A Prefect server that is down at the start, restarted in the middle, or gone for good."""

import time

import pytest

from compass_core.storage import read_json
from tests.faults.conftest import Bench
from tests.faults.corpora import LANGUAGES
from tests.real_server import FINAL, PrefectServer, end, free_port, wait_for

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1500)]


@pytest.fixture
def own(tmp_path):
    """A bench with a server of its own, which the test may kill."""
    (tmp_path / "server").mkdir()
    server = PrefectServer(tmp_path / "server").start()
    yield Bench(tmp_path, server).write(LANGUAGES[:3])
    server.stop()


def kill_server_in_the_middle(bench):
    """Start a run and kill the server once its first languages are clustered."""
    run = bench.begin()
    try:
        wait_for(lambda: list(bench.home.glob("store/cluster/*/MANIFEST.json")), "a cluster", 400)
    except BaseException:
        end(run)
        raise
    bench.server.kill()
    return run


def last_record(bench):
    name = (bench.home / "runs" / "LAST").read_text("utf-8").strip()
    return read_json(bench.home / "runs" / name / "run.json")


def test_server_that_is_down_is_said_quickly_before_anything_starts(tmp_path):
    server = PrefectServer(tmp_path)
    bench = Bench(tmp_path, server).write()
    for address, reason in (
        (f"http://127.0.0.1:{free_port()}/api", "does not answer"),
        ("http://nowhere.invalid/api", "does not answer"),
    ):
        started = time.monotonic()
        done = bench.adapt(PREFECT_API_URL=address)
        assert done.returncode == 1, done.stdout + done.stderr
        assert time.monotonic() - started < 300
        for word in ("E93", reason, address, "PREFECT_API_URL"):
            assert word in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(bench.home.glob("store/*/*"))


def test_temporary_server_that_cannot_start_is_said_with_its_reason(tmp_path):
    bench = Bench(tmp_path, PrefectServer(tmp_path)).write()
    prefect_home = bench.home / "prefect"
    prefect_home.mkdir(parents=True)
    (prefect_home / "prefect.db").write_bytes(b"no database" * 5000)
    bench.env = {k: v for k, v in bench.env.items() if k != "PREFECT_API_URL"}
    done = bench.adapt(PREFECT_HOME=str(prefect_home))
    assert done.returncode == 1, done.stdout + done.stderr
    for word in ("E93", "not a database", "server.log", "finished work is not in it"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_server_restarted_in_the_middle_knows_the_end_of_the_run(own):
    run = kill_server_in_the_middle(own)
    time.sleep(10)
    own.server.start()
    assert run.wait(600) == 0, own.said()
    before = own.written()
    (flow_run,) = own.server.runs()
    state = own.server.wait_for_end(flow_run["id"], 60)["state"]
    assert state["name"] == "Completed", state
    tasks = own.server.task_runs(flow_run["id"])
    assert tasks
    assert {task["state"]["type"] for task in tasks} <= FINAL | {"RUNNING", "PENDING"}
    outcomes = last_record(own)["languages"].values()
    assert [outcome["status"] for outcome in outcomes] == ["promoted"] * 3
    assert "Traceback" not in own.said()
    assert own.adapt().returncode == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {len(model["versions"]) for model in own.serving()["models"].values()} == {1}


def test_run_ends_well_without_the_server_and_loses_nothing(own):
    run = kill_server_in_the_middle(own)
    gone = time.monotonic()
    assert run.wait(900) == 0, own.said()
    print(f"\nended {time.monotonic() - gone:.0f} s after the server")  # noqa: T201 - measured
    said = own.said()
    assert "The Prefect server went away" in said
    assert "Traceback" not in said
    assert "EventsWorker" not in said
    outcomes = last_record(own)["languages"].values()
    assert [outcome["status"] for outcome in outcomes] == ["promoted"] * 3
    before = own.written()
    own.server.start()
    assert own.adapt().returncode == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before

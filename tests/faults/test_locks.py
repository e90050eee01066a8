"""Databases that somebody else has locked, and two runs of one language at once."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from tests.real_server import wait_for

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1500)]
HOLD = """
import duckdb, sys, time
connection = duckdb.connect(sys.argv[1])
connection.execute("CREATE TABLE IF NOT EXISTS theirs (i INTEGER)")
print("held", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def duckdb_held(path):
    """Hold a DuckDB file open for writing in another process; give its id."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def sqlite_held(path):
    """Hold the write lock of a SQLite file."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def stopped(process):
    with open(f"/proc/{process.pid}/stat") as stat:  # noqa: PTH123 - no file, but a view
        return stat.read().rpartition(")")[2].split()[0] == "T"


def test_catalogue_open_elsewhere_delays_the_run_and_names_the_holder(bench):
    bench.write()
    assert bench.adapt().returncode == 0
    with duckdb_held(bench.home / "catalog.duckdb") as holder:
        started = time.monotonic()
        asked = bench.compass("manifest", "-l", "sw")
        assert time.monotonic() - started < 120
        assert asked.returncode == 1, asked.stdout + asked.stderr
        assert "E63" in asked.stderr
        assert f"PID {holder}" in asked.stderr
        assert "Traceback" not in asked.stderr
        run = bench.adapt()
        assert run.returncode == 0, run.stdout + run.stderr
        assert f"PID {holder}" in run.stderr
    assert not list(bench.home.glob("*.damaged*"))
    assert bench.adapt().returncode == 0
    assert bench.compass("manifest", "-l", "sw").returncode == 0


def test_registry_locked_at_registration_leaves_it_pending_for_the_next_run(bench, ended):
    bench.write()
    run = bench.begin(COMPASS_FAULT="settle.start:stop")
    ended.append(run)
    wait_for(lambda: stopped(run), "the moment before the registration", 240)
    with sqlite_held(bench.home / "mlflow.db"):
        os.kill(run.pid, signal.SIGCONT)
        assert run.wait(400) == 1
    said = bench.said()
    assert "E94" in said
    assert "Traceback" not in said
    before = bench.written()
    again = bench.adapt()
    assert again.returncode == 0, again.stdout + again.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    (model,) = bench.serving()["models"].values()
    assert (list(model["versions"]), model["champion"]) == (["1"], "1")


def test_database_of_the_server_locked_for_a_while_only_delays_what_it_shows(bench, server, ended):
    bench.write()
    run = bench.begin()
    ended.append(run)
    wait_for(lambda: list(bench.home.glob("store/check-corpora/*/MANIFEST.json")), "the check", 240)
    with sqlite_held(server.folder / "prefect" / "prefect.db"):
        time.sleep(15)
    assert run.wait(400) == 0, bench.said()
    state = wait_for(lambda: server.runs() and server.runs()[0]["state"], "the state", 60)
    assert state["type"] == "COMPLETED"


def test_two_runs_of_one_language_at_once_do_the_work_once(bench):
    bench.write()
    runs = [None, None]

    def adapt(number):
        runs[number] = bench.adapt()

    threads = [threading.Thread(target=adapt, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    (model,) = bench.serving()["models"].values()
    assert (list(model["versions"]), model["champion"]) == (["1"], "1")
    assert len(bench.artefacts("adapter-train")) == 1
    done = [line for run in runs for line in run.stdout.splitlines() if "adapter-train" in line]
    assert len(done) == 2

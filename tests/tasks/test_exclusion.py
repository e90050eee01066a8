"""One run at a time per language, between processes that wait, stop and are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from compass_core.errors import CompassError
from tasks import interruption
from tasks.exclusion import language_slot
from tasks.settings import store_root
from tests.real_server import PrefectServer, wait_for

pytest_plugins = ["tests.object_storage"]

HOLDER = """
import logging, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from tasks.settings import prepare_environment
prepare_environment()
from tasks.exclusion import language_slot
with language_slot(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
print("free", flush=True)
"""


class Holder:
    """A process that holds a language until it is told to let go."""

    def __init__(self, language, home, **more):
        # What other tests set for Prefect, its logging too, is not for this process.
        env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        env |= {"COMPASS_HOME": str(home), "PYTHONUNBUFFERED": "1"} | more
        command = [sys.executable, "-c", HOLDER, language]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self, word):
        """Return the next line that has `word` in it."""
        while said := self.process.stdout.readline():
            if word in said:
                return said
        raise AssertionError(f"{word!r} was never said")

    def let_go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.line("free")

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def holders():
    started = []

    def start(*args, **more):
        started.append(Holder(*args, **more))
        return started[-1]

    yield start
    for holder in started:
        holder.end()


def test_second_process_says_whom_it_waits_for_and_goes_on_when_that_ends(home, holders):
    first = holders("swh_Latn", home)
    first.line("held")
    second = holders("swh_Latn", home)
    told = second.line("waits")
    assert f"Swahili (swh_Latn) is being worked on by process {first.process.pid} on " in told
    first.let_go()
    second.line("held")


def test_killed_holder_frees_the_language_at_once(home, holders):
    first = holders("swh_Latn", home)
    first.line("held")
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    started = time.monotonic()
    with language_slot("swh_Latn"):
        assert time.monotonic() - started < 10


@pytest.mark.nightly
def test_homes_that_share_a_folder_exclude_each_other(tmp_path, holders, monkeypatch):
    shared = tmp_path / "shared"
    first = holders("swh_Latn", tmp_path / "a", COMPASS_STORE=str(shared))
    first.line("held")
    second = holders("swh_Latn", tmp_path / "b", COMPASS_STORE=shared.as_uri())
    second.line("waits")
    first.let_go()
    second.line("held")
    assert (shared / "locks" / "language-swh_Latn.lock").is_file()


@pytest.fixture
def held_elsewhere(home):
    """Hold a language in another thread, which costs no process."""
    done = threading.Event()

    def hold(language):
        held = threading.Event()

        def work():
            with language_slot(language):
                held.set()
                done.wait(300)

        threading.Thread(target=work, daemon=True).start()
        assert held.wait(60)

    yield hold
    done.set()


def test_other_languages_and_nested_blocks_do_not_wait(held_elsewhere):
    held_elsewhere("tur_Latn")
    with language_slot("swh_Latn"), language_slot("swh_Latn"):
        holder = json.loads((store_root() / "locks" / "language-swh_Latn.lock").read_text())
        assert holder["pid"] == os.getpid()


def test_threads_of_one_process_exclude_each_other(home):
    inside, most = [], []

    def work():
        with language_slot("swh_Latn"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1, 1, 1, 1]


def test_waiting_run_can_be_stopped(held_elsewhere):
    held_elsewhere("swh_Latn")
    threading.Timer(0.5, interruption.request_stop).start()
    try:
        with pytest.raises(CompassError, match="E92"), language_slot("swh_Latn"):
            pytest.fail("entered")
    finally:
        interruption.allow_work()


def test_torn_lock_file_is_no_obstacle(home):
    path = store_root() / "locks" / "language-swh_Latn.lock"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with language_slot("swh_Latn"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_object_storage_without_a_shared_server_says_so_and_goes_on(home, s3_url, holders):
    holder = holders("swh_Latn", home, COMPASS_STORE=s3_url, PREFECT_API_URL="")
    assert "PREFECT_API_URL names no server" in holder.line("Another machine may work")
    holder.line("held")


def test_server_that_is_away_does_not_stop_the_work(home, s3_url, holders):
    holder = holders(
        "swh_Latn",
        home,
        COMPASS_STORE=s3_url,
        PREFECT_API_URL="http://127.0.0.1:9/api",
        PREFECT_CLIENT_MAX_RETRIES="0",
    )
    holder.line("Another machine may work")
    holder.line("held")


@pytest.mark.nightly
def test_machines_on_one_bucket_exclude_each_other_through_the_server(tmp_path, s3_url, holders):
    server = PrefectServer(tmp_path / "server")
    server.folder.mkdir()
    server.start()
    try:
        shared = {"COMPASS_STORE": s3_url, "PREFECT_API_URL": server.url}
        first = holders("swh_Latn", tmp_path / "a", **shared)
        first.line("held")
        limit = httpx.get(f"{server.url}/v2/concurrency_limits/compass-language-swh_Latn").json()
        assert (limit["limit"], limit["active"], limit["active_slots"]) == (1, True, 1)
        second = holders("swh_Latn", tmp_path / "b", **shared)
        assert "on another machine, which holds compass-language-swh_Latn" in second.line("waits")
        first.let_go()
        second.line("held")
        third = holders("swh_Latn", tmp_path / "c", **shared)
        third.line("waits")
        second.process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        third.line("held")
        assert time.monotonic() - killed < 180  # the lease of a minute and the server's round
        third.let_go()
        free = f"{server.url}/v2/concurrency_limits/compass-language-swh_Latn"
        wait_for(lambda: httpx.get(free).json()["active_slots"] == 0, "the slot to be free", 30)
    finally:
        server.stop()

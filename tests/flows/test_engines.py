"""Languages on a real Dask and a real Ray cluster, and trainings under a global limit."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL, temporary_settings

from compass_core.config import AdaptConfig, ExecutionConfig, StudyConfig
from compass_core.config_files import dump_config
from compass_core.errors import CompassError, ConfigError, DataError, TransientError
from flows import engines
from flows.engines import check_engine, run_cells
from tasks.compute import close_trainers
from tasks.limits import check_training_limit, training_slot
from tasks.progress import watch
from tasks.reporting import failed_outcome, name_finished
from tasks.workers import News, open_site, travelling
from tests.flows.conftest import GOOD, UNKNOWN, run_adapt, small_config
from tests.real_server import PrefectServer, free_port, processes_of, wait_for, wait_for_end_of

ROOT = Path(__file__).parents[2]
ENGINES = ["dask", pytest.param("ray", marks=pytest.mark.nightly)]


def execution(**values):
    return ExecutionConfig.model_validate(values)


def test_what_was_finished_is_named_after_the_way_back_from_a_worker():
    error = TransientError("away", code="E94")
    name_finished(error, {"adapter-train": {"path": "x"}})
    back = pickle.loads(pickle.dumps(error))
    assert failed_outcome("swh_Latn", back)["finished"] == {"adapter-train": {"path": "x"}}
    assert (str(back), back.code) == (str(error), "E94")


# ------------------------------------------------------------------ said before anything starts
def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(engines._PACKAGES, "dask", "no_package_of_this_name")
    with pytest.raises(ConfigError, match=r"E66 .*pip install 'compass-adapt\[dask\]'"):
        check_engine(execution(task_runner="dask"))


def test_a_cluster_that_does_not_answer_is_told_with_its_address():
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=f"{address}: nobody answers"):
        check_engine(execution(task_runner="dask", cluster_address=address))


@pytest.mark.parametrize(
    ("runner", "address", "wanted"),
    [("dask", "ray://127.0.0.1:1", "tcp://HOST:PORT"), ("ray", "tcp://h:1", "ray://HOST:PORT")],
)
def test_an_address_of_another_engine_is_told_with_the_right_form(runner, address, wanted):
    with pytest.raises(ConfigError, match=wanted):
        check_engine(execution(task_runner=runner, cluster_address=address))


@pytest.mark.parametrize(
    "values",
    [{"cluster_address": "tcp://h:1"}, {"fan_out": "deployments", "task_runner": "ray"}],
)
def test_settings_that_exclude_each_other_are_refused(values):
    with pytest.raises(ValueError, match="task_runner"):
        execution(**values)


def test_languages_are_not_spread_over_deployments_without_a_server():
    nowhere = temporary_settings({PREFECT_API_URL: None})
    with nowhere, pytest.raises(ConfigError, match="PREFECT_API_URL"):
        check_engine(execution(fan_out="deployments"), deployments=True)


def test_a_study_is_not_spread_over_deployments(prefect_backend, home):
    from flows.compare_strategies import compare_strategies

    config = StudyConfig(languages=GOOD, execution={"fan_out": "deployments"})
    with pytest.raises(ConfigError, match="only adapt-languages"):
        compare_strategies(config)


def test_a_missing_limit_is_told_with_the_command_that_creates_it(prefect_backend):
    with pytest.raises(ConfigError, match="prefect gcl create no-such --limit 1"):
        check_training_limit(execution(training_limit="no-such"))
    with (
        pytest.raises(ConfigError, match="prefect gcl create no-such --limit 1"),
        training_slot(execution(training_limit="no-such"), GOOD[0], "train"),
    ):
        raise AssertionError("it trained")


# ------------------------------------------------------------------ what travels
class StubbornError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def test_an_error_that_cannot_travel_is_replaced_by_its_words():
    known = DataError("No such file.", code="E15")
    assert travelling(known) is known
    replaced = travelling(StubbornError("over", "there"))
    assert str(pickle.loads(pickle.dumps(replaced))) == "StubbornError: over there"


def test_a_password_of_the_registry_stays_where_it_is(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://compass:secret@db/mlflow")
    monkeypatch.setenv("COMPASS_STORE", "s3://bucket/prefix")
    site = open_site(home)
    assert "secret" not in repr(site)
    assert dict(site.environment) == {
        "COMPASS_HOME": str(home.resolve()),
        "COMPASS_STORE": "s3://bucket/prefix",
    }


def test_news_of_other_processes_is_passed_on_line_by_line(tmp_path):
    heard = []
    stop = watch(heard.append)
    try:
        with News(tmp_path) as news:
            file = tmp_path / "swh_Latn.jsonl"
            whole = '{"language": "swh_Latn", "stage": "embed", "state": "done"}\n'
            file.write_text(whole + '{"language": "swh_Latn", "sta', "utf-8")
            wait_for(lambda: heard, "the first line", 30)
        assert [beat.stage for beat in heard] == ["embed"]
        assert news.heard == {"swh_Latn"}
    finally:
        stop()


# ------------------------------------------------------------------ real clusters
def stub_of(meeting):
    """Return a language's task that waits for another process, and the flow that runs it."""

    @task(name="stub", task_run_name="stub-{language}", cache_policy=NO_CACHE)
    def stub(language, config, shared, site=None):
        import os
        import time
        from pathlib import Path

        from compass_core.errors import DataError
        from tasks.progress import beat
        from tasks.workers import at

        with at(site, language):
            if language == "kin_Latn":
                raise DataError("No such corpus.", code="E15")
            if shared == "die" and not (Path(meeting) / "died").exists():
                (Path(meeting) / "died").touch()
                os._exit(9)
            (Path(meeting) / str(os.getpid())).touch()
            until = time.monotonic() + 90
            while shared == "meet" and len(list(Path(meeting).iterdir())) < 2:
                if time.monotonic() > until:
                    raise TimeoutError("nobody else came")
                time.sleep(0.1)
            beat(language, "look", "done")
            return {
                "status": "scored",
                "pid": os.getpid(),
                "home": os.environ["COMPASS_HOME"],
                "trainers": config.execution.trainers,
            }

    @flow(name="stubs")
    def stubs(config, shared, folder):
        cells = {
            language: {"language": language, "config": config, "shared": shared}
            for language in config.languages
        }
        return run_cells(stub, cells, config.execution, folder)

    return stubs


def at_work(kind, languages):
    return AdaptConfig(
        languages=languages, execution={"task_runner": kind, "max_parallel": 2, "trainers": 3}
    )


@pytest.mark.parametrize("kind", ENGINES)
def test_languages_work_in_processes_of_their_own(kind, prefect_backend, home, tmp_path):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    heard = []
    stop = watch(heard.append)
    try:
        outcomes = stub_of(str(meeting))(at_work(kind, (*GOOD, UNKNOWN)), "meet", tmp_path / "run")
    finally:
        stop()
    assert list(outcomes) == [*GOOD, UNKNOWN]
    assert outcomes[UNKNOWN]["error"] == "E15 No such corpus."
    assert outcomes[UNKNOWN]["error_kind"] == "DataError"
    done = [outcomes[language] for language in GOOD]
    assert len({outcome["pid"] for outcome in done} | {os.getpid()}) == 3
    assert {(o["home"], o["trainers"]) for o in done} == {(str(home.resolve()), 1)}
    said = {(beat.language, beat.stage, beat.state) for beat in heard}
    assert said == {*((code, "look", "done") for code in GOOD), (UNKNOWN, "adapt", "failed")}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_worker_that_dies_costs_no_language(kind, prefect_backend, home, tmp_path):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    outcomes = stub_of(str(meeting))(at_work(kind, GOOD), "die", tmp_path / "run")
    assert (meeting / "died").exists()
    assert {outcome["status"] for outcome in outcomes.values()} == {"scored"}


def made(home):
    """Return every artefact under `home` with the time it was made."""
    found = (home / "store").glob("*/*/MANIFEST.json")
    return {f"{p.parent.parent.name}/{p.parent.name}": p.stat().st_mtime_ns for p in found}


def plain(outcome):
    """Return what an outcome says about results, without ids and times of this run."""
    registry = {**outcome.get("registry", {}), "run_id": ""}
    return {k: v for k, v in outcome.items() if k != "timings"} | {"registry": registry}


@pytest.mark.nightly
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_cluster_makes_what_threads_make_and_once(kind, finished_run, home):
    config = small_config(
        execution={"trainers": 1, "max_parallel": 2, "task_runner": kind},
    )
    state, record = run_adapt(config)
    assert state.name == "CompletedWithFailures"
    local = finished_run.record["languages"]
    assert set(made(home)) == set(made(finished_run.home))
    for language, outcome in record["languages"].items():
        assert plain(outcome) == plain(local[language])
    before = made(home)
    _, again = run_adapt(config)
    assert made(home) == before
    for language in GOOD:
        arms = record["languages"][language]["arms"]
        assert again["languages"][language]["arms"] == arms
    close_trainers()  # of this process, which embedded the pool
    wait_for_end_of(home)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["dask", "ray"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_behind(kind, number, home, tmp_path):
    training = {"min_steps": 100_000, "max_steps": 100_000, "lora_rank": 4, "max_length": 128}
    config = small_config(
        languages=list(GOOD),
        training=training,
        execution={"trainers": 1, "max_parallel": 2, "task_runner": kind},
    )
    (tmp_path / "long.yaml").write_text(dump_config(config), "utf-8")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "adapt", str(tmp_path / "long.yaml")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    checkpoints = home / "store" / "checkpoints"
    try:
        wait_for(lambda: list(checkpoints.glob("*/*")), "the first checkpoint", 400)
        if number == signal.SIGINT:  # a terminal sends it to the whole group
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        process.wait(60)
        wait_for_end_of(home, 180)  # Ray's own agents look after their parent now and then
    finally:
        for pid in processes_of(home):
            os.kill(pid, signal.SIGKILL)
    assert not list((home / "store" / "adapter-train").glob("*"))


# ------------------------------------------------------------------ the limit on trainings
HOLDER = """
import os, sys, time
from pathlib import Path
from compass_core.config import ExecutionConfig
from tasks.limits import training_slot

one = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with training_slot(ExecutionConfig(training_limit="one"), "swh_Latn", "train"):
        os.close(os.open(one, os.O_CREAT | os.O_EXCL))  # a second one would fail here
        time.sleep(float(sys.argv[3]))
        one.unlink()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = PrefectServer(tmp_path_factory.mktemp("server")).start()
    started.post("/v2/concurrency_limits/", {"name": "one", "limit": 1})
    yield started
    started.stop()


def hold(server, one, times, seconds):
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(one), str(times), str(seconds)],
        env=server.env | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_limit_of_one_lets_one_process_train_at_a_time(server, tmp_path):
    holders = [hold(server, tmp_path / "one", 3, 0.5) for _ in range(2)]
    assert [holder.wait(300) for holder in holders] == [0, 0]
    assert server.get("/v2/concurrency_limits/one")["active_slots"] == 0


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_killed_training_frees_its_slot(server, tmp_path):
    first = hold(server, tmp_path / "first", 1, 600)
    wait_for((tmp_path / "first").exists, "the first training", 120)
    second = hold(server, tmp_path / "second", 1, 0)
    time.sleep(3)
    assert second.poll() is None
    first.kill()
    first.wait()
    assert second.wait(240) == 0


def test_a_server_that_is_away_is_worth_a_retry(monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = f"http://127.0.0.1:{free_port()}/api"
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(TransientError),
    ):
        check_training_limit(execution(training_limit="one"))


def test_a_run_that_was_stopped_does_not_wait_for_a_slot(prefect_backend):
    from tasks import interruption

    interruption.request_stop()
    try:
        with (
            pytest.raises(CompassError, match="E92"),
            training_slot(execution(training_limit="one"), GOOD[0], "train"),
        ):
            raise AssertionError("it trained")
    finally:
        interruption.allow_work()

"""Stages: keys from content, artefacts that are believed only while they are whole."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import get_current_settings

from compass_core.config import EmbeddingConfig, ExecutionConfig, TrainingConfig
from compass_core.errors import CompassError, DataError, TransientError
from compass_core.records import ArtifactRef
from compass_core.storage import read_json, write_json
from tasks.caching import (
    FlockLockManager,
    ModelRef,
    VerifyingKeyStore,
    as_ref,
    as_refs,
    key_value,
    parts_before,
    stage,
    stage_key,
    stage_of_parts,
)
from tasks.interruption import allow_work, request_stop
from tasks.settings import open_store

CALLS = []


@stage("toy", 1)
def toy(draft, language, number):
    CALLS.append(number)
    write_json(draft.folder / "number.json", number)


@stage("flaky", 1)
def flaky(draft, number):
    CALLS.append(number)
    if CALLS.count(number) < 2:
        raise TransientError("not yet")
    write_json(draft.folder / "number.json", number)


@stage("refuses", 1)
def refuses(draft, number):
    CALLS.append(number)
    raise DataError("the file is empty")


@stage_of_parts("several")
def several(language, numbers):
    for number in numbers:
        yield str(number), toy.part(language, number)


@stage_of_parts("several-flaky")
def several_flaky(language):
    yield "toy", toy.part(language, 1)
    yield "flaky", flaky.part(2)


@stage_of_parts("several-refused")
def several_refused(language):
    yield "toy", toy.part(language, 1)
    yield "refuses", refuses.part(2)


@stage("embed", 999)
def vectors(draft, number):
    CALLS.append(number)
    write_json(draft.folder / "vectors.json", number)


@pytest.fixture(autouse=True)
def no_calls(home):
    CALLS.clear()


def result_of(task, *args):
    @flow(name="one-result")
    def one():
        return task(*args)

    return as_ref(one())


def ref(sha256):
    return ArtifactRef("toy", "f" * 32, "toy/" + "f" * 32, sha256, 1)


def test_key_follows_content_and_ignores_places():
    here, there = ref("a" * 64), ArtifactRef("toy", "0" * 32, "elsewhere", "a" * 64, 9)
    assert key_value(here) == key_value(there)
    assert key_value(here) != key_value(ref("b" * 64))
    assert key_value(ModelRef("/x", "sha")) == key_value(ModelRef("/y", "sha"))


def test_key_ignores_what_cannot_change_a_result():
    assert key_value(ExecutionConfig(trainers=0)) == key_value(ExecutionConfig(trainers=7))
    small, large = EmbeddingConfig(batch_size=1), EmbeddingConfig(batch_size=512)
    assert key_value(small) == key_value(large)
    assert key_value(EmbeddingConfig(prefix="query: ")) != key_value(small)


def test_learning_rate_changes_the_key_of_training_alone():
    before, after = TrainingConfig(), TrainingConfig(learning_rate=1e-3)
    assert stage_key("adapter-train", 1, {"config": before}, ()) != stage_key(
        "adapter-train", 1, {"config": after}, ()
    )


def test_stage_version_and_name_are_part_of_the_key():
    keys = {stage_key(k, v, {"x": 1}, ()) for k, v in [("a", 1), ("a", 2), ("b", 1)]}
    assert len(keys) == 3


def test_object_without_a_fingerprint_cannot_enter_a_key():
    with pytest.raises(TypeError, match="fingerprint"):
        key_value(Path("/tmp"))


@pytest.mark.usefixtures("prefect_backend")
def test_second_call_is_cached_and_another_argument_is_not():
    first, second = result_of(toy, "swh_Latn", 1), result_of(toy, "swh_Latn", 1)
    other = result_of(toy, "swh_Latn", 2)
    assert first == second
    assert first != other
    assert CALLS == [1, 2]


@pytest.mark.usefixtures("prefect_backend")
@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_damaged_artefact_is_made_again(damage):
    made = result_of(toy, "swh_Latn", 3)
    path = open_store().root / made.path / "number.json"
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(b"")
    again = result_of(toy, "swh_Latn", 3)
    assert again.sha256 == made.sha256
    assert read_json(open_store().folder(again) / "number.json") == 3
    assert CALLS == [3, 3]


@pytest.mark.usefixtures("prefect_backend")
def test_garbage_in_prefects_record_costs_nothing_but_a_look():
    made = result_of(toy, "swh_Latn", 4)
    for record in (open_store().root / "keys").iterdir():
        record.write_bytes(b"\x00garbage")
    assert result_of(toy, "swh_Latn", 4) == made
    assert CALLS == [4], "the artefact was still there"


@pytest.mark.usefixtures("prefect_backend")
def test_same_key_at_once_runs_once():
    @flow(name="many")
    def many():
        futures = [toy.submit("swh_Latn", 5) for _ in range(4)]
        return [future.result() for future in futures]

    results = many()
    assert all(result == results[0] for result in results)
    assert CALLS == [5]


@pytest.mark.usefixtures("prefect_backend")
def test_transient_failure_is_retried_and_wrong_input_is_not(monkeypatch):
    quick = flaky.with_options(retry_delay_seconds=0)
    assert read_json(open_store().folder(result_of(quick, 6)) / "number.json") == 6
    assert CALLS == [6, 6]

    @flow(name="refused")
    def refused():
        return refuses(7)

    with pytest.raises(DataError, match="empty"):
        refused()
    assert CALLS == [6, 6, 7]
    assert open_store().refs("refuses") == []


def test_lock_of_a_killed_process_is_free_at_once(home, tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from tasks.caching import FlockLockManager
        FlockLockManager().acquire_lock("key", "other")
        print("held", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    holder = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=False
    )
    assert holder.stdout == "held\n"
    manager = FlockLockManager()
    assert manager.acquire_lock("key", "me", acquire_timeout=1)
    assert manager.is_lock_holder("key", "me")
    assert not FlockLockManager()._try("key", "someone else")
    manager.release_lock("key", "me")
    assert not manager.is_locked("key")


def test_a_record_of_a_process_with_its_results_elsewhere_is_passed_over(prefect_backend, tmp_path):
    from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

    made = result_of(toy, "swh_Latn", 41)
    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path / "elsewhere"}):
        assert result_of(toy, "swh_Latn", 41) == made
    assert CALLS == [41], "the artefact is there, so nothing is computed again"


# ------------------------------------------------------------------ records
@pytest.mark.parametrize("name", ["", "..", "toy-link"])
def test_what_is_no_record_is_refused(home, name):
    folder = home / "store" / "keys"
    folder.mkdir(parents=True)
    (folder / "toy-link").symlink_to(home / "elsewhere")
    with pytest.raises(ValueError, match="not a cache key"):
        VerifyingKeyStore()._resolve_path(name)


@pytest.mark.usefixtures("prefect_backend")
def test_a_result_that_became_a_link_is_not_believed_and_stops_nobody(tmp_path):
    made = result_of(toy, "swh_Latn", 9)
    (record,) = (open_store().root / "keys").iterdir()
    results = get_current_settings().results.local_storage_path
    result = results / json.loads(record.read_text())["storage_key"]
    result.rename(tmp_path / "elsewhere")
    result.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        VerifyingKeyStore().read_path(record.name)
    result.unlink()
    assert result_of(toy, "swh_Latn", 9) == made
    assert CALLS == [9]


# ------------------------------------------------------------------ parts
def state_of(task, *args):
    states = []

    @flow(name="one-state")
    def one():
        states.append(task(*args, return_state=True))

    one()
    return states[0]


@pytest.mark.usefixtures("prefect_backend")
def test_parts_are_one_task_run_that_says_whether_it_made_any():
    first = state_of(several, "swh_Latn", [1, 2])
    assert (first.name, CALLS) == ("Completed", [1, 2])
    more = state_of(several, "swh_Latn", [1, 2, 3])
    assert (more.name, CALLS) == ("Completed", [1, 2, 3])
    again = state_of(several, "swh_Latn", [3, 1])
    assert (again.name, again.type.value, CALLS) == ("Cached", "COMPLETED", [1, 2, 3])
    numbers = {
        name: read_json(open_store().folder(made) / "number.json")
        for name, made in as_refs(again).items()
    }
    assert numbers == {"3": 3, "1": 1}


@pytest.mark.usefixtures("prefect_backend")
def test_what_a_stage_made_is_found_as_a_part_and_the_other_way_round():
    made = result_of(toy, "swh_Latn", 4)
    assert toy.part("swh_Latn", 4) == made
    part = toy.part("swh_Latn", 5)
    assert result_of(toy, "swh_Latn", 5) == part
    assert CALLS == [4, 5]


@pytest.mark.usefixtures("prefect_backend")
def test_parts_that_are_done_are_kept_when_a_later_one_is_retried():
    toy.part("swh_Latn", 1)
    state = state_of(several_flaky.with_options(retry_delay_seconds=0), "swh_Latn")
    assert state.name == "Completed"
    assert CALLS == [1, 2, 2]


@pytest.mark.usefixtures("prefect_backend")
def test_a_part_that_failed_names_those_before_it():
    state = state_of(several_refused, "swh_Latn")
    failure = state.result(raise_on_failure=False)
    assert isinstance(failure, DataError)
    assert parts_before(failure) == {"toy": toy.part("swh_Latn", 1)}
    assert CALLS == [1, 2]


def test_other_options_of_a_stage_leave_its_part():
    assert toy.with_options(retries=7).part is toy.part


def test_a_damaged_artefact_is_found_by_one_and_made_anew_for_all():
    folder = open_store().folder(vectors.part(8))
    (folder / "vectors.json").write_text("9\n")  # the same size
    with ThreadPoolExecutor(8) as threads:
        made = [future.result() for future in [threads.submit(vectors.part, 8) for _ in range(8)]]
    assert CALLS == [8, 8]
    assert len(set(made)) == 1
    assert read_json(open_store().folder(made[0]) / "vectors.json") == 8


def test_a_part_waits_for_whoever_makes_it():
    key = f"toy-{stage_key('toy', 1, {'language': 'swh_Latn', 'number': 6}, ())}"
    lock = FlockLockManager()
    assert lock.acquire_lock(key, "a stage elsewhere")
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(toy.part, "swh_Latn", 6) for _ in range(2)]
        with pytest.raises(TimeoutError):
            both[0].result(timeout=0.3)
        assert CALLS == []
        lock.release_lock(key, "a stage elsewhere")
        first, second = (future.result(timeout=30) for future in both)
    assert first == second
    assert CALLS == [6]


def test_waiting_for_a_lock_ends_when_the_run_is_stopped():
    assert FlockLockManager().acquire_lock("toy-7", "a stage elsewhere")
    threading.Timer(0.2, request_stop).start()
    try:
        with pytest.raises(CompassError, match="interrupted"):
            FlockLockManager().acquire_lock("toy-7", "a stage here")
    finally:
        allow_work()

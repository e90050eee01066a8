"""Runs on a real worker process: cancelled from the interface, or killed in the middle."""

import sys
import time

import pytest
import yaml

from tests.real_server import FINAL, end, processes_of, wait_for

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1500)]
POOL = "faults"
FLOW, ENTRYPOINT = "adapt-language", "flows.adapt_language.adapt_language"
LONG = {"min_steps": 3000, "max_steps": 3000, "checkpoint_every": 20}


@pytest.fixture
def worker(server):
    process = server.worker(POOL)
    yield process
    end(process)


def deploy(bench, env=None, **changes):
    """Deploy `adapt-language` on the bench's corpora; return its name and parameters."""
    bench.write(**changes)
    values = yaml.safe_load(bench.config.read_text("utf-8"))
    (language,) = values.pop("languages")
    folder = bench.config.parent
    folder = folder.rename(folder.with_name(f"corpora-of-{bench.folder.name}"))
    results = {"PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(bench.folder / "results")}
    where = {"COMPASS_HOME": str(bench.home)} | results | (env or {})
    name = bench.server.deploy(FLOW, ENTRYPOINT, POOL, folder, where)
    return name, {"config": values | {"language": language}}


def ended(bench, run):
    """Fail if the run is over already."""
    state = bench.server.flow_run(run)["state"]
    assert state["type"] not in FINAL, f"{state['name']}: {state['message']}"


@pytest.mark.parametrize("trainers", [1, 0], ids=["trainer process", "in the flow's process"])
def test_cancelled_training_stops_and_the_next_run_goes_on_from_its_checkpoint(
    bench, worker, trainers
):
    name, parameters = deploy(bench, training=LONG, execution={"trainers": trainers})
    run = bench.server.run_deployment(name, parameters)
    wait_for(lambda: bench.checkpoints() or ended(bench, run), "a checkpoint", 400)
    before = bench.written()
    asked = time.monotonic()
    bench.server.cancel(run)
    wait_for(lambda: not processes_of(bench.home), "the end of the training", 60)
    stopped = time.monotonic() - asked
    state = bench.server.wait_for_end(run)["state"]
    told = time.monotonic() - asked
    sys.stdout.write(f"\ncancelled, trainers={trainers}: stopped in {stopped:.1f} s, ")
    sys.stdout.write(f"state {state['name']} after {told:.1f} s\n")
    assert state["type"] == "CANCELLED"
    assert bench.written() == before
    assert not bench.artefacts("adapter-train")
    assert not [p for p in bench.home.glob("store/tmp/*") if p.is_dir()], "a draft was left"
    steps = sorted(int(p.name.partition("-")[2]) for p in bench.checkpoints())
    assert steps
    parameters["config"]["training"] |= {"min_steps": 3000, "max_steps": 3000}
    again = bench.server.run_deployment(name, parameters)
    wait_for(lambda: bench.newest_step() > steps[-1], "the training to go on", 300)
    assert bench.written() == before
    bench.server.cancel(again)
    assert bench.server.wait_for_end(again)["state"]["type"] == "CANCELLED"
    wait_for(lambda: not processes_of(bench.home), "the end of the training", 60)


def test_killed_flow_process_is_crashed_and_a_retry_finds_what_was_finished(bench, worker):
    struck = bench.folder / "struck"
    struck.mkdir()
    env = {"COMPASS_FAULT": "adapter-train.built:kill", "COMPASS_FAULT_ONCE": str(struck)}
    name, parameters = deploy(bench, env)
    run = bench.server.run_deployment(name, parameters)
    first = bench.server.wait_for_end(run)
    assert first["state"]["type"] == "CRASHED", first["state"]
    assert list(struck.iterdir())
    wait_for(lambda: not processes_of(bench.home), "the end of all processes", 30)
    before = bench.written()
    assert before
    again = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}}
    for _ in range(2):  # Prefect reports a death twice; the second may hit a retry that was quick
        bench.server.post(f"/flow_runs/{run}/set_state", again)  # the button Retry
        last = bench.server.wait_for_end(run)
        if last["state"]["type"] == "COMPLETED":
            break
    assert last["state"]["type"] == "COMPLETED", last["state"]
    after = bench.written()
    assert {p: after[p] for p in before} == before, "finished work was done again"
    assert bench.artefacts("adapter-train")
    (model,) = bench.serving()["models"].values()
    assert (list(model["versions"]), model["champion"]) == (["1"], "1")

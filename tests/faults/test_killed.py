"""A process killed at every stage and in every gap: the next run goes on from there."""

import signal

import pytest

from tests.faults.conftest import Bench
from tests.faults.corpora import GAPS, STAGES
from tests.real_server import processes_of, wait_for

POINTS = [f"{stage}.built" for stage in STAGES] + [f"promote.{gap}" for gap in GAPS]


def kill_in_turn(bench, points):
    """Run the same command until it ends well; return the exit codes and what each run redid."""
    once = bench.folder / "struck"
    once.mkdir()
    asked = ",".join(f"{point}:kill" for point in points)
    codes = []
    for _ in range(len(points) + 1):
        before = bench.written()
        done = bench.adapt(COMPASS_FAULT=asked, COMPASS_FAULT_ONCE=str(once))
        codes.append(done.returncode)
        after = bench.written()
        assert {p: after[p] for p in before} == before, "finished work was done again"
        wait_for(lambda: not processes_of(bench.home), "the end of all processes", 30)
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0, done.stdout + done.stderr
            break
    assert len(list(once.iterdir())) == len(points), "every point was reached"
    return codes


@pytest.mark.nightly
def test_run_killed_in_training_and_in_registration_goes_on_from_there(bench):
    bench.write()
    points = ("adapter-train.built", "promote.uploaded", "promote.previous", "promote.moved")
    codes = kill_in_turn(bench, points)
    assert codes == [-9, -9, -9, -9, 0]
    view = bench.serving()
    (model,) = view["models"].values()
    assert (list(model["versions"]), model["champion"]) == (["1"], "1")
    assert view["runs"] == ["FINISHED"]


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_run_killed_in_every_stage_and_every_gap_ends_like_an_undisturbed_one(
    bench, server, tmp_path
):
    (tmp_path / "calm").mkdir()
    calm = Bench(tmp_path / "calm", server)
    calm.config = bench.write().config
    done = calm.adapt()
    assert done.returncode == 0, done.stdout + done.stderr
    codes = kill_in_turn(bench, POINTS)
    assert codes == [-9] * len(POINTS) + [0]
    assert bench.artefacts() == calm.artefacts()
    assert not list((bench.home / "store" / "tmp").glob("progress-*"))
    assert bench.serving() == calm.serving()
    (model,) = bench.serving()["models"].values()
    assert (list(model["versions"]), model["champion"]) == (["1"], "1")

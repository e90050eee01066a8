"""The continual study in miniature: two stages, every arm, one language that cannot take part."""

import json

import pytest

from compass_core.config import ContinualStudyConfig
from compass_core.errors import ConfigError
from compass_core.report.data import from_json

GOOD, UNKNOWN = "zul_Latn", "kin_Latn"
ARMS = ("frozen", "naive", "ewc-only", "replay-only", "rehearsal", "ecda", "full")
SMALL = {
    "project": "small-continual",
    "seeds": [3],
    "n_shifts": 2,
    "data": {"kind": "starter", "n_coverage": 24, "n_usage": 30, "n_test": 24}
    | {"n_missing_topics": 1},
    "clustering": {"n_clusters": [8], "relevance_quantile": 0},
    "selection": {"budget": 12},
    "training": {
        "lora_rank": 4,
        "learning_rate": 3e-3,
        "batch_size": 8,
        "epochs": 1,
        "max_length": 64,
    },
    "update": {"replay_share": 0.2},
    "evaluation": {"n_bootstrap": 100},
    "execution": {"trainers": 0, "max_parallel": 2},
}


def small(**changes):
    return ContinualStudyConfig.model_validate(SMALL | {"languages": [GOOD, UNKNOWN]} | changes)


def run(config):
    from flows.continual_study import continual_study
    from tasks.reporting import last_run_id, read_run
    from tasks.settings import runs_folder

    state = continual_study(config, return_state=True)
    run_id = last_run_id()
    return state, read_run(run_id), runs_folder() / run_id


@pytest.fixture(scope="module")
def finished(prefect_backend, tmp_path_factory):
    home = tmp_path_factory.mktemp("continual")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPASS_HOME", str(home))
        state, record, folder = run(small())
        report = from_json((folder / "report.json").read_text("utf-8"))
        yield home, state, record, folder, report


def test_a_language_that_fails_stops_no_other(finished):
    _, state, record, _, report = finished
    assert state.name == "CompletedWithFailures"
    assert record["languages"][UNKNOWN]["status"] == "failed"
    assert UNKNOWN in record["languages"][UNKNOWN]["error"]
    assert report.continual.languages == [GOOD]
    assert any("Left out" in note for note in report.continual.notes)


def test_every_arm_is_scored_on_every_slice_after_every_stage(finished):
    cells = finished[4].continual.cells
    found = {(cell.arm, cell.stage, cell.slice) for cell in cells}
    assert found == {(arm, i, j) for arm in ARMS for i in range(3) for j in range(3)}
    assert all(0 <= cell.accuracy <= 1 for cell in cells)
    first = {(c.slice, c.accuracy) for c in cells if c.stage == 0}
    assert len(first) == 3, "all arms share stage 0"


def test_frozen_neither_learns_nor_forgets_nor_costs(finished):
    frozen = finished[4].continual.arm("frozen")
    assert (frozen.learning, frozen.forgetting, frozen.cost_tokens) == (0, 0, 0)


def test_cost_counts_what_each_arm_reads(finished):
    costs = {(c.arm, c.stage): c for c in finished[4].continual.costs}
    naive, ecda = costs["naive", 1], costs["ecda", 1]
    assert naive.tokens_task == ecda.tokens_task > 0
    assert (naive.tokens_replay, naive.tokens_fisher) == (0, 0)
    assert ecda.tokens_replay > 0
    assert costs["ewc-only", 1].tokens_replay == 0
    # The first Fisher information reads everything so far, the second the newest examples alone.
    assert ecda.tokens_fisher > costs["ecda", 2].tokens_fisher > 0
    assert costs["ewc-only", 1].tokens_fisher == ecda.tokens_fisher, "shared by the arms"
    assert costs["rehearsal", 1].tokens_task >= naive.tokens_task
    assert costs["full", 2].tokens_task > costs["full", 1].tokens_task > naive.tokens_task


def test_summary_names_every_arm_and_claim(finished):
    folder, report = finished[3], finished[4]
    text = (folder / "summary.txt").read_text("utf-8")
    for word in ("Forgetting", "Final accuracy", "Cost of full", "ECDA minus naive", "λ = 2"):
        assert word in text, text
    assert len(report.continual.claims) == 4
    page = (folder / "report.html").read_text("utf-8")
    assert 'id="continual"' in page


def test_training_data_of_a_shift_is_for_all_arms_and_never_drawn_twice(finished):
    from tasks.settings import open_store

    home, _, record = finished[:3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPASS_HOME", str(home))
        root = open_store().root
        outcome = record["languages"][GOOD]["seeds"]["3"]
        from compass_core.storage import read_table

        drawn, tested = [], set()
        for stage in range(3):
            ref = outcome["artifacts"][f"sample {stage}"]
            rows = read_table(root / ref["path"] / "rows.parquet").to_pylist()
            assert {row["language"] for row in rows}.isdisjoint({GOOD})
            drawn += [(row["id"], row["parallel_id"]) for row in rows]
        test = read_table(root / outcome["artifacts"]["test"]["path"] / "rows.parquet")
        tested = set(test["parallel_id"].to_pylist())
    assert len({i for i, _ in drawn}) == len(drawn) == 36
    assert tested.isdisjoint({key for _, key in drawn})


def test_running_again_trains_nothing_and_says_the_same(finished):
    home, _, _, folder, _ = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPASS_HOME", str(home))
        before = sorted(path.name for path in (home / "store" / "update-train").iterdir())
        _, _, again = run(small())
        assert sorted(p.name for p in (home / "store" / "update-train").iterdir()) == before
    one, other = (
        json.loads((f / "report.json").read_text("utf-8"))["continual"] for f in (folder, again)
    )
    assert one == other


def test_an_artefact_that_is_lost_is_made_again_alone(finished):
    import shutil

    home, _, record, _, report = finished
    made = record["languages"][GOOD]["seeds"]["3"]["arms"]["ecda"]["stage 2"]["adapter"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPASS_HOME", str(home))
        shutil.rmtree(home / "store" / made["path"])
        _, again, folder = run(small(languages=[GOOD]))
    stage = again["languages"][GOOD]["seeds"]["3"]["arms"]["ecda"]["stage 2"]
    assert stage["adapter"]["sha256"] == made["sha256"]
    told = from_json((folder / "report.json").read_text("utf-8")).continual
    assert told.cells == report.continual.cells


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"arms": ["ecda", "ecda"]}, "ecda twice"),
        ({"seeds": [1, 1]}, "seeds names 1 twice"),
        ({"selection": {"draw": "nearest"}}, "choose `uniform`"),
        (
            {
                "data": {"kind": "files", "usage": {"path": "u.jsonl"}}
                | {"pool": {"path": "p.jsonl"}, "test": {"path": "t.jsonl"}}
            },
            "set data.kind to `starter`",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_with_advice(tmp_path, changes, advice):
    import yaml

    from compass_core.config_files import load_config

    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"languages": ["zu"], **changes}), "utf-8")
    with pytest.raises(ConfigError, match=advice):
        load_config(path, (), ContinualStudyConfig)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_backend", "home")
def test_an_update_on_a_smaller_grid_forgets_less_than_naive_fine_tuning():
    from compass_core.config_files import load_config
    from flows.running import shipped_config
    from tasks.compute import close_trainers

    grid = ["languages=uk", "seeds=31", "n_shifts=3", "arms=naive,ecda,full"]
    config = load_config(shipped_config("starter-continual.yaml"), grid, ContinualStudyConfig)
    try:
        state, _, folder = run(config)
    finally:
        close_trainers()
    assert state.name == "Completed", state.message
    report = from_json((folder / "report.json").read_text("utf-8")).continual
    naive, ecda = report.arm("naive"), report.arm("ecda")
    assert ecda.forgetting < 0.7 * naive.forgetting
    assert ecda.final_accuracy > naive.final_accuracy + 0.05
    assert ecda.cost_share_of_full < 0.4, "few shifts pay for the first Fisher information"

"""The guard of the claim: on a smaller grid COMPASS still beats random and target-only."""

import pytest

from compass_core.config import StudyConfig
from compass_core.config_files import load_config
from flows.running import shipped_config

GRID = ["languages=sw,uk,ur,tr,zu,fa", "seeds=21", "strategies=target-only,random,compass"]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_backend", "home")
def test_compass_beats_random_and_target_only_on_a_smaller_grid():
    from compass_core.report.data import from_json
    from flows.compare_strategies import compare_strategies
    from tasks.compute import close_trainers
    from tasks.reporting import last_run_id
    from tasks.settings import runs_folder

    config = load_config(shipped_config("starter-study.yaml"), GRID, StudyConfig)
    try:
        state = compare_strategies(config, return_state=True)
    finally:
        close_trainers()
    assert state.name == "Completed", state.message
    report = from_json((runs_folder() / last_run_id() / "report.json").read_text("utf-8"))
    found = {(c.comparison, c.metric): c for c in report.study.comparisons}
    for other in ("random", "target-only"):
        for metric in ("accuracy", "missing"):
            comparison = found[f"compass - {other}", metric]
            assert comparison.n_languages == 6
            assert comparison.mean_difference > 0, (other, metric, comparison)
    # The least p that six languages can give is .031; at one seed one of them may disagree.
    assert found["compass - target-only", "missing"].p < 0.1

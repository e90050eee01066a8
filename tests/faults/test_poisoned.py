"""One language that fails at every stage in turn: the others leave their results."""

import pytest

from compass_core.config import AdaptConfig
from compass_core.config_files import load_config
from compass_core.faults import FAULT
from tests.faults.corpora import CODES, LANGUAGES, write_corpora

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1500)]
POISONED = CODES[2]
STAGES = ("usage", "coverage", "test", "check", "embed", "cluster", "gap-score", "sample")
STAGES += ("evaluate", "adapter-train", "locate", "map", "decide", "settle")
POINTS = [*(f"{stage}.start" for stage in STAGES), "promote.run"]


@pytest.fixture(scope="module")
def run(prefect_backend, tmp_path_factory):
    """Run the flow over six languages in this process, in a home of the module."""
    folder = tmp_path_factory.mktemp("poisoned")
    config = load_config(write_corpora(folder / "corpora", LANGUAGES), [], AdaptConfig)

    def call(point=""):
        from flows.adapt_languages import adapt_languages
        from tasks.reporting import last_run_id, read_run

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COMPASS_HOME", str(folder / "home"))
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            if point:
                patch.setenv(FAULT, f"{point}@{POISONED}:raise")
            state = adapt_languages(config, return_state=True)
            return state, read_run(last_run_id())["languages"]

    return call


def assert_alone(state, outcomes, point):
    failed = [code for code, outcome in outcomes.items() if outcome["status"] == "failed"]
    assert failed == [POISONED]
    assert point in outcomes[POISONED]["error"]
    assert len(outcomes) - len(failed) == len(LANGUAGES) - 1
    assert state.name == "CompletedWithFailures"
    assert "Yoruba" in state.message


def test_language_that_fails_at_any_stage_stops_nobody(run):
    for point in reversed(POINTS):
        # From the last stage to the first: each run goes as far as the one before, from the store.
        state, outcomes = run(point)
        assert_alone(state, outcomes, point)
    state, outcomes = run()
    assert state.name == "Completed"
    assert {outcome["status"] for outcome in outcomes.values()} == {"promoted"}

"""One small real run that several tests look at: it trains adapters, so it is made once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from compass_core.config import AdaptConfig

GOOD = ("swh_Latn", "tur_Latn")
UNKNOWN = "kin_Latn"
"""A language that exists but is not in the starter's corpus."""


def small_config(**changes) -> AdaptConfig:
    """Return the starter in miniature: everything real, few steps, few items."""
    values = {
        "project": "small",
        "languages": [*GOOD, UNKNOWN],
        "data": {"kind": "starter", "n_coverage": 60, "n_usage": 60, "n_test": 120},
        "clustering": {"n_clusters": [8], "relevance_quantile": 0},
        "selection": {"budget": 40},
        "training": {
            "lora_rank": 4,
            "learning_rate": 3e-3,
            "batch_size": 8,
            "min_steps": 12,
            "max_steps": 12,
            "max_length": 128,
        },
        "evaluation": {"n_bootstrap": 100},
        "baselines": ["random"],
        "execution": {"trainers": 0, "max_parallel": 2},
    }
    return AdaptConfig.model_validate(values | changes)


@dataclass(frozen=True)
class FinishedRun:
    home: Path
    config: AdaptConfig
    state: object
    record: dict


@pytest.fixture(scope="session")
def finished_run(prefect_backend, tmp_path_factory):
    """A run over two good languages and one that cannot work, in a home of its own."""
    home = tmp_path_factory.mktemp("finished")
    config = small_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPASS_HOME", str(home))
        yield FinishedRun(home, config, *run_adapt(config))


def run_adapt(config):
    from flows.adapt_languages import adapt_languages
    from tasks.reporting import last_run_id, read_run

    state = adapt_languages(config, return_state=True)
    return state, read_run(last_run_id())

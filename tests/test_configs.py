"""Every shipped configuration loads, says how to run it, and reads the data it names."""

import os
from pathlib import Path

import pytest

from compass_core.config import AdaptConfig, ContinualStudyConfig, FilesData, StudyConfig
from compass_core.config_files import dump_config, load_config
from compass_core.languages import alpha2
from compass_core.reading import check_overlap, read_corpus
from compass_core.starter import DEMO_LANGUAGES, RECOMMENDED

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PAPER = ("llama31-8b.yaml", "phi4-mini.yaml", "qwen25-7b.yaml")
LOCAL = ("exams.yaml", "sib200.yaml")
SCHEMAS = {"starter-study.yaml": StudyConfig, "starter-continual.yaml": ContinualStudyConfig}
DATA = Path(os.environ.get("COMPASS_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def _test_data(monkeypatch):
    monkeypatch.setenv("COMPASS_TEST_DATA", str(DATA.resolve()))


def load(path):
    return load_config(path, (), SCHEMAS.get(path.name, AdaptConfig))


def test_there_are_configurations():
    assert {"starter.yaml", "starter-study.yaml", "quickstart-hub.yaml"} <= {
        p.name for p in CONFIGS
    }
    assert {*PAPER, *LOCAL} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_configuration_loads_and_loads_back_from_its_dump(path, tmp_path):
    config = load(path)
    again = tmp_path / path.name
    again.write_text(dump_config(config), "utf-8")
    assert load(again) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_configuration_opens_with_its_command_hardware_and_time(path):
    text = path.read_text("utf-8")
    head = text.split("\n\n")[0]
    assert all(line.startswith("#") for line in head.split("\n"))
    assert f"configs/{path.name}" in head
    assert "Hardware:" in head
    assert "Minutes:" in head or "Hours:" in head
    assert all(len(line) <= 100 for line in text.split("\n"))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_set_up_has_42_languages_and_the_public_corpora(name):
    config = load(ROOT / "configs" / name)
    assert len(config.languages) == 42
    assert isinstance(config.data, FilesData)
    assert config.data.pool.path == config.data.coverage.path == "CohereForAI/aya_dataset"
    assert config.data.usage.path == config.data.test.path == "CohereForAI/Global-MMLU"
    assert (config.data.usage.split, config.data.test.split) == ("dev", "test")
    assert [alpha2(code) for code in config.languages][:3] == ["am", "ar", "bn"]


def test_the_demonstration_repeats_the_settings_that_were_measured():
    for name in ("starter.yaml", "starter-study.yaml"):
        config = load(ROOT / "configs" / name)
        found = {
            "n_coverage": config.data.n_coverage,
            "n_usage": config.data.n_usage,
            "n_test": config.data.n_test,
            "n_missing_topics": config.data.n_missing_topics,
            "budget": config.selection.budget,
            "n_clusters": config.clustering.n_clusters[0],
            "fit_on": config.clustering.fit_on,
            "pool_fit_sample": config.clustering.pool_fit_sample,
            "relevance_quantile": config.clustering.relevance_quantile,
            "smoothing": config.selection.smoothing,
            "lora_alpha": config.training.lora_alpha,
            "lora_dropout": config.training.lora_dropout,
            "centre_languages": config.embedding.centre_languages,
            "lora_rank": config.training.lora_rank,
            "learning_rate": config.training.learning_rate,
            "batch_size": config.training.batch_size,
            "n_steps": config.training.max_steps,
        }
        assert found == RECOMMENDED
        assert config.training.min_steps == config.training.max_steps
    assert load(ROOT / "configs" / "starter.yaml").languages == tuple(DEMO_LANGUAGES)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA} (COMPASS_TEST_DATA)")
@pytest.mark.parametrize("name", LOCAL)
def test_configurations_of_local_files_read_them(name):
    config = load(ROOT / "configs" / name)
    few = config.data.pool.model_copy(update={"limit": 20})
    pool, _ = read_corpus(few, language=None, role="pool", base_folder=ROOT)
    assert len(pool["language"].unique()) >= 9
    for language in config.languages:
        tables = {
            role: read_corpus(
                getattr(config.data, role), language=language, role=role, base_folder=ROOT
            )[0]
            for role in ("usage", "coverage", "test")
        }
        assert tables["usage"].num_rows >= 90
        assert tables["coverage"].num_rows == 200
        assert tables["test"].num_rows >= 200
        assert check_overlap(**tables, pool=pool) == []
        answers = tables["test"]["answer_index"]
        assert answers.null_count == 0

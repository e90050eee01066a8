"""The user's own data and models through the same path: real files, an encoder fitted offline."""

import pytest

from compass_core.config_files import load_config
from compass_core.records import ArtifactRef
from compass_core.storage import read_table
from flows.running import shipped_config
from tasks.encoders import fit_from_file
from tasks.reporting import last_run_id, read_run
from tasks.settings import open_store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_backend")]

FEW_STEPS = [
    "training.min_steps=10",
    "training.max_steps=10",
    "baselines=[]",
    "execution.trainers=0",
    "clustering.n_clusters=[12]",
    "evaluation.n_bootstrap=100",
]


@pytest.fixture(scope="module")
def encoder(test_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "sib200"
    facts = fit_from_file(
        test_data / "sib200.jsonl.gz", folder, text="text", split="train", dimension=256, seed=0
    )
    assert facts["n_languages"] > 40
    return folder


@pytest.mark.parametrize(("config", "languages"), [("sib200.yaml", 2), ("exams.yaml", 2)])
def test_two_languages_of_real_files_are_adapted(
    config, languages, encoder, test_data, home, monkeypatch
):
    from flows.adapt_languages import adapt_languages

    monkeypatch.setenv("COMPASS_TEST_DATA", str(test_data))
    loaded = load_config(
        shipped_config(config), [f"embedding.encoder={encoder}", "data.test.limit=100", *FEW_STEPS]
    )
    state = adapt_languages(loaded, return_state=True)
    record = read_run(last_run_id())
    assert state.name == "Completed", state.message
    assert len(record["languages"]) == languages
    for code, outcome in record["languages"].items():
        assert outcome["registry"]["version"] == "1"
        assert outcome["verdict"]["reasons"]
        selected = read_table(
            open_store().folder(ArtifactRef.from_dict(outcome["artifacts"]["sample"]))
            / "selected.parquet"
        )
        assert selected.num_rows == loaded.selection.budget
        assert code not in selected["language"].to_pylist()
        assert all(selected["licence"].to_pylist())


def test_init_writes_a_configuration_that_loads(test_data, tmp_path):
    from flows.inspecting import write_config

    output = tmp_path / "compass.yaml"
    paths = {
        "usage": test_data / "multiq.jsonl.gz",
        "coverage": None,
        "pool": test_data / "xquad.jsonl.gz",
        "test": test_data / "exams.jsonl.gz",
    }
    write_config(paths, ["tr"], "", "", output)
    config = load_config(output)
    assert config.languages == ("tur_Latn",)
    assert config.data.kind == "files"

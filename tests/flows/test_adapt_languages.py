"""The whole path, for real: two languages adapted, one that fails, and what is left behind."""

import pytest

from compass_core.config import AdaptLanguageConfig
from compass_core.manifests import Catalog
from compass_core.records import ArtifactRef
from compass_core.storage import read_table
from tasks import registry
from tasks.promotion import configure_tracking
from tasks.reporting import last_run_id, read_run
from tasks.settings import open_store

GOOD = ("swh_Latn", "tur_Latn")
UNKNOWN = "kin_Latn"


@pytest.fixture
def at_home(finished_run, monkeypatch):
    monkeypatch.setenv("COMPASS_HOME", str(finished_run.home))
    return finished_run


def ref(outcome, name):
    return ArtifactRef.from_dict(outcome["artifacts"][name])


def test_failed_language_stops_nobody_and_is_named(at_home):
    languages = at_home.record["languages"]
    assert {code: outcome["status"] == "failed" for code, outcome in languages.items()} == {
        **dict.fromkeys(GOOD, False),
        UNKNOWN: True,
    }
    assert at_home.state.name == "CompletedWithFailures"
    assert UNKNOWN in at_home.state.message
    assert "E43" in languages[UNKNOWN]["error"] or "E51" in languages[UNKNOWN]["error"]


def test_every_arm_is_scored_on_the_same_items(at_home):
    for code in GOOD:
        arms = at_home.record["languages"][code]["arms"]
        assert set(arms) == {"zero-shot", "random", "compass"}
        folders = [open_store().folder(ArtifactRef.from_dict(a["evaluate"])) for a in arms.values()]
        ids = [read_table(folder / "items.parquet")["id"].to_pylist() for folder in folders]
        assert len(ids[0]) >= 100
        assert all(other == ids[0] for other in ids)


def test_selection_spends_the_budget_and_takes_nothing_from_the_target_or_the_test_set(at_home):
    for code in GOOD:
        outcome = at_home.record["languages"][code]
        folder = open_store().folder(ref(outcome, "sample"))
        selected = read_table(folder / "selected.parquet").to_pylist()
        test = read_table(open_store().folder(ref(outcome, "test")) / "rows.parquet")
        assert len(selected) == 40
        assert len({row["id"] for row in selected}) == 40
        assert code not in {row["language"] for row in selected}
        assert not {row["parallel_id"] for row in selected} & set(test["parallel_id"].to_pylist())
        assert all(row["reason"] and row["licence"] for row in selected)
        clusters = read_table(folder / "clusters.parquet").to_pylist()
        assert sum(row["selected"] for row in clusters) == 40
        assert all(row["selected"] <= row["capacity"] for row in clusters)


def test_adapter_is_registered_without_the_base_and_leads_back_to_its_data(at_home):
    configure_tracking()
    for code in GOOD:
        entry = at_home.record["languages"][code]["registry"]
        version = registry.get_version(entry["name"], entry["version"])
        tags = version.tags
        assert (
            tags["selection_fingerprint"]
            == ref(at_home.record["languages"][code], "sample").fingerprint
        )
        assert tags["base"] == "starter"
        assert tags["prefect_flow_run_id"]
        promoted = at_home.record["languages"][code]["verdict"]["promote"]
        assert ("champion" if promoted else "challenger") in version.aliases
        folder = registry.download_adapter(
            entry["name"], entry["version"], at_home.home / "down" / code
        )
        names = {path.name for path in folder.iterdir()}
        assert names == {
            "adapter_model.safetensors",
            "adapter_config.json",
            "README.md",
            "ADAPTER.json",
        }
        assert (folder / "adapter_model.safetensors").stat().st_size < 2**20


def test_promotion_follows_the_verdict(at_home):
    configure_tracking()
    for code in GOOD:
        outcome = at_home.record["languages"][code]
        champion = registry.champion(outcome["registry"]["name"])
        assert (outcome["status"] == "promoted") == outcome["verdict"]["promote"]
        assert (champion is not None) == outcome["verdict"]["promote"]
        assert outcome["verdict"]["reasons"]


def test_champion_loads_with_peft_alone(at_home):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from compass_core.starter import base_path

    trained = ref(at_home.record["languages"][GOOD[0]], "adapter-train")
    base = AutoModelForCausalLM.from_pretrained(
        base_path(), dtype=torch.float32, trust_remote_code=False
    )
    tokens = torch.arange(5, 15)[None]
    with torch.no_grad():
        before = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, open_store().folder(trained) / "adapter")
        after = adapted(tokens).logits
    assert not torch.allclose(before, after)


def test_catalogue_answers_what_was_selected(at_home):
    catalog = Catalog(at_home.home)
    summary = catalog.selection_summary(GOOD[0])
    assert summary["n_examples"] == 40
    assert summary["strategy"] == "compass"
    by_source = catalog.by_source_language(GOOD[0]).to_pylist()
    assert sum(row["n_examples"] for row in by_source) == 40


def test_report_and_summary_name_every_language(at_home):
    folder = at_home.home / "runs" / at_home.record["run_id"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    summary = (folder / "summary.txt").read_text(encoding="utf-8")
    for name in ("Swahili", "Turkish", "Kinyarwanda"):
        assert name in page
        assert name in summary
    assert "no evidence about Global-MMLU" in page
    assert "majority" in summary


def test_second_run_trains_nothing_and_changes_nothing(at_home):
    before = {p: p.stat().st_mtime_ns for p in (at_home.home / "store").glob("*/*/MANIFEST.json")}
    state, record = run_again(at_home.config)
    after = {p: p.stat().st_mtime_ns for p in (at_home.home / "store").glob("*/*/MANIFEST.json")}
    assert state.name == "CompletedWithFailures"
    for code in GOOD:
        first, second = at_home.record["languages"][code], record["languages"][code]
        assert second["artifacts"]["adapter-train"] == first["artifacts"]["adapter-train"]
        assert second["registry"]["version"] == first["registry"]["version"]
    new = [path.parent.parent.name for path in after.keys() - before.keys()]
    assert set(new) <= {"evaluate", "decision"}, "only a promoted champion is compared anew"


def test_new_learning_rate_repeats_training_and_evaluation_alone(at_home):
    config = at_home.config
    training = config.training.model_copy(update={"learning_rate": 1e-3})
    changed = config.model_copy(update={"training": training, "languages": (GOOD[0],)})
    _, record = run_again(changed)
    first, second = (r["languages"][GOOD[0]]["artifacts"] for r in (at_home.record, record))
    same = {name for name in first if name in second and first[name] == second[name]}
    assert {"usage", "coverage", "test", "cluster", "gap-score", "sample"} <= same
    assert {"adapter-train", "evaluate"}.isdisjoint(same)


def test_one_language_has_a_door_of_its_own(at_home):
    from flows.adapt_language import adapt_language

    values = at_home.config.model_dump(mode="json", exclude={"languages"})
    config = AdaptLanguageConfig.model_validate(values | {"language": "Swahili"})
    state = adapt_language(config, return_state=True)
    record = read_run(last_run_id())
    assert state.name == "Completed"
    trained = record["languages"][GOOD[0]]["artifacts"]["adapter-train"]
    assert trained == at_home.record["languages"][GOOD[0]]["artifacts"]["adapter-train"]


def run_again(config):
    from flows.adapt_languages import adapt_languages

    state = adapt_languages(config, return_state=True)
    return state, read_run(last_run_id())

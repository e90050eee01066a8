"""The registry: real MLflow, real safetensors, kills at every gap, processes that race."""

import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compass_core.adapter_files import adapter_sha256
from compass_core.errors import InputError, ModelError, TransientError
from compass_core.storage import sha256_file, sha256_tree
from tasks import registry, registry_files, tracking

NAME = registry.model_name("starter", "swh_Latn")


@pytest.fixture
def run_id(mlflow_home):
    return tracking.start_run("compass", "swh_Latn", tags={"language": "swh_Latn"}, params={})


@pytest.fixture
def adapter(tmp_path):
    return make_adapter(tmp_path / "adapter", 1.0)


def make_adapter(folder, value, *, ledger=True):
    folder.mkdir(parents=True)
    weights = {"layer.lora_A.weight": np.full((4, 8), value, np.float32)}
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (folder / "README.md").write_text("# An adapter")
    if ledger:
        files = {path.name: {"sha256": sha256_file(path)} for path in folder.iterdir()}
        (folder / "ADAPTER.json").write_text(json.dumps({"files": files}))
    return folder


def register(folder, run_id, **options):
    return registry.register_adapter(NAME, folder, run_id=run_id, tags={"seed": 0}, **options)


def register_values(tmp_path, run_id, *values):
    return [register(make_adapter(tmp_path / f"a{value}", value), run_id) for value in values]


def aliases():
    found = {alias: registry.by_alias(NAME, alias) for alias in ("champion", "previous")}
    return {alias: entry and entry.version for alias, entry in found.items()}


def stored_files(mlflow_home):
    return [path for path in (mlflow_home / "mlartifacts").rglob("*.safetensors")]


# -- registering


def test_registered_version_leads_back_to_run_tags_and_files(mlflow_home, run_id, adapter):
    version = register(adapter, run_id)
    (entry,) = registry.versions(NAME)
    assert (entry.version, entry.run_id, entry.language) == (version, run_id, "swh_Latn")
    assert entry.adapter_sha256 == adapter_sha256(adapter) == sha256_tree(adapter)
    assert entry.tags["seed"] == "0"
    outputs = tracking.client().get_run(run_id).outputs.model_outputs
    assert len(outputs) == 1
    (stored,) = stored_files(mlflow_home)
    assert {path.name for path in stored.parent.iterdir()} == {p.name for p in adapter.iterdir()}


def test_same_adapter_registered_twice_is_one_version_and_one_copy(mlflow_home, run_id, adapter):
    assert register(adapter, run_id) == register(adapter, run_id) == "1"
    assert len(stored_files(mlflow_home)) == 1
    assert len(tracking.client().get_run(run_id).outputs.model_outputs) == 1


def test_check_sees_the_files_read_back_and_can_refuse_them(run_id, adapter):
    seen = []

    def check(folder):
        seen.append(load_file(folder / "adapter_model.safetensors"))
        if len(seen) == 1:
            raise ModelError("the logits differ", code="E31")

    with pytest.raises(ModelError, match="E31"):
        register(adapter, run_id, check=check)
    assert registry.versions(NAME) == []
    assert register(adapter, run_id, check=check) == "1"
    assert seen[1]["layer.lora_A.weight"].tolist() == [[1.0] * 8] * 4


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "state.pkl"])
def test_pickle_beside_the_weights_is_refused_with_advice(run_id, adapter, name):
    (adapter / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(ModelError, match=r"E28 .*safe_serialization=True"):
        register(adapter, run_id)


def test_stranger_folder_and_link_in_the_folder_are_all_named(run_id, adapter, tmp_path):
    (adapter / "notes.txt").write_text("x")
    (adapter / "checkpoint-3").mkdir()
    (tmp_path / "elsewhere.md").write_text("x")
    (adapter / "README.md").unlink()
    (adapter / "README.md").symlink_to(tmp_path / "elsewhere.md")
    with pytest.raises(ModelError, match=r"(?s)E28 .*README.md is a link.*checkpoint-3.*notes.txt"):
        register(adapter, run_id)


def test_missing_or_truncated_weights_are_refused(run_id, adapter):
    weights = adapter / "adapter_model.safetensors"
    (adapter / "ADAPTER.json").unlink()
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"E29 .*damaged"):
        register(adapter, run_id)
    weights.unlink()
    with pytest.raises(ModelError, match=r"E26 .*lacks adapter_model.safetensors"):
        register(adapter, run_id)


def test_weights_that_differ_from_their_ledger_are_refused(run_id, adapter):
    save_file({"x": np.zeros(3, np.float32)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"E29 .*ADAPTER.json describes"):
        register(adapter, run_id)


@pytest.mark.parametrize(("slug", "language"), [("a/b", "swh_Latn"), ("a", "sw"), ("", "swh_Latn")])
def test_name_outside_the_pattern_is_refused(slug, language):
    with pytest.raises(ModelError, match=r"compass\.starter\.swh_Latn"):
        registry.model_name(slug, language)


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.mark.parametrize(
    "gap",
    ["log_model_artifacts", "finalize_logged_model", "create_model_version", "log_outputs"],
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_registration_killed_at_any_gap_is_finished_by_calling_again(
    mlflow_home, run_id, adapter, monkeypatch, gap, moment
):
    from mlflow import MlflowClient

    original = getattr(MlflowClient, gap)

    def killed(*args, **kwargs):
        if moment == "after":
            original(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, gap, killed)
        with pytest.raises(Killed):
            register(adapter, run_id)
    assert register(adapter, run_id) == "1"
    assert len(registry.versions(NAME)) == 1
    assert len(stored_files(mlflow_home)) == 1
    assert len(tracking.client().get_run(run_id).outputs.model_outputs) == 1


# -- aliases


def test_language_never_seen_has_neither_champion_nor_challenger(mlflow_home):
    assert registry.champion(NAME) is None
    assert registry.challenger(NAME) is None


def test_model_without_alias_has_no_champion(run_id, adapter):
    version = register(adapter, run_id)
    assert registry.champion(NAME) is None
    registry.set_challenger(NAME, version)
    assert registry.challenger(NAME).version == version
    assert registry.champion(NAME) is None


def test_promotion_moves_champion_and_previous_and_frees_the_challenger(tmp_path, run_id):
    first, second = register_values(tmp_path, run_id, 1.0, 2.0)
    registry.set_challenger(NAME, first)
    registry.promote(NAME, first, expected_champion=None)
    assert aliases() == {"champion": first, "previous": None}
    registry.set_challenger(NAME, second)
    promoted = registry.promote(NAME, second, expected_champion=first)
    assert aliases() == {"champion": second, "previous": first}
    assert registry.challenger(NAME) is None
    assert promoted.aliases == ("champion",)
    assert promoted.tags["promoted_over"] == first


def test_promotion_repeated_changes_nothing(tmp_path, run_id):
    first, second = register_values(tmp_path, run_id, 1.0, 2.0)
    registry.promote(NAME, first, expected_champion=None)
    registry.promote(NAME, second, expected_champion=first)
    registry.promote(NAME, second, expected_champion=first)
    registry.promote(NAME, second, expected_champion=second)
    assert aliases() == {"champion": second, "previous": first}


def test_promotion_over_another_champion_than_expected_asks_to_compare_again(tmp_path, run_id):
    first, second, third = register_values(tmp_path, run_id, 1.0, 2.0, 3.0)
    registry.promote(NAME, first, expected_champion=None)
    registry.promote(NAME, second, expected_champion=first)
    with pytest.raises(TransientError, match=r"is version 2, not version 1 .*Evaluate against"):
        registry.promote(NAME, third, expected_champion=first)
    with pytest.raises(TransientError, match=r"is version 2, not the base alone"):
        registry.promote(NAME, third, expected_champion=None)
    assert aliases() == {"champion": second, "previous": first}


def test_promotion_of_damaged_files_is_refused_and_the_champion_stays(
    mlflow_home, tmp_path, run_id
):
    first, second = register_values(tmp_path, run_id, 1.0, 2.0)
    registry.promote(NAME, first, expected_champion=None)
    weights = stored_weights(second)
    make_damage(weights)
    with pytest.raises(ModelError, match=r"E29 .*version 2 is damaged"):
        registry.promote(NAME, second, expected_champion=first)
    assert aliases() == {"champion": first, "previous": None}


def stored_weights(version):
    folder = registry_files.location(registry.get_version(NAME, version)).removeprefix("file://")
    return Path(folder) / "adapter_model.safetensors"


def make_damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_damaged_files_of_a_version_are_restored_by_registering_again(tmp_path, run_id, adapter):
    version = register(adapter, run_id)
    weights = stored_weights(version)
    make_damage(weights)
    with pytest.raises(ModelError, match="E29"):
        registry.download_adapter(NAME, version, tmp_path / "copy")
    assert register(adapter, run_id) == version
    registry.download_adapter(NAME, version, tmp_path / "copy")


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_promotion_killed_at_any_gap_is_finished_by_calling_again(
    tmp_path, run_id, monkeypatch, kill_at
):
    first, second = register_values(tmp_path, run_id, 1.0, 2.0)
    registry.promote(NAME, first, expected_champion=None)
    registry.set_challenger(NAME, second)
    calls = []
    original = registry._point

    def killed(*args):
        calls.append(args)
        if len(calls) == kill_at:
            raise Killed
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_point", killed)
        with pytest.raises(Killed):
            registry.promote(NAME, second, expected_champion=first)
    assert registry.champion(NAME).version == (second if kill_at == 3 else first)
    registry.promote(NAME, second, expected_champion=first)
    assert aliases() == {"champion": second, "previous": first}
    assert registry.challenger(NAME) is None


def test_verdict_is_kept_on_the_version(run_id, adapter):
    version = register(adapter, run_id)
    for _ in range(2):
        registry.record_verdict(
            NAME, version, promote=False, reasons=["p = .31", "12 items"], tags={"p_value": 0.31}
        )
    tags = registry.get_version(NAME, version).tags
    assert (tags["gate"], tags["verdict"], tags["p_value"]) == (
        "failed",
        "p = .31; 12 items",
        "0.31",
    )


# -- rollback


def test_rollback_walks_back_to_the_base_one_champion_at_a_time(tmp_path, run_id):
    values = register_values(tmp_path, run_id, 1.0, 2.0, 3.0)
    for before, version in zip([None, *values], values, strict=False):
        registry.promote(NAME, version, expected_champion=before)
    assert registry.rollback(NAME).version == "2"
    assert aliases() == {"champion": "2", "previous": "1"}
    assert registry.get_version(NAME, "3").rolled_back
    assert registry.rollback(NAME).version == "1"
    assert aliases() == {"champion": "1", "previous": None}
    assert registry.rollback(NAME) is None
    assert aliases() == {"champion": None, "previous": None}
    with pytest.raises(ModelError, match=r"E53 .*nothing to roll back"):
        registry.rollback(NAME)


def test_rollback_of_a_named_champion_may_be_repeated(tmp_path, run_id):
    values = register_values(tmp_path, run_id, 1.0, 2.0, 3.0)
    for before, version in zip([None, *values], values, strict=False):
        registry.promote(NAME, version, expected_champion=before)
    for _ in range(3):
        assert registry.rollback(NAME, expected_champion="3").version == "2"
    assert aliases() == {"champion": "2", "previous": "1"}
    with pytest.raises(TransientError, match="not version 1"):
        registry.rollback(NAME, expected_champion="1")


@pytest.mark.parametrize("kill_at", [1, 2])
def test_rollback_killed_at_any_gap_is_finished_by_calling_again(
    tmp_path, run_id, monkeypatch, kill_at
):
    values = register_values(tmp_path, run_id, 1.0, 2.0, 3.0)
    for before, version in zip([None, *values], values, strict=False):
        registry.promote(NAME, version, expected_champion=before)
    calls = []
    original = registry._point

    def killed(*args):
        calls.append(args)
        if len(calls) == kill_at:
            raise Killed
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_point", killed)
        with pytest.raises(Killed):
            registry.rollback(NAME, expected_champion="3")
    registry.rollback(NAME, expected_champion="3")
    assert aliases() == {"champion": "2", "previous": "1"}


def test_rolled_back_version_returns_only_on_purpose(tmp_path, run_id):
    first, second = register_values(tmp_path, run_id, 1.0, 2.0)
    registry.promote(NAME, first, expected_champion=None)
    registry.promote(NAME, second, expected_champion=first)
    registry.rollback(NAME)
    with pytest.raises(ModelError, match=r"E53 .*was rolled back"):
        registry.promote(NAME, second, expected_champion=first)
    registry.promote(NAME, second, expected_champion=first, again=True)
    assert aliases() == {"champion": second, "previous": first}


def test_rollback_passes_over_versions_that_were_rolled_back_themselves(tmp_path, run_id):
    first, second = register_values(tmp_path, run_id, 1.0, 2.0)
    registry.promote(NAME, first, expected_champion=None)
    registry.promote(NAME, second, expected_champion=first)
    registry.promote(NAME, first, expected_champion=second)
    assert registry.rollback(NAME).version == second
    assert aliases() == {"champion": second, "previous": None}
    assert registry.rollback(NAME) is None


def test_rollback_to_damaged_files_is_refused_and_changes_nothing(tmp_path, run_id):
    first, second = register_values(tmp_path, run_id, 1.0, 2.0)
    registry.promote(NAME, first, expected_champion=None)
    registry.promote(NAME, second, expected_champion=first)
    make_damage(stored_weights(first))
    with pytest.raises(ModelError, match="E29"):
        registry.rollback(NAME)
    assert aliases() == {"champion": second, "previous": first}
    assert not registry.get_version(NAME, second).rolled_back


# -- downloading and listing


def test_champion_comes_back_by_alias_whole_and_once(tmp_path, run_id, adapter):
    version = register(adapter, run_id)
    registry.promote(NAME, version, expected_champion=None)
    folder = registry.download_adapter(NAME, "champion", tmp_path / "copy")
    assert sha256_tree(folder) == sha256_tree(adapter)
    before = (folder / "adapter_config.json").stat().st_mtime_ns
    assert registry.download_adapter(NAME, version, tmp_path / "copy") == folder
    assert (folder / "adapter_config.json").stat().st_mtime_ns == before
    make_damage(folder / "adapter_model.safetensors")
    registry.download_adapter(NAME, "champion", tmp_path / "copy")
    assert sha256_tree(folder) == sha256_tree(adapter)


def test_missing_champion_says_what_to_run(tmp_path, run_id, adapter):
    with pytest.raises(ModelError, match=r"E53 .*Nothing is registered for swh_Latn"):
        registry.download_adapter(NAME, "champion", tmp_path / "copy")
    register(adapter, run_id)
    with pytest.raises(ModelError, match=r"E53 .*has 1 versions; give a number"):
        registry.download_adapter(NAME, "champion", tmp_path / "copy")
    with pytest.raises(ModelError, match=r"E53 .*no version 7"):
        registry.download_adapter(NAME, "7", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_deleted_champion_is_missing_not_wrong(tmp_path, run_id):
    first, second = register_values(tmp_path, run_id, 1.0, 2.0)
    registry.promote(NAME, first, expected_champion=None)
    registry.promote(NAME, second, expected_champion=first)
    tracking.client().delete_model_version(NAME, second)
    assert registry.champion(NAME) is None
    assert registry.by_alias(NAME, "previous").version == first
    registry.promote(NAME, first, expected_champion=None)
    assert registry.champion(NAME).version == first


def test_home_that_moved_still_finds_its_adapters(mlflow_home, tmp_path, run_id, adapter):
    version = register(adapter, run_id)
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(mlflow_home / "mlflow.db", moved / "mlflow.db")
    shutil.move(mlflow_home / "mlartifacts", moved / "mlartifacts")
    tracking.configure(tracking.default_tracking_uri(moved), moved / "mlartifacts")
    folder = registry.download_adapter(NAME, version, tmp_path / "copy")
    assert sha256_tree(folder) == sha256_tree(adapter)


def test_serving_lists_every_language_with_its_aliases(tmp_path, run_id, adapter):
    version = register(adapter, run_id)
    registry.promote(NAME, version, expected_champion=None)
    other = registry.model_name("starter", "yor_Latn")
    candidate = registry.register_adapter(other, adapter, run_id=run_id, tags={})
    registry.set_challenger(other, candidate)
    tracking.client().create_registered_model("someone-elses")
    swahili, yoruba = registry.list_serving()
    assert (swahili.language, swahili.slug, swahili.champion.version) == (
        "swh_Latn",
        "starter",
        "1",
    )
    assert yoruba.champion is None
    assert yoruba.challenger.version == "1"
    assert [row.language for row in registry.list_serving(["yor_Latn"])] == ["yor_Latn"]
    assert registry.list_serving([]) == []


def test_alias_name_from_outside_is_refused_as_input(mlflow_home):
    with pytest.raises(InputError):
        registry.by_alias("compass.starter.swh_Latn' OR 'x", "champion")


# -- processes


def _promoter(home, version, expected, start, results):
    tracking.configure(tracking.default_tracking_uri(home), home / "mlartifacts")
    start.wait()
    try:
        registry.promote(NAME, version, expected_champion=expected)
        results.put((version, "promoted"))
    except TransientError:
        results.put((version, "refused"))


@pytest.mark.slow
def test_of_promoters_that_expect_the_same_champion_exactly_one_wins(mlflow_home, tmp_path, run_id):
    first, *candidates = register_values(tmp_path, run_id, 1.0, 2.0, 3.0, 4.0)
    registry.promote(NAME, first, expected_champion=None)
    context = multiprocessing.get_context("spawn")
    results, start = context.Queue(), context.Event()
    workers = [
        context.Process(target=_promoter, args=(mlflow_home, version, first, start, results))
        for version in candidates
    ]
    for worker in workers:
        worker.start()
    start.set()
    outcomes = dict(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    winners = [version for version, outcome in outcomes.items() if outcome == "promoted"]
    assert len(winners) == 1
    assert aliases() == {"champion": winners[0], "previous": first}

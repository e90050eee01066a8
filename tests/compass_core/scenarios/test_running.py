"""A case from files to selected ids, on a made-up data folder."""

import dataclasses
import json
import math

import numpy as np
import pytest

from compass_core.config import ClusteringConfig
from compass_core.errors import DataError
from compass_core.scenarios import DataFolder, prepare_case, read_cases, select_case
from compass_core.scenarios import running as scenarios_running

SEEDS = range(3)
FEW_CLUSTERS = ClusteringConfig(n_clusters=(8,), script_guard="off")  # for 52 rows of 4 topics


@pytest.fixture(scope="module")
def prepared(toy_folder, tmp_path_factory):
    (case,) = read_cases(toy_folder / "scenarios.json")
    return prepare_case(case, DataFolder(toy_folder), tmp_path_factory.mktemp("work"))


def test_pool_never_translates_usage_and_never_holds_the_target(prepared):
    usage = {row.parallel_id for row in prepared.usage}
    assert prepared.pool
    assert not usage & {row.parallel_id for row in prepared.pool}
    assert prepared.target not in set(prepared.languages)


def test_pool_without_a_split_drops_the_translations_of_usage(toy_folder, toy_case, tmp_path):
    case = toy_case(pool={"file": "toy"})
    prepared = prepare_case(case, DataFolder(toy_folder), tmp_path)
    assert {row.split for row in prepared.pool} == {"train"}  # usage is the whole test split
    assert len(prepared.pool) == 160


def test_encoder_is_fitted_on_nothing_of_the_case(toy_folder, toy_case, tmp_path, monkeypatch):
    fitted = {}
    fit = scenarios_running.fit_ngram_encoder

    def watched(parallel, out_dir, **options):
        fitted.update(parallel)
        return fit(parallel, out_dir, **options)

    monkeypatch.setattr(scenarios_running, "fit_ngram_encoder", watched)
    prepared = prepare_case(toy_case(), DataFolder(toy_folder), tmp_path)
    assert fitted
    own = {row.parallel_id for row in prepared.usage + prepared.existing}
    assert not own & fitted.keys()


def test_vectors_are_unit_vectors_of_every_role(prepared):
    sizes = {"usage": 40, "existing": 12, "pool": 160}
    assert {role: len(rows) for role, rows in prepared.vectors.items()} == sizes
    for rows in prepared.vectors.values():
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-4)


def test_planted_topics_are_over_represented_by_compass_in_every_seed(prepared):
    outcomes = [select_case(prepared, "compass", seed, clustering=FEW_CLUSTERS) for seed in SEEDS]
    assert all(outcome.holds for outcome in outcomes), outcomes


def test_random_stays_near_one(prepared):
    lifts = [select_case(prepared, "random", seed).lift_gap for seed in range(20)]
    assert np.mean(lifts) == pytest.approx(1, abs=0.15)


def test_result_is_plain_json_of_the_stated_schema(prepared):
    outcome = select_case(prepared, "compass", 0)
    told = json.loads(json.dumps(outcome.to_dict()))
    assert list(told) == ["name", "seed", "strategy", "selected_ids"]
    assert (told["name"], told["seed"], told["strategy"]) == ("toy-gap", 0, "compass")
    ids = [row.id for row in prepared.pool]
    assert len(set(told["selected_ids"])) == prepared.case.budget
    assert set(told["selected_ids"]) <= set(ids)
    assert told["selected_ids"] == sorted(told["selected_ids"], key=ids.index)


def test_same_seed_gives_the_same_ids_and_another_seed_others(prepared):
    first, again, other = (select_case(prepared, "compass", seed) for seed in (0, 0, 1))
    assert first == again
    assert first.selected_ids != other.selected_ids


def test_a_second_preparation_selects_the_same_ids(prepared, toy_folder, tmp_path):
    twin = prepare_case(prepared.case, DataFolder(toy_folder), tmp_path)
    assert select_case(twin, "compass", 2) == select_case(prepared, "compass", 2)


def test_pool_in_another_order_gives_the_same_ids(prepared):
    order = np.random.default_rng(0).permutation(len(prepared.pool))
    turned = dataclasses.replace(
        prepared,
        pool=[prepared.pool[row] for row in order],
        vectors=prepared.vectors | {"pool": prepared.vectors["pool"][order]},
    )
    first, second = select_case(prepared, "compass", 0), select_case(turned, "compass", 0)
    assert set(first.selected_ids) == set(second.selected_ids)


def test_empty_pool_is_refused_with_the_filter(toy_folder, toy_case, tmp_path):
    case = toy_case(pool={"file": "toy", "split": "nowhere"})
    with pytest.raises(DataError, match="empty pool: no row of toy with split nowhere"):
        prepare_case(case, DataFolder(toy_folder), tmp_path)


def test_pool_may_name_its_languages(toy_folder, toy_case, tmp_path):
    case = toy_case(pool={"file": "toy", "languages": ["tr", "sw"], "split": "train"})
    prepared = prepare_case(case, DataFolder(toy_folder), tmp_path)
    assert set(prepared.languages) == {"tur_Latn"}


def test_missing_usage_ids_are_named(toy_folder, toy_case, tmp_path):
    with pytest.raises(DataError, match=r"1 of 2 usage_ids .*\n.*ghost"):
        prepare_case(toy_case(usage_ids=["toy-sw-90", "ghost"]), DataFolder(toy_folder), tmp_path)


def test_case_without_existing_rows_is_selected_too(toy_folder, toy_case, tmp_path):
    prepared = prepare_case(toy_case(existing_ids=[]), DataFolder(toy_folder), tmp_path)
    assert len(select_case(prepared, "compass", 0).selected_ids) == prepared.case.budget


def test_a_case_without_other_topics_holds_by_its_planted_ones():
    outcome = scenarios_running.Outcome("x", 0, "compass", [], 1.2, math.nan, 3)
    assert outcome.holds
    assert not dataclasses.replace(outcome, lift_gap=1.0).holds
    assert not dataclasses.replace(outcome, lift_other=1.3).holds

"""What every strategy promises, checked for all of them, and what each adds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from compass_core.config import STRATEGIES as CONFIG_NAMES
from compass_core.config import AdaptConfig, SelectionConfig
from compass_core.errors import ConfigError, DataError, InsufficientPoolError
from compass_core.selection.drawing import example_keys
from compass_core.selection.gap import GapTable, js_divergence
from compass_core.selection.problem import SelectionProblem
from compass_core.selection.strategies import STRATEGIES, select_examples

TARGET = "swh_Latn"
LANGUAGES = np.array(["eng_Latn", "fra_Latn", "yor_Latn", TARGET])
K = 10
BUDGET = 150


def make_problem(seed=0, n=2000, n_usage=60):
    """Usage over all clusters, coverage over the first five only: the gap is in the last five."""
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, K, n).astype(np.int32)
    allowed = rng.random(n) < 0.9
    available = rng.random(n) < 0.8
    languages = LANGUAGES[rng.integers(0, 4, n)]
    gap = GapTable.from_assignments(
        rng.integers(0, K, 300),
        rng.integers(0, 5, 400),
        clusters,
        K,
        available=allowed & available,
    )
    texts = [text_of(name, k, rng) for name, k in zip(languages, clusters, strict=True)]
    return SelectionProblem(
        language=TARGET,
        pool_keys=example_keys(f"id-{i}" for i in range(n)),
        pool_languages=languages,
        pool_cluster_ids=clusters,
        pool_distances=rng.random(n).astype(np.float32),
        available=available,
        allowed=allowed,
        gap=gap,
        similar_languages=2,
        usage_texts=[text_of(TARGET, k, rng) for k in rng.integers(0, K, n_usage)],
        coverage_texts=[text_of(TARGET, k, rng) for k in rng.integers(0, 5, 80)],
        pool_texts=lambda: batches(texts),
        usage_vectors=unit(rng.normal(size=(n_usage, 8))),
        pool_vectors=unit(rng.normal(size=(n, 8))),
    )


def text_of(language, cluster, rng):
    """Words of a language and of a topic; fra and yor share half of the target's words."""
    own = {"eng_Latn": "e", "fra_Latn": "s", "yor_Latn": "s", TARGET: "s"}[language]
    words = [f"{own}{rng.integers(0, 30)}w" for _ in range(4)]
    words += [f"{language[:3]}{rng.integers(0, 30)}" for _ in range(3)]
    return " ".join([*words, f"topic{cluster}", f"theme{cluster}"])


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def batches(texts, size=300):
    return iter([texts[i : i + size] for i in range(0, len(texts), size)])


def reordered(problem, order):
    texts = [text for batch in problem.pool_texts() for text in batch]
    return replace(
        problem,
        pool_texts=lambda: batches([texts[i] for i in order], size=170),
        **{
            name: getattr(problem, name)[order]
            for name in (
                "pool_keys",
                "pool_languages",
                "pool_cluster_ids",
                "pool_distances",
                "available",
                "allowed",
                "pool_vectors",
            )
        },
    )


def test_the_configuration_offers_every_strategy_as_a_choice():
    assert tuple(STRATEGIES) == CONFIG_NAMES
    schema = AdaptConfig.model_json_schema()
    assert schema["$defs"]["SelectionConfig"]["properties"]["strategy"]["enum"] == [*CONFIG_NAMES]
    assert schema["properties"]["baselines"]["items"]["enum"] == [*CONFIG_NAMES]


def test_a_strategy_that_does_not_exist_is_refused_with_the_names_of_those_that_do():
    with pytest.raises(ValidationError, match="choose compass, all-data, "):
        SelectionConfig(strategy="magic")
    with pytest.raises(ConfigError, match="choose compass, all-data, "):
        select_examples("magic", make_problem(), BUDGET, np.random.default_rng(0))


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_takes_each_row_once_allowed_ones_only_and_never_the_target_language(name):
    problem = make_problem()
    selection = select_examples(name, problem, BUDGET, np.random.default_rng(0))
    rows = selection.indices
    assert (np.diff(rows) > 0).all()
    assert problem.allowed[rows].all()
    assert (problem.pool_languages[rows] != TARGET).all()
    assert len(selection.reasons) == len(rows)
    assert all(0 < len(reason) < 80 for reason in selection.reasons)
    assert (selection.allocation == np.bincount(problem.pool_cluster_ids[rows], minlength=K)).all()
    if name not in ("target-only", "all-data"):
        assert len(rows) == BUDGET


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_depends_on_ids_and_seed_but_not_on_the_order_of_the_pool(name):
    problem = make_problem()
    other = reordered(problem, np.random.default_rng(3).permutation(2000))
    first = STRATEGIES[name](problem, BUDGET, np.random.default_rng(1)).indices
    second = STRATEGIES[name](other, BUDGET, np.random.default_rng(1)).indices
    assert {*problem.pool_keys[first].tolist()} == {*other.pool_keys[second].tolist()}
    again = STRATEGIES[name](problem, BUDGET, np.random.default_rng(1)).indices
    assert (first == again).all()


@pytest.mark.parametrize("name", ["compass", "random", "proportional"])
def test_a_budget_beyond_the_pool_names_the_largest_that_fits(name):
    with pytest.raises(InsufficientPoolError, match=r"Lower `selection\.budget` to \d+"):
        STRATEGIES[name](make_problem(), 5000, np.random.default_rng(0))


def test_compass_spends_on_the_gap_and_stays_within_the_radius():
    problem = make_problem()
    selection = STRATEGIES["compass"](problem, BUDGET, np.random.default_rng(0))
    assert problem.available[selection.indices].all()
    assert selection.allocation[5:].sum() == BUDGET
    assert all(reason.startswith("gap 0.") for reason in selection.reasons)


@pytest.mark.parametrize("rule", ["waterfill", "gap", "importance"])
@pytest.mark.parametrize("draw", ["uniform", "nearest", "diverse"])
def test_compass_matches_usage_better_than_random_under_every_rule_and_draw(rule, draw):
    problem = replace(make_problem(), rule=rule, draw=draw, language_balance=0.5)
    gap = problem.gap

    def distance(name):
        taken = STRATEGIES[name](problem, BUDGET, np.random.default_rng(0)).allocation
        return js_divergence(gap.usage_share, gap.coverage_count + taken)

    assert distance("compass") < distance("random") - 0.02


def test_compass_without_coverage_follows_usage():
    problem = make_problem()
    nothing = np.empty(0, dtype=np.int32)
    gap = GapTable.from_assignments(
        np.repeat(np.arange(K), np.arange(K) + 1), nothing, problem.pool_cluster_ids, K
    )
    selection = STRATEGIES["compass"](replace(problem, gap=gap), BUDGET, np.random.default_rng(0))
    assert np.abs(selection.allocation - BUDGET * gap.usage_share).max() < 1


def test_target_only_adds_nothing_and_all_data_adds_everything_allowed():
    problem = make_problem()
    rng = np.random.default_rng(0)
    assert len(STRATEGIES["target-only"](problem, BUDGET, rng).indices) == 0
    everything = STRATEGIES["all-data"](problem, BUDGET, rng)
    assert len(everything.indices) == problem.candidates.sum()
    assert "the budget does not apply" in everything.notes[0]


def test_similar_uses_the_most_similar_languages_and_adds_more_only_when_they_run_out():
    problem = make_problem()
    selection = STRATEGIES["similar"](problem, BUDGET, np.random.default_rng(0))
    assert set(problem.pool_languages[selection.indices]) == {"fra_Latn", "yor_Latn"}
    wider = STRATEGIES["similar"](problem, 1200, np.random.default_rng(0))
    assert "eng_Latn" in set(problem.pool_languages[wider.indices])
    assert any("1 more were added" in note for note in wider.notes)


def test_english_takes_english_and_says_when_there_is_too_little():
    problem = make_problem()
    selection = STRATEGIES["english"](problem, 1500, np.random.default_rng(0))
    assert set(problem.pool_languages[selection.indices]) == {"eng_Latn"}
    assert "of the 1500 asked for" in selection.notes[0]


def test_proportional_ignores_coverage():
    problem = make_problem()
    taken = STRATEGIES["proportional"](problem, BUDGET, np.random.default_rng(0)).allocation
    assert np.abs(taken - BUDGET * problem.gap.usage_share).max() < 1


def test_arrays_of_another_pool_are_refused():
    with pytest.raises(DataError, match="differ in length"):
        replace(make_problem(), allowed=np.ones(3, dtype=np.bool_))


def test_selection_is_importable_without_loading_a_heavy_library():
    code = (
        "import sys; import compass_core.selection.strategies, compass_core.selection.clustering, "
        "compass_core.selection.health, compass_core.selection.projection; "
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy.sparse', 'datasets', 'peft'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""What every strategy promises, checked for all of them, and what each adds."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from compass_core.config import STRATEGIES as CONFIG_NAMES
from compass_core.config import AdaptConfig, SelectionConfig
from compass_core.errors import ConfigError, DataError, InsufficientPoolError
from compass_core.langrank_fitting import Gains, fit_ranker, write_model
from compass_core.selection import strategies
from compass_core.selection.drawing import example_keys
from compass_core.selection.gap import GapTable, js_divergence
from compass_core.selection.langrank import FEATURES
from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.strategies import STRATEGIES, nearest, select_examples
from compass_core.storage import fingerprint

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
        langrank_model=ranker() if importlib.util.find_spec("lightgbm") else None,
    )


@functools.cache
def ranker():
    """A LangRank model of six made-up gains: the shipped one is tested in test_langrank.py."""
    folder = Path(tempfile.mkdtemp(prefix="compass-ranker-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    names = ("eng_Latn", "fra_Latn", "yor_Latn")
    gains = Gains(
        np.repeat(["deu_Latn", "zul_Latn"], 3),
        np.array(names * 2),
        np.array([0.3, 0.2, 0.1, 0.1, 0.2, 0.3]),
    )
    features = np.random.default_rng(0).normal(size=(6, len(FEATURES)))
    write_model(folder, fit_ranker(features, gains), gains, {}, trained_on="nothing")
    return folder


def needs_extra(name):
    """Skip where a strategy's optional package is not installed."""
    package = {"langsim": "urielplus", "langrank": "lightgbm"}.get(name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{name} needs the optional package {package}")


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
    needs_extra(name)
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
    needs_extra(name)
    problem = make_problem()
    other = reordered(problem, np.random.default_rng(3).permutation(2000))
    first = STRATEGIES[name](problem, BUDGET, np.random.default_rng(1)).indices
    second = STRATEGIES[name](other, BUDGET, np.random.default_rng(1)).indices
    assert {*problem.pool_keys[first].tolist()} == {*other.pool_keys[second].tolist()}
    again = STRATEGIES[name](problem, BUDGET, np.random.default_rng(1)).indices
    assert (first == again).all()


def test_every_strategy_selects_the_same_in_another_process():
    code = (
        "import importlib.util, sys; "
        "spec = importlib.util.spec_from_file_location('strategies_again', sys.argv[1]); "
        "tests = importlib.util.module_from_spec(spec); spec.loader.exec_module(tests); "
        "print(tests.fingerprints())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, __file__],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONHASHSEED": "12345"},
    )
    assert done.stdout.strip() == fingerprints(), done.stderr


def fingerprints():
    """Return the identity of what every strategy selects, with its details."""
    found = {}
    for name in STRATEGIES:
        package = {"langsim": "urielplus", "langrank": "lightgbm"}.get(name)
        if package is None or importlib.util.find_spec(package):
            problem = make_problem(n=300, n_usage=20)
            chosen = STRATEGIES[name](problem, 60, np.random.default_rng(7))
            keys = sorted(problem.pool_keys[chosen.indices].tolist())
            found[name] = fingerprint(keys, chosen.reasons, chosen.details, list(chosen.notes))
    return json.dumps(found, sort_keys=True)


@pytest.mark.parametrize("name", STRATEGIES)
def test_details_are_plain_json_and_notes_are_sentences(name):
    needs_extra(name)
    chosen = STRATEGIES[name](make_problem(n=500), 60, np.random.default_rng(7))
    assert json.loads(json.dumps(chosen.details, allow_nan=False)) == chosen.details
    assert all(note.endswith(".") for note in chosen.notes)


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_is_selected_from_a_pool_of_the_target_language_alone(name):
    needs_extra(name)
    problem = make_problem(n=50)
    problem = replace(problem, pool_languages=np.full(50, TARGET))
    if name in ("compass", "random", "proportional", "nearest", "dsir"):
        with pytest.raises(InsufficientPoolError, match=r"`selection\.budget` to 0|at most 0"):
            select_examples(name, problem, 10, np.random.default_rng(0))
    else:
        assert len(select_examples(name, problem, 10, np.random.default_rng(0)).indices) == 0


def test_a_strategy_that_breaks_its_promise_is_found_out(monkeypatch):
    problem = make_problem(n=50)
    forbidden = np.flatnonzero(~problem.candidates)[:2]
    allowed = np.flatnonzero(problem.candidates)[:2]
    cases = {
        "may not be selected": Selection(forbidden, ["x"] * 2, problem.count_by_cluster(forbidden)),
        "not ascending": Selection(allowed[::-1], ["x"] * 2, problem.count_by_cluster(allowed)),
        "1 reasons for 2 rows": Selection(allowed, ["x"], problem.count_by_cluster(allowed)),
        "its allocation": Selection(allowed, ["x"] * 2, np.zeros(K, dtype=np.int64)),
    }
    for message, selection in cases.items():
        monkeypatch.setattr(strategies, "find_strategy", lambda _, s=selection: lambda *_: s)
        with pytest.raises(DataError, match=message):
            select_examples("mine", problem, 2, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["compass", "random", "proportional", "nearest", "dsir"])
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


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1_000), st.integers(30, 200), st.integers(1, 25), st.data())
def test_every_strategy_keeps_its_promises_on_any_pool(seed, n, budget, data):
    name = data.draw(st.sampled_from([n for n in STRATEGIES if n not in ("langsim", "langrank")]))
    problem = make_problem(seed, n=n, n_usage=7)
    try:
        chosen = select_examples(name, problem, budget, np.random.default_rng(seed))
    except InsufficientPoolError:
        assert problem.relevant.sum() < budget
        return
    order = np.random.default_rng(seed + 1).permutation(n)
    other = reordered(problem, order)
    again = select_examples(name, other, budget, np.random.default_rng(seed)).indices
    assert sorted(order[again].tolist()) == chosen.indices.tolist()


# ------------------------------------------------------------------ nearest
def slow_nearest(problem, budget):
    """Turn by turn over all pairs, in plain Python."""
    rows = np.flatnonzero(problem.candidates).tolist()
    usage = np.asarray(problem.usage_vectors, dtype=np.float64)
    pool = np.asarray(problem.pool_vectors, dtype=np.float64)
    cosine = {r: np.round((usage * pool[r]).sum(axis=1), 9) for r in rows}
    left, taken = set(rows), []
    while len(taken) < budget:
        waiting = set(range(len(usage)))
        while waiting and len(taken) < budget:
            _, _, row, point = min(
                (-cosine[r][u], int(problem.pool_keys[r]), r, u) for r in left for u in waiting
            )
            taken.append(row)
            left.remove(row)
            waiting.remove(point)
    return sorted(taken)


@pytest.mark.parametrize("budget", [1, 7, 30, 45])
@pytest.mark.parametrize("case", ["plain", "same usage", "same pool"])
def test_nearest_equals_turns_over_all_pairs(budget, case, monkeypatch):
    monkeypatch.setattr(nearest, "_PRODUCT_ENTRIES", 1_000)
    problem = make_problem(n=90, n_usage=11)
    if case == "same usage":
        usage = problem.usage_vectors.copy()
        usage[3:] = usage[0]
        problem = replace(problem, usage_vectors=usage)
    if case == "same pool":
        problem = replace(problem, pool_vectors=problem.pool_vectors[np.arange(90) % 20])
    chosen = STRATEGIES["nearest"](problem, budget, np.random.default_rng(0))
    assert chosen.indices.tolist() == slow_nearest(problem, budget)


def test_nearest_gives_every_usage_prompt_its_share():
    """A crowd around one prompt does not take the budget of the others."""
    rng = np.random.default_rng(0)
    problem = make_problem(n=400, n_usage=4)
    directions = np.eye(8)[:4]
    crowd = np.where(rng.random(400) < 0.9, 0, rng.integers(1, 4, 400))
    vectors = unit(directions[crowd] + 0.05 * rng.normal(size=(400, 8)))
    problem = replace(problem, usage_vectors=unit(directions), pool_vectors=vectors)
    chosen = STRATEGIES["nearest"](problem, 24, np.random.default_rng(0)).indices
    assert np.bincount(crowd[chosen], minlength=4).tolist() == [6, 6, 6, 6]


def test_nearest_reads_memory_mapped_half_precision_vectors_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "_PRODUCT_ENTRIES", 5_000)
    problem = make_problem(n=700)
    np.save(tmp_path / "vectors.npy", problem.pool_vectors.astype(np.float16))
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r", allow_pickle=False)
    whole = replace(problem, pool_vectors=np.asarray(mapped, dtype=np.float32))
    first = STRATEGIES["nearest"](replace(problem, pool_vectors=mapped), 80, None).indices
    assert (first == STRATEGIES["nearest"](whole, 80, None).indices).all()


# ------------------------------------------------------------------ the problem
def test_texts_of_a_language_are_those_of_the_smallest_keys_whatever_the_order():
    problem = make_problem(n=300)
    texts = [text for batch in problem.pool_texts() for text in batch]
    found = problem.texts_by_language(limit=5)
    assert set(found) == {"eng_Latn", "fra_Latn", "yor_Latn"}
    for name, some in found.items():
        rows = np.flatnonzero(problem.candidates & (problem.pool_languages == name))
        smallest = rows[np.argsort(problem.pool_keys[rows])][:5]
        assert some == [texts[row] for row in smallest]
    other = reordered(problem, np.random.default_rng(1).permutation(300))
    assert other.texts_by_language(limit=5) == found


def test_sources_count_candidates_and_rows_of_finds_them():
    problem = make_problem(n=300)
    assert sum(problem.sources.values()) == problem.candidates.sum()
    for name, count in problem.sources.items():
        assert count == len(problem.rows_of([name]))
    assert len(problem.rows_of(problem.sources)) == problem.candidates.sum()
    assert len(problem.rows_of([TARGET])) == 0


def test_a_strategy_that_reads_texts_says_when_it_was_given_none():
    problem = replace(make_problem(n=50), pool_texts=None)
    with pytest.raises(DataError, match="were not passed"):
        STRATEGIES["dsir"](problem, 5, np.random.default_rng(0))
    short = replace(problem, pool_texts=lambda: iter([["a"] * 40]))
    with pytest.raises(DataError, match="50 rows but 40 texts"):
        STRATEGIES["dsir"](short, 5, np.random.default_rng(0))
    with pytest.raises(DataError, match="needs the vectors"):
        STRATEGIES["nearest"](replace(problem, usage_vectors=None), 5, np.random.default_rng(0))


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

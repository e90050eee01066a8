"""LangRank: features, training, measuring, the model's files, and the shipped model."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_core.errors import ConfigError, DataError, ModelError
from compass_core.langrank_fitting import (
    MAX_RELEVANCE,
    Gains,
    LanguageTexts,
    fit_langrank,
    fit_ranker,
    leave_one_language_out,
    ndcg,
    read_gains,
    relevance,
    summarise,
)
from compass_core.selection.drawing import example_keys
from compass_core.selection.gap import GapTable
from compass_core.selection.identity import strategy_identity
from compass_core.selection.langrank import (
    FEATURES,
    LanguageProfile,
    feature_table,
    load_ranker,
    pair_features,
    read_facts,
)
from compass_core.selection.problem import SelectionProblem
from compass_core.selection.strategies import STRATEGIES
from compass_core.starter.paths import langrank_path
from compass_core.storage import sha256_file

needs_lightgbm = pytest.mark.skipif(
    importlib.util.find_spec("lightgbm") is None,
    reason="the optional package lightgbm is not installed",
)
TARGETS = ("swh_Latn", "ukr_Cyrl", "mar_Deva", "urd_Arab", "tur_Latn", "fin_Latn")
SOURCES = ("zul_Latn", "rus_Cyrl", "hin_Deva", "pes_Arab", "kaz_Cyrl", "deu_Latn", "yor_Latn")


def words_of(name, n=60):
    """Texts whose words tell the script, so that word overlap foretells the made-up gains."""
    rng = np.random.default_rng(sum(map(ord, name)))
    shared = [f"{name[4:]}{i}" for i in range(20)]
    own = [f"{name}{i}" for i in range(20)]
    return [" ".join([*rng.choice(shared, 3), *rng.choice(own, 2)]) for _ in range(n)]


def made_up_gains(noise=0.0):
    """Gains that follow the script, which word overlap shows."""
    rng = np.random.default_rng(0)
    pairs = [(t, s) for t in sorted(TARGETS) for s in sorted(SOURCES)]
    values = [float(t[4:] == s[4:]) + noise * rng.normal() for t, s in pairs]
    return Gains(np.array([t for t, _ in pairs]), np.array([s for _, s in pairs]), np.array(values))


def texts_for(names):
    return {name: LanguageTexts(words_of(name), 100 + len(name)) for name in names}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("lightgbm")
    folder = tmp_path_factory.mktemp("ranker") / "model"
    fit_langrank(
        made_up_gains(), texts_for(TARGETS), texts_for(SOURCES), folder, trained_on="made up"
    )
    return folder


# ------------------------------------------------------------------ features
def test_features_of_a_pair_by_hand():
    target = LanguageProfile.of(["maji moto", "maji baridi"], 10)
    source = LanguageProfile.of(["maji water", "water water"], 40)
    distances = {"genetic": 0.5, "geographic": None}
    found = dict(zip(FEATURES, pair_features(target, source, distances), strict=True))
    assert (found["target_rows"], found["source_rows"], found["rows_ratio"]) == (10, 40, 4)
    assert (found["target_ttr"], found["source_ttr"]) == (3 / 4, 2 / 4)
    assert found["ttr_distance"] == pytest.approx((1 - 2 / 3) ** 2)
    assert found["word_overlap"] == 1 / 5
    assert found["genetic"] == 0.5
    assert np.isnan([found["geographic"], found["syntactic"]]).all()


def test_what_is_unknown_is_missing_and_not_zero():
    nothing = LanguageProfile.of([], 0)
    found = dict(zip(FEATURES, pair_features(nothing, nothing, None), strict=True))
    for name in ("rows_ratio", "ttr_distance", "word_overlap", "genetic"):
        assert np.isnan(found[name])
    assert feature_table(nothing, {}, None).shape == (0, len(FEATURES))


# ------------------------------------------------------------------ measuring an order
def brute_ndcg(scores, gains, top):
    """The mean of NDCG over every order that agrees with the scores."""
    worth = (
        2.0 ** np.maximum(MAX_RELEVANCE - np.array([sum(h > g for h in gains) for g in gains]), 0)
        - 1
    )
    discount = [1 / np.log2(i + 2) if i < top else 0.0 for i in range(len(gains))]
    orders = [
        order
        for order in itertools.permutations(range(len(gains)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    reached = np.mean([sum(worth[i] * d for i, d in zip(o, discount, strict=True)) for o in orders])
    return reached / sum(sorted(worth, reverse=True)[i] * d for i, d in enumerate(discount))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6))
def test_ndcg_equals_the_mean_over_all_orders_that_ties_allow(pairs):
    scores = np.array([float(s) for s, _ in pairs])
    gains = np.array([float(g) for _, g in pairs])
    assert ndcg(scores, gains) == pytest.approx(brute_ndcg(scores, gains, 3))


def test_the_best_order_has_ndcg_one_and_relevance_ends_at_zero():
    gains = np.random.default_rng(0).normal(size=20)
    assert ndcg(gains, gains) == 1.0
    assert ndcg(-gains, gains) < 0.1
    assert sorted(relevance(gains).tolist()) == [0] * 10 + list(range(1, 11))


# ------------------------------------------------------------------ training
@needs_lightgbm
def test_the_ranker_learns_what_foretells_the_gains_and_ranks_unseen_targets(model):
    quality = read_facts(model)["ndcg_at_3"]
    assert quality["mean"]["langrank"] > 0.9
    lead, low, high = quality["lead"]["random"]
    assert lead == pytest.approx(quality["mean"]["langrank"] - quality["mean"]["random"], abs=2e-4)
    assert 0.2 < low < lead < high
    assert set(quality["by_target"]) == set(TARGETS)


def test_the_interval_of_a_constant_lead_is_a_point():
    found = {t: {"langrank": 0.5 + i / 10, "random": 0.2 + i / 10} for i, t in enumerate("abc")}
    quality = summarise(found)
    assert quality["lead"] == {"random": [0.3, 0.3, 0.3]}
    assert quality["mean"] == {"langrank": 0.6, "random": 0.3}


@needs_lightgbm
def test_a_left_out_language_changes_nothing_in_the_model_that_ranks_it():
    """The measured quality of a target must not depend on that target's own gains."""
    gains = made_up_gains(noise=0.1)
    features = np.random.default_rng(1).normal(size=(len(gains.values), len(FEATURES)))
    seen = []

    def spy(rows, rest, **_):
        seen.append((set(rest.targets.tolist()), set(rest.sources.tolist()), len(rows)))
        return fit_ranker(rows, rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compass_core.langrank_fitting.fit_ranker", spy)
        found = leave_one_language_out(features, gains, {})
    for target, (targets, sources, n_rows) in zip(found, seen, strict=True):
        assert target not in targets | sources
        assert n_rows == len(gains.values) - len(SOURCES)


@needs_lightgbm
def test_equal_gains_give_the_same_model_in_another_process(model, tmp_path):
    code = (
        "import importlib.util, sys; from pathlib import Path; "
        "spec = importlib.util.spec_from_file_location('again', sys.argv[1]); "
        "tests = importlib.util.module_from_spec(spec); spec.loader.exec_module(tests); "
        "tests.fit_langrank(tests.made_up_gains(), tests.texts_for(tests.TARGETS), "
        "tests.texts_for(tests.SOURCES), Path(sys.argv[2]), trained_on='made up')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path / "again")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONHASHSEED": "77"},
    )
    assert done.returncode == 0, done.stderr
    assert read_facts(tmp_path / "again") == read_facts(model)


@needs_lightgbm
def test_a_language_without_texts_is_named():
    with pytest.raises(DataError, match=r"(?s)^E51 .*target swh_Latn.*source yor_Latn"):
        fit_langrank(
            made_up_gains(),
            texts_for(TARGETS[1:]),
            texts_for(SOURCES[:-1]),
            langrank_path(),
            trained_on="",
        )


# ------------------------------------------------------------------ the file of gains
def write_gains(path, lines):
    path.write_text("\n".join(["target,source,gain", *lines]) + "\n", encoding="utf-8")
    return path


def test_gains_are_read_with_any_name_of_a_language_in_any_order(tmp_path):
    lines = [
        f"{t},{s},0.{i}" for t in ("sw", "Ukrainian") for i, s in enumerate(("zu", "de", "ru"))
    ]
    gains = read_gains(write_gains(tmp_path / "a.csv", lines))
    again = read_gains(write_gains(tmp_path / "b.csv", lines[::-1]))
    assert set(gains.targets) == {"swh_Latn", "ukr_Cyrl"}
    for name in ("targets", "sources", "values"):
        assert (getattr(gains, name) == getattr(again, name)).all()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["sw,zu,much"], r"E15 .*line 2: could not convert"),
        (["sw,zu,nan"], r"E15 .*line 2: the gain is no number"),
        (["sw,zu,.1", "swh,zul,.2"], r"E15 .*line 3: .*there twice"),
        (["sw,xx-nothing,.1"], r"E15 .*line 2: E43"),
        (["sw,zu"], r"E15 .*line 2"),
        (["sw,zu,.1", "sw,de,.2", "sw,ru,.3"], r"E48 .*1 targets"),
        (["sw,zu,.1", "sw,de,.2", "sw,ru,.3", "uk,ru,.1"], r"E48 .*ukr_Cyrl \(1\)"),
        ([], r"E48 .*0 gains"),
    ],
)
def test_gains_that_cannot_be_learnt_from_are_refused_with_the_line(tmp_path, lines, told):
    with pytest.raises(DataError, match=f"(?s)^{told}"):
        read_gains(write_gains(tmp_path / "gains.csv", lines))


def test_a_file_that_is_no_table_of_gains_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"^E01 .*no such file"):
        read_gains(tmp_path / "nothing.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"^E15 .*no column target, source, gain.*found a, b"):
        read_gains(tmp_path / "other.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=r"^E15 .*found nothing"):
        read_gains(tmp_path / "empty.csv")
    (tmp_path / "wide.csv").write_bytes("target,source,gain\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"^E05 .*UTF-8"):
        read_gains(tmp_path / "wide.csv")


# ------------------------------------------------------------------ the model's files
@needs_lightgbm
def test_a_damaged_model_is_never_used(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "damaged")
    text = (folder / "model.txt").read_text()
    (folder / "model.txt").write_text(text.replace("shrinkage=0.1", "shrinkage=0.2", 1))
    with pytest.raises(ModelError, match=r"^E29 .*model\.txt is damaged"):
        load_ranker(folder)
    (folder / "model.txt").unlink()
    with pytest.raises(ModelError, match=r"^E29 .*missing"):
        load_ranker(folder)


@needs_lightgbm
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda facts: facts | {"format": 99}, "another version of COMPASS"),
        (lambda facts: facts | {"features": ["a"]}, "another version of COMPASS"),
        (lambda facts: {"format": 1}, "cannot be read"),
        (lambda facts: [], "cannot be read"),
    ],
)
def test_a_model_of_another_version_is_refused(model, tmp_path, change, told):
    folder = shutil.copytree(model, tmp_path / "other")
    facts = json.loads((folder / "LANGRANK.json").read_text())
    (folder / "LANGRANK.json").write_text(json.dumps(change(facts)))
    with pytest.raises(ModelError, match=f"^E26 .*{told}"):
        load_ranker(folder)


@needs_lightgbm
def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"^E26 selection\.langrank_model=.*fit-langrank"):
        load_ranker(tmp_path)


# ------------------------------------------------------------------ the strategy
def problem(folder, target="swh_Latn"):
    names = [*SOURCES, "qaa_Latn"]
    languages = np.repeat(names, 60)
    n = len(languages)
    texts = [text for name in names for text in words_of(name)]
    clusters = np.arange(n) % 4
    return SelectionProblem(
        language=target,
        pool_keys=example_keys(map(str, range(n))),
        pool_languages=languages,
        pool_cluster_ids=clusters,
        pool_distances=np.zeros(n),
        available=np.full(n, True),
        allowed=np.full(n, True),
        gap=GapTable.from_assignments(clusters[:9], clusters[:0], clusters, 4),
        usage_texts=words_of(target),
        coverage_texts=words_of(target, 20),
        pool_texts=lambda: iter([texts]),
        similar_languages=2,
        langrank_model=folder,
    )


@needs_lightgbm
def test_langrank_takes_the_languages_the_model_puts_first(model):
    chosen = STRATEGIES["langrank"](problem(model), 50, np.random.default_rng(0))
    assert {code[4:] for code in chosen.details["languages"]} == {"Latn"}
    assert set(chosen.details["features"]["rus_Cyrl"]) == set(FEATURES)
    assert chosen.details["features"]["qaa_Latn"]["genetic"] is None
    assert chosen.details["model_sha256"] == read_facts(model)["model_sha256"]
    assert all("promising by LangRank" in reason for reason in chosen.reasons)


@needs_lightgbm
def test_langrank_works_without_uriel_and_says_so(model, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "urielplus" else found(name)
    )
    chosen = STRATEGIES["langrank"](problem(model), 50, np.random.default_rng(0))
    assert len(chosen.indices) == 50
    assert any("without language distances: URIEL is not installed" in n for n in chosen.notes)


@needs_lightgbm
@pytest.mark.skipif(importlib.util.find_spec("urielplus") is None, reason="needs urielplus")
def test_langrank_ranks_for_a_target_that_uriel_does_not_know(model):
    chosen = STRATEGIES["langrank"](problem(model, "qab_Latn"), 50, np.random.default_rng(0))
    assert any("URIEL does not know qab_Latn" in note for note in chosen.notes)


def test_without_lightgbm_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"^E66 .*pip install 'compass-adapt\[langrank\]'"):
        STRATEGIES["langrank"](problem(tmp_path), 50, np.random.default_rng(0))


# ------------------------------------------------------------------ the shipped model
@needs_lightgbm
def test_the_shipped_model_is_whole_and_was_trained_on_the_gains_beside_it():
    folder = langrank_path()
    facts = load_ranker(folder).facts
    assert facts["gains_sha256"] == sha256_file(folder / "gains.csv")
    gains = read_gains(folder / "gains.csv")
    assert facts["n_pairs"] == len(gains.values) >= 100
    means = facts["ndcg_at_3"]["mean"]
    assert set(means) == {"langrank", "langsim", "similar", "random"}
    assert means["langrank"] > means["random"]


@needs_lightgbm
def test_the_shipped_model_is_the_default(model):
    shipped = STRATEGIES["langrank"](problem(None), 50, np.random.default_rng(0))
    assert shipped.details["trained_on"] == "the starter corpus"
    own = replace(problem(None), langrank_model=model)
    assert STRATEGIES["langrank"](own, 50, np.random.default_rng(0)).details["trained_on"] == (
        "made up"
    )


@needs_lightgbm
def test_the_identity_of_a_selection_changes_with_the_model(model):
    assert strategy_identity("compass") == ""
    assert strategy_identity("langrank") != strategy_identity("langrank", model)
    assert read_facts(model)["model_sha256"] in strategy_identity("langrank", model)
    assert strategy_identity("langsim").startswith("urielplus")

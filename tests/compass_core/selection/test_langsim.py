"""Distances of URIEL: equal to the package's own, and clear where it knows nothing."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest

from compass_core.errors import ConfigError, LanguageError
from compass_core.selection import language_distances
from compass_core.selection.drawing import example_keys
from compass_core.selection.gap import GapTable
from compass_core.selection.language_distances import KINDS, uriel_distances, uriel_similarity
from compass_core.selection.problem import SelectionProblem
from compass_core.selection.strategies import STRATEGIES

needs_uriel = pytest.mark.skipif(
    importlib.util.find_spec("urielplus") is None,
    reason="the optional package urielplus (the data of URIEL) is not installed",
)


def problem(languages, target="swh_Latn", per_language=40, **settings):
    n = per_language * len(languages)
    clusters = np.arange(n) % 4
    gap = GapTable.from_assignments(np.arange(8) % 4, np.zeros(0, dtype=int), clusters, 4)
    return SelectionProblem(
        language=target,
        pool_keys=example_keys(map(str, range(n))),
        pool_languages=np.repeat(languages, per_language),
        pool_cluster_ids=clusters,
        pool_distances=np.zeros(n),
        available=np.full(n, True),
        allowed=np.full(n, True),
        gap=gap,
        **settings,
    )


def select(*args, budget=30, **settings):
    return STRATEGIES["langsim"](problem(*args, **settings), budget, np.random.default_rng(0))


# ------------------------------------------------------------------ distances
@pytest.fixture(scope="module")
def package():
    """The package's own object, made without the copies it would write into its installation."""
    uriel = pytest.importorskip("urielplus.urielplus")
    found = object.__new__(uriel.URIELPlus)
    folder = Path(uriel.__file__).parent
    names = ("family_features", "features", "geocoord_features", "script_features")
    tables = []
    for name in names:
        path = folder / "database" / "original_uriel" / f"{name}.npz"
        with np.load(path, allow_pickle=False) as arrays:
            tables.append(dict(arrays))
    columns = [[table[key] for table in tables] for key in ("feats", "langs", "data", "sources")]
    super(uriel.URIELPlus, found).__init__(*columns, codes="Iso")
    found.cur_dir = str(folder)
    return found


@needs_uriel
@pytest.mark.parametrize(
    ("first", "second"), [("swh", "zul"), ("ukr", "bel"), ("snd", "nno"), ("cmn", "deu")]
)
def test_distances_equal_those_of_the_package(package, first, second):
    found = uriel_distances(f"{first}_Latn", [f"{second}_Latn"]).by_language[f"{second}_Latn"]
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        expected = {kind: told(package, kind, first, second) for kind in KINDS}
    finally:
        logging.disable(level)
    assert found == expected


def told(package, kind, first, second):
    try:
        return package.new_distance(kind, [first, second])
    except ValueError:
        return None


@needs_uriel
def test_distances_are_symmetric_zero_to_oneself_and_the_same_for_every_script():
    first = uriel_distances("swh_Latn", ["zul_Latn", "cmn_Hans", "cmn_Hant", "swh_Arab"])
    back = uriel_distances("zul_Latn", ["swh_Latn"])
    assert first.by_language["zul_Latn"] == back.by_language["swh_Latn"]
    assert first.by_language["cmn_Hans"] == first.by_language["cmn_Hant"]
    assert set(first.by_language["swh_Arab"].values()) == {0.0}
    values = [d for kinds in first.by_language.values() for d in kinds.values() if d is not None]
    assert 0 <= min(values) <= max(values) <= 1


@needs_uriel
def test_relatives_are_nearer_than_strangers():
    near = uriel_similarity(
        uriel_distances("ukr_Cyrl", ["bel_Cyrl", "rus_Cyrl", "yor_Latn"]).by_language
    )
    assert min(near["bel_Cyrl"], near["rus_Cyrl"]) > near["yor_Latn"] + 0.2


def test_an_unknown_distance_counts_as_the_mean_of_its_kind():
    known = {"genetic": 0.2, "geographic": 0.4}
    similarity = uriel_similarity(
        {
            "a": known,
            "b": {"genetic": 0.6, "geographic": None},
            "c": {"genetic": 0.6, "geographic": 0.8},
        }
    )
    assert similarity == {"a": 0.7, "b": 0.4, "c": 0.3}


def test_a_kind_that_no_language_has_is_left_out():
    kinds = {"genetic": 0.25, "inventory": None}
    assert uriel_similarity({"a": kinds, "b": kinds}) == {"a": 0.75, "b": 0.75}
    assert uriel_similarity({}) == {}


# ------------------------------------------------------------------ the strategy
@needs_uriel
def test_langsim_fills_the_budget_from_the_nearest_languages_and_keeps_the_distances():
    chosen = select(["zul_Latn", "deu_Latn", "tur_Latn", "cmn_Hans"], similar_languages=1)
    assert set(chosen.reasons) == {chosen.reasons[0]}
    assert chosen.reasons[0].startswith("zul_Latn, similar by URIEL 0.6")
    assert chosen.details["languages"] == ["zul_Latn"]
    assert set(chosen.details["distances"]["deu_Latn"]) == set(KINDS)
    kinds = chosen.details["distances"]["zul_Latn"].values()
    assert chosen.details["scores"]["zul_Latn"] == pytest.approx(1 - np.mean([*kinds]), abs=1e-6)


@needs_uriel
def test_a_language_that_uriel_does_not_know_is_named_and_left_out():
    chosen = select(["zul_Latn", "qaa_Latn", "deu_Latn"], budget=100)
    assert "URIEL does not know qaa_Latn: left out." in chosen.notes
    assert chosen.details["unknown_to_uriel"] == ["qaa_Latn"]
    assert len(chosen.indices) == 80
    assert any("only 80 of the 100 asked for" in note for note in chosen.notes)


@needs_uriel
def test_an_unknown_target_is_an_error_with_a_way_out():
    with pytest.raises(LanguageError, match=r"^E67 qaa_Latn: URIEL .* similar"):
        select(["zul_Latn"], target="qaa_Latn")
    with pytest.raises(LanguageError, match=r"^E67 URIEL knows none of the pool's languages"):
        select(["qaa_Latn", "qab_Latn"])


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    language_distances._tables.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"^E66 .*pip install 'compass-adapt\[uriel\]'.*similar"):
        select(["zul_Latn"])
    assert language_distances.uriel_version() == ""


@needs_uriel
def test_a_package_with_other_files_is_named_with_the_version_that_works(monkeypatch, tmp_path):
    spec = importlib.util.find_spec("urielplus")
    monkeypatch.setattr(spec, "submodule_search_locations", [str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    language_distances._tables.cache_clear()
    with pytest.raises(ConfigError, match=r"^E66 .*cannot be read.*urielplus 1\.3"):
        select(["zul_Latn"])
    language_distances._tables.cache_clear()

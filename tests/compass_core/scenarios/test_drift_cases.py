"""Drift cases: what the file may say, what is fitted on what, when a case holds."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from compass_core.errors import DataError
from compass_core.scenarios import (
    DataFolder,
    check_drift_case,
    prepare_drift_case,
    read_cases,
)
from compass_core.scenarios import drift as scenarios_drift
from compass_core.scenarios.cases import DriftExpected
from compass_core.scenarios.drift import alarms_as_expected
from tasks.scenarios import run_scenarios

LANGUAGES = {"sw": "aeioukmwnz", "en": "bcdfghjrst", "tr": "çğıöşülpvy"}
USUAL, NEW = ("north", "south"), ("east", "west")
N_ITEMS, N_FREE, N_REFERENCE, N_WINDOW = 560, 120, 80, 30


def make_rows():
    """Return rows of three languages; the words of an item mean the same in all of them."""
    rng = np.random.default_rng(0)
    topics = (*USUAL, *NEW)
    words = {
        (language, topic): ["".join(rng.choice(list(letters), 6)) for _ in range(12)]
        for language, letters in LANGUAGES.items()
        for topic in topics
    }
    rows = []
    for item in range(N_ITEMS):
        topic, chosen = topics[item % 4], rng.choice(12, 6)
        for language in LANGUAGES:
            text = " ".join(words[language, topic][i] for i in chosen)
            rows.append(
                {"id": f"{language}-{item}", "language": language, "text": text, "topic": topic}
                | {"split": "train", "parallel_id": f"p{item}"}
            )
    return rows


def make_case(rows, shifted, **changes):
    """Return a case in sw: four windows, of which `shifted` ask about the new topics."""
    own = [row for row in rows[3 * N_FREE :] if row["language"] == "sw"]
    usual = [row["id"] for row in own if row["topic"] in USUAL]
    new = [row["id"] for row in own if row["topic"] in NEW]
    reference, rest = usual[:N_REFERENCE], usual[N_REFERENCE:]
    windows = []
    for number in range(4):
        source = new if number in shifted else rest
        ids = [source.pop() for _ in range(N_WINDOW)]
        windows.append({"window": number, "ids": ids, "new_source_share": 0.0})
    expected = {"no_alarm_before_window": 2, "alarm_no_later_than_window": 3}
    if not shifted:
        expected = {"no_alarm_in_any_window": True}
    settings = {"min_prompts": 20, "users": "one per row", "n_clusters": 8, "alpha": 0.01}
    return {
        "name": "toy-drift" if shifted else "toy-control",
        "kind": "drift" if shifted else "no_drift_control",
        "files": ["toy", "toy"],
        "target_language": "sw",
        "reference_ids": reference,
        "windows": windows,
        "expected": expected,
        "settings": settings | {"decision": "single window"},
    } | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder and a file with a drift case and a control."""
    rows = make_rows()
    where = tmp_path_factory.mktemp("drift-data")
    with gzip.open(where / "toy.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    cases = [make_case(rows, {2, 3}), make_case(rows, set())]
    (where / "scenarios.json").write_text(json.dumps(cases), encoding="utf-8")
    return where


@pytest.fixture
def read(tmp_path):
    def read_one(**changes):
        case = make_case(make_rows(), {2, 3}) | changes
        path = tmp_path / "case.json"
        path.write_text(json.dumps([case]), encoding="utf-8")
        return read_cases(path)[0]

    return read_one


def test_drift_is_seen_in_time_and_the_control_stays_quiet(folder, tmp_path):
    output = tmp_path / "results.json"
    told = list(
        run_scenarios(
            folder / "scenarios.json", str(folder), seeds=1, output=output, strategies=["compass"]
        )
    )
    assert [case["holds"] for case in told] == [True, True]
    assert [window["alarm"] for window in told[0]["windows"]] == [False, False, True, True]
    written = json.loads(output.read_text(encoding="utf-8"))
    assert [entry["name"] for entry in written] == ["toy-drift", "toy-control"]
    for entry in written:
        assert set(entry) == {"name", "windows"}
        assert len(entry["windows"]) == 4
        for window in entry["windows"]:
            assert set(window) == {"p", "score", "alarm"}
            assert 0 < window["p"] <= 1
            assert 0 <= window["score"] <= 1
    assert written[0]["windows"][3]["p"] <= 0.01


def test_encoder_sees_no_translation_of_the_case_and_clusters_no_row_of_its_language(
    folder, tmp_path, monkeypatch
):
    seen = {}
    fit_encoder, sample_rows = scenarios_drift.fit_ngram_encoder, scenarios_drift.sample_rows

    def watched_encoder(parallel, *args, **options):
        seen["parallel"] = set(parallel)
        return fit_encoder(parallel, *args, **options)

    def watched_sample(target, everyone, keys, *args, **options):
        seen["n_candidates"] = len(keys)
        return sample_rows(target, everyone, keys, *args, **options)

    monkeypatch.setattr(scenarios_drift, "fit_ngram_encoder", watched_encoder)
    monkeypatch.setattr(scenarios_drift, "sample_rows", watched_sample)
    case = read_cases(folder / "scenarios.json")[0]
    data = DataFolder(folder)
    prepared = prepare_drift_case(case, data, tmp_path)
    own = {*case.reference_ids, *(row for window in case.windows for row in window)}
    used = {row.parallel_id for row in data.rows("toy") if row.id in own}
    assert seen["parallel"]
    assert not seen["parallel"] & used
    assert seen["n_candidates"] == 2 * N_ITEMS  # all rows of the two other languages
    assert len(prepared.reference) == N_REFERENCE
    assert [len(window) for window in prepared.windows] == [N_WINDOW] * 4
    assert check_drift_case(prepared) == check_drift_case(prepared)


def test_window_below_the_minimum_is_insufficient_and_no_alarm(folder, tmp_path):
    case = read_cases(folder / "scenarios.json")[0]
    prepared = prepare_drift_case(case, DataFolder(folder), tmp_path)
    strict = case.drift.model_copy(update={"min_prompts": N_WINDOW + 1})
    object.__setattr__(case, "drift", strict)
    outcome = check_drift_case(prepared)
    assert [window.alarm for window in outcome.windows] == [False] * 4
    assert outcome.to_dict()["windows"][3] == {"p": None, "score": None, "alarm": False}
    assert not outcome.holds


def test_two_windows_in_a_row_may_be_asked_for(folder, tmp_path):
    case = read_cases(folder / "scenarios.json")[0]
    prepared = prepare_drift_case(case, DataFolder(folder), tmp_path)
    patient = case.drift.model_copy(update={"decision": "consecutive windows"})
    object.__setattr__(case, "drift", patient)
    outcome = check_drift_case(prepared)
    assert [window.alarm for window in outcome.windows] == [False, False, False, True]


@pytest.mark.parametrize(
    ("alarms", "holds"),
    [("....", False), ("..x.", True), ("...x", True), (".x.x", False), ("x...", False)],
)
def test_drift_case_holds_when_alarms_come_in_time_and_not_before(alarms, holds):
    expected = DriftExpected(no_alarm_before_window=2, alarm_no_later_than_window=3)
    assert alarms_as_expected([letter == "x" for letter in alarms], expected) is holds


@pytest.mark.parametrize(("alarms", "holds"), [("....", True), ("...x", False)])
def test_control_holds_without_any_alarm(alarms, holds):
    expected = DriftExpected(no_alarm_in_any_window=True)
    assert alarms_as_expected([letter == "x" for letter in alarms], expected) is holds


def test_windows_may_be_plain_lists_of_ids(read):
    case = read(windows=[["a", "b", "a"], []])
    assert case.windows == (("a", "b"), ())


def test_settings_and_expectations_are_read(read):
    case = read()
    assert (case.drift.min_prompts, case.drift.n_clusters, case.drift.alpha) == (20, 8, 0.01)
    assert case.expected.alarm_no_later_than_window == 3
    assert not case.selects


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reference_ids": []}, "reference_ids"),
        ({"windows": []}, "windows"),
        ({"windows": "all"}, "windows"),
        ({"settings": {"decision": "by feeling"}}, "settings.decision"),
        ({"settings": {"users": "many"}}, "settings.users"),
        ({"settings": {"alpha": 0}}, "settings.alpha"),
    ],
)
def test_drift_case_that_cannot_be_run_is_refused_by_name(read, changes, told):
    with pytest.raises(DataError, match=told):
        read(**changes)


def test_ids_that_no_file_has_are_named(folder, tmp_path, read):
    case = read(windows=[["nobody-1"]])
    with pytest.raises(DataError, match=r"1 of 1 ids of window 0 .*\n.*nobody-1"):
        prepare_drift_case(case, DataFolder(folder), tmp_path)


def test_files_with_too_few_rows_of_other_languages_are_refused(folder, tmp_path, read):
    case = read(settings={"n_clusters": 2_000})
    with pytest.raises(DataError, match="too few for 2000 clusters"):
        prepare_drift_case(case, DataFolder(folder), tmp_path)


@pytest.mark.slow
def test_drift_cases_of_the_real_data_hold(test_data, tmp_path):
    path = Path(test_data) / "scenarios.json"
    cases = [case for case in read_cases(path) if not case.selects]
    assert cases
    for case in cases:
        work = tmp_path / case.name
        work.mkdir()
        prepared = prepare_drift_case(case, DataFolder(Path(test_data)), work)
        assert check_drift_case(prepared).holds, case.name

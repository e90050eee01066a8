"""The file of cases: what is read, what is refused and how."""

import json

import pytest

from compass_core.errors import DataError
from compass_core.scenarios import read_cases

GOOD = {
    "name": "gap",
    "kind": "coverage_gap",
    "files": ["toy", "toy"],
    "target_language": "sw",
    "existing_ids": ["a", "a", "b"],
    "usage_ids": ["c"],
    "pool": {"file": "toy"},
}


def write(folder, document):
    path = folder / "scenarios.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_case_keeps_each_file_and_id_once_and_fills_defaults(tmp_path):
    (case,) = read_cases(write(tmp_path, [GOOD]))
    assert case.files == ("toy",)
    assert case.existing_ids == ("a", "b")
    assert case.budget == 400
    assert case.pool.languages == "all but the target"
    assert case.selects


def test_unknown_keys_are_ignored_and_kept_as_written(tmp_path):
    strange = GOOD | {"remark": 1, "pool": {"file": "toy", "colour": "red"}}
    (case,) = read_cases(write(tmp_path, [strange]))
    assert case.raw["remark"] == 1


@pytest.mark.parametrize("key", ["cases", "scenarios"])
def test_cases_may_lie_under_a_key(tmp_path, key):
    assert len(read_cases(write(tmp_path, {key: [GOOD]}))) == 1


def test_drift_cases_need_a_reference_and_windows_instead_of_usage_and_pool(tmp_path):
    drift = {"name": "d", "kind": "drift", "files": ["toy"], "target_language": "bn"}
    with pytest.raises(DataError, match=r"d: reference_ids(.|\n)*d: windows"):
        read_cases(write(tmp_path, [drift]))
    drift |= {"reference_ids": ["a"], "windows": [["b"]]}
    (case,) = read_cases(write(tmp_path, [drift]))
    assert not case.selects
    assert case.pool is None


def test_every_problem_of_every_case_is_named_at_once(tmp_path):
    bad = [
        GOOD | {"kind": "wish"},
        GOOD | {"name": "no-usage", "usage_ids": []},
        {key: value for key, value in GOOD.items() if key != "target_language"} | {"files": []},
        GOOD | {"settings": {"budget": 0}},
        "not a case",
    ]
    with pytest.raises(DataError) as caught:
        read_cases(write(tmp_path, [GOOD, *bad]))
    told = str(caught.value)
    for part in ("case 1", "'wish'", "no-usage", "case 3", "target_language", "files"):
        assert part in told
    assert "settings.budget" in told
    assert "case 5" in told
    assert "case 0" not in told


@pytest.mark.parametrize("document", [[], {}, {"other": []}, 3])
def test_file_without_cases_is_refused(tmp_path, document):
    with pytest.raises(DataError, match="no list of cases"):
        read_cases(write(tmp_path, document))


def test_missing_file_and_broken_json_say_so(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_cases(tmp_path / "none.json")
    (tmp_path / "half.json").write_text("[{", encoding="utf-8")
    with pytest.raises(DataError, match="is not JSON"):
        read_cases(tmp_path / "half.json")


def test_shipped_cases_are_read(test_data):
    cases = read_cases(test_data / "scenarios.json")
    assert {case.kind for case in cases if case.selects} == {"coverage_gap", "usage_skew"}
    assert all(case.gap_topics for case in cases if case.selects)

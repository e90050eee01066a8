from __future__ import annotations

import json
import math

import pytest

from compass_core.errors import DataError
from compass_core.report.data import (
    ArmResult,
    ClusterRow,
    LanguageReport,
    RunReport,
    from_json,
    summarise_run,
    to_json,
)


def test_report_survives_its_own_json(sample_run: RunReport) -> None:
    assert from_json(to_json(sample_run)) == sample_run


def test_unmeasured_numbers_become_null_and_stay_unmeasured() -> None:
    language = LanguageReport(
        language="swh_Latn",
        name="Swahili",
        arms=[ArmResult("compass", math.nan)],
        clusters=[ClusterRow(0, "a", 0.1, math.nan, math.nan)],
    )
    text = to_json(RunReport(run_id="r", project="p", languages=[language]))
    assert "NaN" not in text
    again = from_json(text).languages[0]
    assert again.arms[0].accuracy is None
    assert math.isnan(again.clusters[0].gap)


def test_keys_of_later_additions_are_left_out(sample_run: RunReport) -> None:
    values = json.loads(to_json(sample_run))
    values["languages"][0]["arms"][0]["novelty"] = 1
    values["novelty"] = {}
    assert from_json(json.dumps(values)) == sample_run


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("{", "line 1"),
        ("[]", "report_version 1 is needed"),
        ('{"report_version": 2}', "found 2"),
        ('{"report_version": 1}', "not a run report"),
        ('{"report_version": 1, "run_id": "r", "project": "p", "languages": [3]}', "not a run"),
    ],
)
def test_wrong_report_file_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(DataError, match=advice):
        from_json(text)


def test_summary_counts_outcomes_and_averages_the_gain(sample_run: RunReport) -> None:
    summary = summarise_run(sample_run, "r/report.html")
    assert (summary.promoted, summary.kept, summary.failed) == (4, 1, 1)
    gains = []
    for language in sample_run.languages:
        main, base = language.arm("compass"), language.arm("zero-shot")
        if main and base and main.accuracy is not None and base.accuracy is not None:
            gains.append(main.accuracy - base.accuracy)
    assert summary.mean_gain == pytest.approx(sum(gains) / 5)

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from compass_core.errors import DataError
from compass_core.report import continual_data, data, monitoring_data
from compass_core.report.continual_data import ArmSummary, ContinualReport
from compass_core.report.data import RunReport
from compass_core.report.monitoring_data import MonitoringReport, WatchedLanguage, WindowPoint


def test_monitoring_report_survives_its_own_json(sample_monitoring: MonitoringReport) -> None:
    text = monitoring_data.to_json(sample_monitoring)
    assert monitoring_data.from_json(text) == sample_monitoring


def test_continual_report_survives_its_own_json(sample_continual: ContinualReport) -> None:
    text = continual_data.to_json(sample_continual)
    assert continual_data.from_json(text) == sample_continual


def test_run_with_a_continual_study_survives_its_own_json(
    sample_continual: ContinualReport,
) -> None:
    run = RunReport(run_id="r", project="p", continual=sample_continual)
    assert data.from_json(data.to_json(run)) == run


def test_report_written_before_there_were_continual_studies_is_still_read(
    sample_run: RunReport,
) -> None:
    values = json.loads(data.to_json(sample_run))
    del values["continual"]
    assert data.from_json(json.dumps(values)) == sample_run


def test_unmeasured_numbers_of_a_window_become_null() -> None:
    window = WindowPoint(name="w", start="", end="", score=math.nan, threshold=math.inf)
    language = WatchedLanguage(language="swh_Latn", name="Swahili", windows=[window])
    text = monitoring_data.to_json(MonitoringReport(created="", languages=[language]))
    again = monitoring_data.from_json(text).languages[0].windows[0]
    assert (again.score, again.threshold) == (None, None)


def test_interval_that_was_not_measured_is_read_as_such() -> None:
    summary = [ArmSummary(arm="ecda", intervals={"learning": (math.nan, 0.2)})]
    report = ContinualReport(languages=[], seeds=[], arms=["ecda"], n_stages=1, summary=summary)
    again = continual_data.from_json(continual_data.to_json(report))
    assert again.summary[0].intervals == {"learning": (None, 0.2)}


def test_keys_of_later_additions_are_left_out(sample_monitoring: MonitoringReport) -> None:
    report = dataclasses.replace(sample_monitoring, languages=sample_monitoring.languages[:1])
    values = json.loads(monitoring_data.to_json(report))
    values["languages"][0]["windows"][0]["later"] = 1
    values["languages"][0]["later"] = values["later"] = {}
    assert monitoring_data.from_json(json.dumps(values)) == report


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("{", "line 1"),
        ("[]", "report_version 1 is needed"),
        ('{"report_version": 9}', "found 9"),
        ('{"report_version": 1}', "not a monitoring report"),
        ('{"report_version": 1, "created": "", "languages": [3]}', "not a monitoring report"),
    ],
)
def test_wrong_monitoring_file_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(DataError, match=advice):
        monitoring_data.from_json(text)


@pytest.mark.parametrize("text", ["", '{"report_version": 1, "arms": []}'])
def test_wrong_continual_file_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"continual\.json"):
        continual_data.from_json(text)

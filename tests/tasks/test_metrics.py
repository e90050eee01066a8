"""Metrics in Prometheus's own words: its parser reads them, and labels stay few."""

from datetime import UTC, datetime

import pytest

from tasks.metrics import MAX_LANGUAGES, Family, metrics_text, write_metrics
from tests.tasks.served import CODE, decided, drift_event, promote, remember

NOW = datetime(2026, 11, 20, 2, tzinfo=UTC)


@pytest.fixture
def families(mlflow_home, monkeypatch):
    monkeypatch.setenv("COMPASS_HOME", str(mlflow_home))
    parser = pytest.importorskip("prometheus_client.parser")

    def read():
        found = {f.name: f for f in parser.text_string_to_metric_families(metrics_text(NOW))}
        return {
            name: {tuple(sorted(s.labels.items())): s.value for s in family.samples}
            for name, family in found.items()
        }

    return read


def test_home_without_anything_has_metrics_that_parse(families):
    found = families()
    assert found["compass_status_timestamp_seconds"] == {(): NOW.timestamp()}
    assert "compass_champion_version" not in found


def test_champion_and_drift_of_a_language_are_told(families, mlflow_home):
    promote(mlflow_home, 1, accuracy=0.5)
    remember(mlflow_home, decided(19, "alarm", drift_detected=True))
    drift_event(mlflow_home)
    found = families()
    of = (("base", "starter"), ("language", CODE))
    assert found["compass_champion_version"][of] == 1
    assert found["compass_champion_accuracy_ratio"][of] == 0.5
    assert found["compass_drift_p_value"][of] == 0.001
    assert found["compass_drift_events_pending"][of] == 1
    assert found["compass_drift_state"] == {(*of, ("state", "drift")): 1}
    needs = (("code", "drift"), ("language", CODE), ("severity", "watch"))
    assert found["compass_attention"] == {needs: 1}


def test_values_of_labels_cannot_break_the_format():
    parser = pytest.importorskip("prometheus_client.parser")
    family = Family("compass_x", "Help.")
    odd = 'a"b\\c\nd} 5\n# TYPE evil counter'
    family.add(1, flow=odd)
    family.add(float("nan"), flow="unknown")
    text = "".join(f"{line}\n" for line in family.lines())
    [read] = parser.text_string_to_metric_families(text)
    assert [sample.labels["flow"] for sample in read.samples] == [odd]


def test_file_appears_whole_and_others_may_read_it(families, tmp_path):
    path = tmp_path / "collector" / "compass.prom"
    write_metrics(path)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["compass.prom"]


def test_languages_beyond_the_limit_are_counted(families, monkeypatch, mlflow_home):
    promote(mlflow_home, 1)
    promote(mlflow_home, 2, language="tur_Latn")
    monkeypatch.setattr("tasks.metrics.MAX_LANGUAGES", 1)
    found = families()
    assert found["compass_languages_left_out"] == {(): 1}
    assert len(found["compass_champion_version"]) == 1
    assert MAX_LANGUAGES == 1_000

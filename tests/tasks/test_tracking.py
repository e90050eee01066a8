"""The tracking store: real MLflow on SQLite, one schema creation per test session."""

import math
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from compass_core.errors import InputError, TransientError
from tasks import tracking


def open_run(**changes):
    values = {"tags": {"language": "swh_Latn"}, "params": {"training": {"lora_rank": 8}}}
    return tracking.start_run("compass", "swh_Latn", **{**values, **changes})


def test_run_keeps_nested_parameters_under_dotted_names_as_text(mlflow_home):
    run_id = open_run(params={"training": {"lora_rank": 8, "target_modules": ["q", "v"]}, "x": "y"})
    params = tracking.client().get_run(run_id).data.params
    assert params == {
        "training.lora_rank": "8",
        "training.target_modules": '["q", "v"]',
        "x": "y",
    }


def test_long_parameter_is_cut_and_shows_it(mlflow_home):
    run_id = open_run(params={"long": "x" * 50_000})
    value = tracking.client().get_run(run_id).data.params["long"]
    assert len(value) == tracking.MAX_PARAM_LENGTH
    assert value.endswith("…")


def test_more_parameters_than_one_batch_holds_are_all_kept(mlflow_home):
    run_id = open_run(params={f"p{number:03}": number for number in range(250)})
    assert len(tracking.client().get_run(run_id).data.params) == 250


def test_experiment_asks_for_the_training_layout(mlflow_home):
    open_run()
    experiment = tracking.client().get_experiment_by_name("compass")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert Path(experiment.artifact_location.removeprefix("file://")).is_relative_to(mlflow_home)


def test_retried_start_of_one_attempt_opens_one_run(mlflow_home):
    first = open_run(attempt="run-1/swh_Latn")
    assert open_run(attempt="run-1/swh_Latn") == first
    assert open_run(attempt="run-2/swh_Latn") != first


def test_an_attempt_that_is_finished_is_known_as_one(mlflow_home):
    run = open_run(attempt="run-3/swh_Latn")
    assert not tracking.is_finished(run), "its metrics may be missing"
    tracking.finish_run(run)
    assert open_run(attempt="run-3/swh_Latn") == run
    assert tracking.is_finished(run)


def test_history_logged_twice_is_stored_once(mlflow_home):
    run_id = open_run()
    rows = [{"step": step, "seconds": step * 0.5, "loss": 1 / (step + 1)} for step in range(1_500)]
    tracking.log_history(run_id, rows)
    tracking.log_history(run_id, rows)
    history = tracking.client().get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [
        (row["step"], row["loss"]) for row in rows
    ]
    assert history[2].timestamp - history[0].timestamp == 1_000


def test_infinite_metric_is_stored_as_not_a_number_and_text_is_left_out(mlflow_home):
    run_id = open_run()
    tracking.log_history(run_id, [{"step": 0, "loss": math.inf, "phase": "warm-up", "done": True}])
    assert math.isnan(tracking.client().get_metric_history(run_id, "loss")[0].value)
    assert set(tracking.client().get_run(run_id).data.metrics) == {"loss"}


def test_dataset_inputs_name_hash_and_rows_without_the_data(mlflow_home):
    run_id = open_run()
    for _ in range(2):
        tracking.log_inputs(run_id, [("usage", "ab" * 32, "store/ingest/x", "usage", 300)])
    (used,) = tracking.client().get_run(run_id).inputs.dataset_inputs
    assert used.dataset.name == "usage"
    assert ("ab" * 32).startswith(used.dataset.digest)
    assert used.dataset.profile == '{"num_rows": 300}'
    assert used.tags[0].value == "usage"


def test_finished_run_keeps_its_end_when_finished_again(mlflow_home):
    run_id = open_run()
    tracking.finish_run(run_id, "FINISHED")
    ended = tracking.client().get_run(run_id).info.end_time
    tracking.finish_run(run_id, "FINISHED")
    info = tracking.client().get_run(run_id).info
    assert (info.status, info.end_time) == ("FINISHED", ended)


def test_runs_of_a_language_come_newest_first_without_those_of_others(mlflow_home):
    first = open_run(attempt="1")
    second = open_run(attempt="2")
    open_run(tags={"language": "yor_Latn"})
    found = tracking.runs_of("compass", "swh_Latn")
    assert {run.run_id for run in found} == {first, second}
    assert found[0].started >= found[1].started
    assert found[0].params == {"training.lora_rank": "8"}
    assert tracking.runs_of("unheard-of", "swh_Latn") == []


def test_language_that_is_not_canonical_is_refused_before_it_reaches_a_filter(mlflow_home):
    with pytest.raises(InputError, match=r"E43 .*swh_Latn"):
        tracking.runs_of("compass", "x' OR tags.language != 'y")


def test_report_and_text_land_under_the_configured_folder(mlflow_home):
    run_id = open_run()
    tracking.log_text(run_id, "http://127.0.0.1/report", "report-link.txt")
    report = mlflow_home / "report.html"
    report.write_text("<p>seen</p>")
    tracking.log_file(run_id, report)
    stored = {path.name for path in (mlflow_home / "mlartifacts").rglob("*") if path.is_file()}
    assert {"report-link.txt", "report.html"} <= stored


def test_runs_opened_by_many_threads_do_not_mix(mlflow_home):
    runs = {}

    def work(number):
        run_id = open_run(params={"number": number})
        tracking.log_metrics(run_id, {"number": number})
        tracking.finish_run(run_id)
        runs[number] = run_id

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(runs.values())) == 6
    for number, run_id in runs.items():
        data = tracking.client().get_run(run_id).data
        assert (data.params["number"], data.metrics["number"]) == (str(number), float(number))


def test_unknown_run_is_an_input_error_and_a_busy_store_may_be_retried(mlflow_home):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    with pytest.raises(InputError, match="MLflow refused to read the run"):
        tracking.log_metrics("0" * 32, {"loss": 1.0})
    with (
        pytest.raises(TransientError, match="could not log"),
        tracking.mlflow_errors("log"),
    ):
        raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)


def test_telemetry_and_pickle_are_off_for_this_process_and_its_children(mlflow_home):
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{mlflow_home}/mlflow.db"


def _first_start(home, results):
    tracking.configure(tracking.default_tracking_uri(home), home / "mlartifacts")
    results.put(
        tracking.start_run("compass", "first", tags={"language": "swh_Latn"}, params={"a": 1})
    )


@pytest.mark.slow
def test_processes_that_start_together_on_a_fresh_store_all_succeed(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_first_start, args=(tmp_path, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    runs = {results.get(timeout=300) for _ in workers}
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert len(runs) == 4

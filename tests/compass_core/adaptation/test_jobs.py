import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from compass_core.adaptation.jobs import (
    ProgressFile,
    evaluate_job,
    generate_job,
    train_job,
)
from compass_core.adapter_files import adapter_sha256
from compass_core.config import BaseConfig, EvaluationConfig, TrainingConfig
from compass_core.errors import ModelError
from compass_core.evaluation.scoring import ITEM_SCHEMA
from compass_core.records import examples_to_table
from compass_core.storage import read_json, read_table, write_table


@pytest.fixture
def spec(tiny_base_folder, pairs, tmp_path):
    """A training job over two files."""
    write_table(tmp_path / "coverage.parquet", examples_to_table(pairs[:15]))
    write_table(tmp_path / "selection.parquet", examples_to_table(pairs[15:]))
    training = TrainingConfig(lora_rank=4, batch_size=8, min_steps=6, max_steps=6)
    return {
        "rows": [str(tmp_path / "coverage.parquet"), str(tmp_path / "selection.parquet")],
        "base": BaseConfig(model=str(tiny_base_folder), device="cpu").model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "seed": 0,
        "out_folder": str(tmp_path / "out"),
        "checkpoint_folder": str(tmp_path / "checkpoints"),
        "card": {"language": "swh_Latn"},
        "progress_path": str(tmp_path / "progress.json"),
        "threads": 1,
    }


@pytest.fixture
def evaluation_spec(spec, items, tmp_path):
    """A scoring job with the bare base."""
    write_table(tmp_path / "test.parquet", examples_to_table(items))
    return {
        "rows": [str(tmp_path / "test.parquet")],
        "base": spec["base"],
        "evaluation": EvaluationConfig().model_dump(mode="json"),
        "adapter_folder": None,
        "out_folder": str(tmp_path / "scores"),
    }


def test_training_job_writes_adapter_history_and_progress(spec, tmp_path):
    facts = train_job(spec)
    assert facts["steps"] == 6
    assert facts["n_examples"] == 40
    assert facts["adapter_sha256"] == adapter_sha256(tmp_path / "out" / "adapter")
    lines = (tmp_path / "out" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 7))
    assert read_json(tmp_path / "progress.json")["step"] == 6
    json.dumps(facts)


def test_equal_training_jobs_write_equal_files(spec, tmp_path):
    first = train_job(spec)
    second = train_job(spec | {"out_folder": str(tmp_path / "again"), "checkpoint_folder": None})
    assert first["adapter_sha256"] == second["adapter_sha256"]
    name = "history.jsonl"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_spawned_process_gives_the_same_adapter_and_its_errors_come_back_whole(spec, tmp_path):
    here = train_job(spec)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        there = pool.submit(train_job, spec | {"out_folder": str(tmp_path / "there")}).result()
        wrong = spec | {"base": spec["base"] | {"model": str(tmp_path / "nowhere")}}
        with pytest.raises(ModelError) as caught:
            pool.submit(train_job, wrong).result()
    assert there["adapter_sha256"] == here["adapter_sha256"]
    assert caught.value.code == "E26"


def test_evaluation_job_writes_one_row_per_item(evaluation_spec, items, tmp_path):
    facts = evaluate_job(evaluation_spec)
    table = read_table(tmp_path / "scores" / "items.parquet")
    assert table.schema.names == ITEM_SCHEMA.names
    assert table.column("id").to_pylist() == [item.id for item in items]
    assert facts["n_items"] == len(items)
    assert facts["accuracy"] == sum(table.column("correct").to_pylist()) / len(items)


def test_evaluation_job_scores_the_adapter_it_is_given(spec, evaluation_spec, tmp_path):
    training = spec["training"] | {"learning_rate": 1e-2, "min_steps": 30, "max_steps": 30}
    train_job(spec | {"training": training})
    evaluate_job(evaluation_spec)
    adapter = {"adapter_folder": str(tmp_path / "out" / "adapter")}
    evaluate_job(evaluation_spec | adapter | {"out_folder": str(tmp_path / "adapted")})
    before = read_table(tmp_path / "scores" / "items.parquet").column("logliks").to_pylist()
    after = read_table(tmp_path / "adapted" / "items.parquet").column("logliks").to_pylist()
    assert before != after


def test_generation_works_by_path(spec, tmp_path):
    train_job(spec)
    folder = str(tmp_path / "out" / "adapter")
    answer = generate_job(
        {"base": spec["base"], "adapter_folder": folder, "prompt": "the sky", "max_new_tokens": 4}
    )
    assert isinstance(answer, str)


def test_jobs_in_threads_of_one_process_do_not_disturb_each_other(spec, evaluation_spec, tmp_path):
    alone = train_job(spec | {"checkpoint_folder": None})
    scores = evaluate_job(evaluation_spec)
    with ThreadPoolExecutor(4) as pool:
        trained = [
            pool.submit(
                train_job,
                spec | {"out_folder": str(tmp_path / f"t{k}"), "checkpoint_folder": None},
            )
            for k in range(2)
        ]
        scored = [
            pool.submit(evaluate_job, evaluation_spec | {"out_folder": str(tmp_path / f"e{k}")})
            for k in range(2)
        ]
    hashes = {future.result()["adapter_sha256"] for future in trained}
    assert hashes == {alone["adapter_sha256"]}
    assert {future.result()["n_correct"] for future in scored} == {scores["n_correct"]}


def test_progress_is_written_at_most_twice_a_second_but_always_at_the_end(tmp_path):
    progress = ProgressFile(str(tmp_path / "p.json"))
    for step in range(1, 100):
        progress.on_step(step, 100, {"loss": 1.0})
    assert read_json(tmp_path / "p.json") == {"step": 1, "total": 100, "loss": 1.0}
    progress.on_step(100, 100, {"loss": 0.5})
    assert read_json(tmp_path / "p.json") == {"step": 100, "total": 100, "loss": 0.5}
    ProgressFile(None).write(1, 2)

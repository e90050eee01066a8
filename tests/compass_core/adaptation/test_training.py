import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from compass_core.adaptation.adapters import attach_adapter, detach_adapter, save_adapter
from compass_core.adaptation.bases import load_base
from compass_core.adaptation.batches import StepOrder
from compass_core.adaptation.checkpoints import clear_checkpoints
from compass_core.adaptation.forward import logits_at
from compass_core.adaptation.rendering import render_examples
from compass_core.adaptation.training import count_steps, learning_rate_at, train_adapter
from compass_core.config import BaseConfig, TrainingConfig
from compass_core.errors import ConfigError, DataError
from compass_core.records import Example

CONFIG = TrainingConfig(
    lora_rank=4,
    lora_alpha=8.0,
    lora_dropout=0.1,
    learning_rate=1e-2,
    batch_size=8,
    min_steps=12,
    max_steps=12,
    checkpoint_every=3,
)


class StoppedError(Exception):
    """Stands for a kill in the middle of training."""


def stop_at(step):
    def on_step(done, total, record):
        if done == step:
            raise StoppedError

    return on_step


def train(base, rows, folder, *, config=CONFIG, seed=0, checkpoints=None, **options):
    """Train, save into `folder`, detach; return the adapter's hash and the result."""
    result = train_adapter(base, rows, config, seed=seed, checkpoint_folder=checkpoints, **options)
    try:
        return save_adapter(result.model, folder, {}, base=base), result
    finally:
        detach_adapter(result.model)


def without_times(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def run_from_config(folder, out, checkpoints, rows):
    """What a child process does until it is killed."""
    torch.set_num_threads(1)
    base = load_base(BaseConfig(model=str(folder), device="cpu"))
    train(base, rows, Path(out), config=long_config(), checkpoints=Path(checkpoints))


def long_config():
    return CONFIG.model_copy(update={"min_steps": 400, "max_steps": 400, "checkpoint_every": 5})


@pytest.mark.parametrize(
    ("n", "changes", "expected"),
    [
        (100, {}, 10),
        (1, {}, 1),
        (100, {"min_steps": 300}, 300),
        (10_000, {"max_steps": 50}, 50),
        (100, {"epochs": 0.1}, 1),
        (100, {"min_steps": 7, "max_steps": 7}, 7),
    ],
)
def test_steps_follow_epochs_within_their_bounds(n, changes, expected):
    assert count_steps(n, TrainingConfig(epochs=changes.pop("epochs", 3), **changes)) == expected


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_warms_up_to_its_peak_and_then_follows_the_schedule(schedule):
    config = TrainingConfig(learning_rate=1.0, warmup_ratio=0.1, schedule=schedule)
    rates = [learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert max(rates) == 1.0
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[-1] == 1.0) == (schedule == "constant")
    assert rates[-1] > 0


def test_training_lowers_the_loss(tiny_base, pairs, tmp_path):
    config = CONFIG.model_copy(update={"min_steps": 60, "max_steps": 60})
    _, result = train(tiny_base, pairs, tmp_path / "a", config=config)
    assert result.steps == len(result.history) == 60
    assert result.history[-1]["loss"] < 0.4 * result.history[0]["loss"]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_same_seed_gives_the_same_weights_and_another_seed_others(tiny_base, pairs, tmp_path, kind):
    config = CONFIG.model_copy(update={"adapter": kind})
    hashes = [
        train(tiny_base, pairs, tmp_path / str(k), config=config, seed=seed)[0]
        for k, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_training_leaves_the_global_random_states_alone(tiny_base, pairs, tmp_path):
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(tiny_base, pairs, tmp_path / "a")
    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_result_does_not_depend_on_the_random_state_it_starts_from(tiny_base, pairs, tmp_path):
    first, _ = train(tiny_base, pairs, tmp_path / "a")
    torch.manual_seed(12345)
    second, _ = train(tiny_base, pairs, tmp_path / "b")
    assert first == second


def test_first_step_s_loss_and_gradient_equal_a_plain_loop(tiny_base, pairs):
    """Slow twin: one example at a time, full logits, no bucketing; mean over response tokens."""
    once = {"min_steps": 1, "max_steps": 1}
    config = CONFIG.model_copy(update={"lora_dropout": 0.0, "max_grad_norm": 1e9, **once})
    result = train_adapter(tiny_base, pairs, config, seed=0)
    seen = [p.detach().clone() for p in result.model.parameters() if p.requires_grad]
    detach_adapter(result.model)

    model = attach_adapter(tiny_base, config, seed=0)
    model.train()
    rendered = render_examples(pairs, tiny_base.tokenizer)
    chosen = [rendered[i] for i in StepOrder(len(pairs), 8, 0).indices(0)]
    total, count = torch.zeros(()), 0
    for example in chosen:
        ids = torch.from_numpy(example.ids.astype(np.int64))[None]
        labels = torch.from_numpy(example.labels.astype(np.int64))
        logits = model(input_ids=ids).logits[0]
        total = total + torch.nn.functional.cross_entropy(
            logits[:-1], labels[1:], reduction="sum", ignore_index=-100
        )
        count += example.n_targets
    (total / count).backward()
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=learning_rate_at(0, 1, config),
        weight_decay=0.0,
    )
    optimiser.step()
    expected = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    detach_adapter(model)
    assert len(seen) == len(expected)
    for found, wanted in zip(seen, expected, strict=True):
        assert torch.allclose(found, wanted, atol=2e-5)


def test_micro_batch_size_changes_the_result_by_rounding_only(tiny_base, pairs, tmp_path):
    config = CONFIG.model_copy(update={"lora_dropout": 0.0})
    losses = []
    for tokens in (64, 16_384):
        sized = config.model_copy(update={"micro_batch_tokens": tokens})
        _, result = train(tiny_base, pairs, tmp_path / str(tokens), config=sized)
        losses.append([record["loss"] for record in result.history])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize("step", [1, 3, 7, 11, 12])
def test_stopped_training_continues_to_the_very_same_weights(tiny_base, pairs, tmp_path, step):
    whole, reference = train(tiny_base, pairs, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(tiny_base, pairs, tmp_path / "cut", checkpoints=tmp_path / "c", on_step=stop_at(step))
    steps = []
    resumed, result = train(
        tiny_base,
        pairs,
        tmp_path / "resumed",
        checkpoints=tmp_path / "c",
        on_step=lambda done, total, record: steps.append(done),
    )
    assert resumed == whole
    assert steps == list(range(step // 3 * 3 + 1, 13))
    assert without_times(result.history) == without_times(reference.history)
    assert result.padding_efficiency == reference.padding_efficiency


@pytest.mark.parametrize("damage", ["marker", "cut", "flip"])
def test_incomplete_checkpoint_is_passed_over_for_the_one_before(
    tiny_base, pairs, tmp_path, damage
):
    whole, _ = train(tiny_base, pairs, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(tiny_base, pairs, tmp_path / "cut", checkpoints=tmp_path / "c", on_step=stop_at(7))
    assert [path.name for path in sorted((tmp_path / "c").iterdir())] == [
        "step-000003",
        "step-000006",
    ]
    newest = tmp_path / "c" / "step-000006"
    state = newest / "state.safetensors"
    if damage == "marker":
        (newest / "COMPLETE.json").unlink()
    elif damage == "cut":
        state.write_bytes(state.read_bytes()[:-10])
    else:
        content = bytearray(state.read_bytes())
        content[-9] ^= 4
        state.write_bytes(bytes(content))
    steps = []
    resumed, _ = train(
        tiny_base,
        pairs,
        tmp_path / "resumed",
        checkpoints=tmp_path / "c",
        on_step=lambda done, total, record: steps.append(done),
    )
    assert steps[0] == 4
    assert resumed == whole


def test_two_checkpoints_are_kept(tiny_base, pairs, tmp_path):
    train(tiny_base, pairs, tmp_path / "a", checkpoints=tmp_path / "c")
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "step-000009",
        "step-000012",
    ]
    clear_checkpoints(tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("what", ["torch", "data", "seed", "config"])
def test_checkpoint_of_another_recipe_is_not_continued_and_the_log_says_why(
    tiny_base, pairs, tmp_path, caplog, what
):
    with pytest.raises(StoppedError):
        train(tiny_base, pairs, tmp_path / "cut", checkpoints=tmp_path / "c", on_step=stop_at(7))
    options = {}
    rows = pairs
    if what == "torch":
        for path in (tmp_path / "c").glob("*/COMPLETE.json"):
            complete = json.loads(path.read_text())
            complete["recipe"]["torch"] = "1.0"
            path.write_text(json.dumps(complete))
    elif what == "data":
        rows = pairs[:-1]
    elif what == "seed":
        options["seed"] = 9
    else:
        options["config"] = CONFIG.model_copy(update={"learning_rate": 5e-3})
    steps = []
    train(
        tiny_base,
        rows,
        tmp_path / "b",
        checkpoints=tmp_path / "c",
        on_step=lambda done, total, record: steps.append(done),
        **options,
    )
    assert steps[0] == 1
    assert f"{what} was" in caplog.text


def test_diverging_training_stops_with_advice_and_keeps_the_checkpoint(tiny_base, pairs, tmp_path):
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "checkpoint_every": 1})
    with pytest.raises(ConfigError, match=r"Lower training\.learning_rate") as caught:
        train(tiny_base, pairs, tmp_path / "a", config=config, checkpoints=tmp_path / "c")
    assert caught.value.code == "E65"
    assert "step 2 of 12" in caught.value.message
    assert (tmp_path / "c" / "step-000001" / "COMPLETE.json").is_file()
    assert not hasattr(tiny_base.model, "peft_config")


def test_history_tells_what_happened(tiny_base, pairs, tmp_path):
    _, result = train(tiny_base, pairs, tmp_path / "a")
    record = result.history[4]
    assert record["step"] == 5
    assert record["learning_rate"] == learning_rate_at(4, 12, CONFIG)
    assert record["grad_norm"] > 0
    assert record["tokens"] <= record["padded_tokens"]
    assert result.tokens == sum(r["tokens"] for r in result.history)
    assert 0.5 < result.padding_efficiency <= 1.0


def test_nothing_to_train_on_is_refused(tiny_base):
    with pytest.raises(DataError, match="0 examples"):
        train_adapter(tiny_base, [], CONFIG, seed=0)


def test_rows_without_answers_are_refused(tiny_base, pairs):
    long = Example(id="x", language="swh_Latn", prompt="sky " * 500, response="blue")
    with pytest.raises(DataError, match="max_length"):
        train_adapter(tiny_base, [long], CONFIG, seed=0)


def test_logits_at_positions_equal_the_full_logits(tiny_base):
    tokens = torch.arange(1, 31).reshape(3, 10)
    positions = torch.tensor([0, 9, 15, 29])
    with torch.inference_mode():
        full = tiny_base.model(input_ids=tokens).logits.flatten(0, 1)[positions]
        assert torch.allclose(logits_at(tiny_base.model, tokens, positions), full, atol=1e-6)


@pytest.mark.slow
def test_killed_process_continues_to_the_very_same_weights(tiny_base_folder, pairs, tmp_path):
    base = load_base(BaseConfig(model=str(tiny_base_folder), device="cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole, _ = train(base, pairs, tmp_path / "whole", config=long_config())
    arguments = (str(tiny_base_folder), str(tmp_path / "x"), str(tmp_path / "c"), pairs)
    context = multiprocessing.get_context("spawn")
    for kill in range(2):
        child = context.Process(target=run_from_config, args=arguments)
        child.start()
        wanted = tmp_path / "c" / f"step-{100 + 100 * kill:06d}"
        deadline = time.monotonic() + 120
        while not wanted.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    resumed, _ = train(
        base, pairs, tmp_path / "resumed", config=long_config(), checkpoints=tmp_path / "c"
    )
    torch.set_num_threads(threads)
    assert resumed == whole

import json

import pytest
import torch

from compass_core.adaptation.adapters import detach_adapter, save_adapter
from compass_core.adaptation.bases import load_base
from compass_core.adaptation.fisher import measure_fisher
from compass_core.adaptation.fisher_files import add_fisher, read_fisher
from compass_core.adaptation.jobs import train_job
from compass_core.adaptation.replay import draw_replay
from compass_core.adaptation.training import train_adapter
from compass_core.adaptation.update_jobs import fisher_job, update_job
from compass_core.adaptation.update_terms import UpdateTerms
from compass_core.config import BaseConfig, EvaluationConfig, TrainingConfig
from compass_core.errors import ConfigError, ModelError
from compass_core.evaluation.scoring import evaluate_items
from compass_core.records import examples_to_table
from compass_core.seeding import derive_rng
from compass_core.selection.drawing import example_keys
from compass_core.starter import base_path
from compass_core.starter.corpus import TOPICS, build_language, language_rows
from compass_core.storage import read_json, write_table

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
LORA_SETTINGS = {
    "lora_rank": 2,
    "lora_alpha": 4.0,
    "adapter": "dora",
    "target_modules": ("q_proj",),
}


class StoppedError(Exception):
    """Stands for a kill in the middle of training."""


def train(base, rows, folder, **options):
    """Train, save into `folder`, detach; return the adapter's hash and the result."""
    options = {"config": CONFIG, "seed": 0} | options
    result = train_adapter(base, rows, **options)
    try:
        return save_adapter(result.model, folder, {}, base=base), result
    finally:
        detach_adapter(result.model)


@pytest.fixture
def start(tiny_base, pairs, tmp_path):
    """An adapter trained on the first half of the pairs."""
    train(tiny_base, pairs[:20], tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def terms(tiny_base, start, pairs):
    """EWC and replay for an update of `start`."""
    fisher = measure_fisher(tiny_base, start, pairs[:20], CONFIG)
    return UpdateTerms(fisher, ewc_strength=2.0, replay=pairs[:5], replay_strength=0.5)


def weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def without_times(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


# --------------------------------------------------------------------------- starting from weights
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_training_starts_from_the_weights_of_the_adapter(tiny_base, pairs, tmp_path, kind):
    still = CONFIG.model_copy(update={"adapter": kind})
    train(tiny_base, pairs, tmp_path / "a", config=still)
    # A rate too small to move a float32 leaves the weights where training starts.
    frozen = still.model_copy(update={"learning_rate": 1e-30, "max_steps": 2, "min_steps": 2})
    train(tiny_base, pairs, tmp_path / "b", config=frozen, start=tmp_path / "a")
    before, after = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_going_on_is_as_deterministic_as_starting(tiny_base, pairs, start, terms, tmp_path):
    hashes = [
        train(tiny_base, pairs[20:], tmp_path / str(n), start=start, update=terms)[0]
        for n in range(2)
    ]
    assert hashes[0] == hashes[1]
    other, _ = train(tiny_base, pairs[20:], tmp_path / "c", start=start, update=terms, seed=1)
    assert other != hashes[0]


@pytest.mark.parametrize("change", LORA_SETTINGS)
def test_a_config_of_another_adapter_is_refused_with_both_named(tiny_base, pairs, start, change):
    config = CONFIG.model_copy(update={change: LORA_SETTINGS[change]})
    with pytest.raises(ConfigError, match="start was trained otherwise") as caught:
        train_adapter(tiny_base, pairs, config, seed=0, start=start)
    assert caught.value.code == "E42"
    if change == "lora_rank":
        assert "r is 2 in training.* and 4 in the adapter" in caught.value.message
    assert not hasattr(tiny_base.model, "peft_config")


def test_other_dropout_and_rate_are_no_other_adapter(tiny_base, pairs, start, tmp_path):
    config = CONFIG.model_copy(update={"lora_dropout": 0.0, "learning_rate": 1e-3})
    _, result = train(tiny_base, pairs, tmp_path / "a", config=config, start=start)
    assert result.steps == 12


# --------------------------------------------------------------------------- terms
def test_terms_of_strength_zero_change_nothing(tiny_base, pairs, start, terms, tmp_path):
    naive, plain = train(tiny_base, pairs[20:], tmp_path / "a", start=start)
    off = UpdateTerms(terms.fisher, 0.0, "mean", terms.replay, 0.0)
    same, with_terms = train(tiny_base, pairs[20:], tmp_path / "b", start=start, update=off)
    assert same == naive
    assert [r["loss"] for r in with_terms.history] == [r["loss"] for r in plain.history]
    assert with_terms.tokens_replay == 0
    assert "loss_ewc" not in plain.history[0]


def test_history_has_every_term_of_the_loss(tiny_base, pairs, start, terms, tmp_path):
    _, result = train(tiny_base, pairs[20:], tmp_path / "a", start=start, update=terms)
    first, last = result.history[0], result.history[-1]
    assert first["loss_ewc"] == 0.0
    assert last["loss_ewc"] > 0
    assert last["loss_replay"] > 0
    for record in result.history:
        total = record["loss_task"] + 2.0 * record["loss_ewc"] + 0.5 * record["loss_replay"]
        assert record["loss"] == pytest.approx(total)
        assert record["tokens_replay"] > 0
    # One replayed example for eight new ones; a buffer of five is cycled.
    assert result.tokens_replay < 0.4 * result.tokens
    assert result.tokens_replay == sum(record["tokens_replay"] for record in result.history)


def test_stronger_ewc_stays_nearer_to_the_start(tiny_base, pairs, start, terms, tmp_path):
    before = weights_of(start)
    distances = []
    for strength in (0.0, 1.0, 100.0):
        held = UpdateTerms(terms.fisher, strength)
        folder = tmp_path / str(strength)
        train(tiny_base, pairs[20:], folder, start=start, update=held)
        after = weights_of(folder)
        moved = [(terms.fisher.values[n] * (after[n] - before[n]).square()).sum() for n in before]
        distances.append(float(sum(moved)))
    assert distances[0] > distances[1] > distances[2]


def test_one_step_s_gradient_is_that_of_equation_6(tiny_base, pairs, start, terms, tmp_path):
    """Slow twin: the three losses by hand at weights away from the start, one autograd pass."""
    from compass_core.adaptation.adapters import continue_adapter
    from compass_core.adaptation.batches import StepOrder, collate
    from compass_core.adaptation.ewc import ewc_penalty
    from compass_core.adaptation.fisher import adapter_parameters
    from compass_core.adaptation.fisher_files import scaled_fisher
    from compass_core.adaptation.forward import logits_at
    from compass_core.adaptation.rendering import render_examples
    from compass_core.seeding import derive_seed

    steps = {"min_steps": 2, "max_steps": 2, "lora_dropout": 0.0, "schedule": "constant"}
    config = CONFIG.model_copy(update=steps | {"warmup_ratio": 0.0, "max_grad_norm": 1e9})
    _, result = train(
        tiny_base, pairs[20:], tmp_path / "a", config=config, start=start, update=terms
    )
    first = config.model_copy(update={"min_steps": 1, "max_steps": 1})
    train(tiny_base, pairs[20:], tmp_path / "b", config=first, start=start, update=terms)

    model = continue_adapter(tiny_base, tmp_path / "b", config)
    model.train()

    def mean_loss(rows, order):
        batch = collate([rendered for rendered in rows[order]], 0)
        logits = logits_at(model, batch.input_ids, batch.positions)
        return torch.nn.functional.cross_entropy(logits, batch.targets)

    class Rows(list):
        def __getitem__(self, indices):
            return [list.__getitem__(self, int(i)) for i in indices]

    new = Rows(render_examples(pairs[20:], tiny_base.tokenizer))
    old = Rows(render_examples(pairs[:5], tiny_base.tokenizer))
    task = mean_loss(new, StepOrder(20, 8, 0).indices(1))
    replay = mean_loss(old, StepOrder(5, 1, derive_seed(0, "replay")).indices(1))
    before, fisher = weights_of(start), scaled_fisher(terms.fisher, "mean")
    parts = [
        ewc_penalty(weight.flatten(), before[name].flatten(), fisher[name].flatten())
        for name, weight in adapter_parameters(model).items()
    ]
    total = task + 2.0 * sum(parts) + 0.5 * replay
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    detach_adapter(model)
    second = result.history[1]
    assert second["loss_task"] == pytest.approx(task.item(), rel=1e-5)
    assert second["loss_replay"] == pytest.approx(replay.item(), rel=1e-5)
    assert second["loss_ewc"] == pytest.approx(sum(parts).item(), rel=1e-4)
    assert second["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("step", [4, 11])
def test_a_stopped_update_continues_to_the_very_same_weights(
    tiny_base, pairs, start, terms, tmp_path, step
):
    whole, reference = train(tiny_base, pairs[20:], tmp_path / "w", start=start, update=terms)

    def stop(done, total, record):
        if done == step:
            raise StoppedError

    options = {"start": start, "update": terms, "checkpoint_folder": tmp_path / "c"}
    with pytest.raises(StoppedError):
        train(tiny_base, pairs[20:], tmp_path / "cut", on_step=stop, **options)
    resumed, result = train(tiny_base, pairs[20:], tmp_path / "r", **options)
    assert resumed == whole
    assert without_times(result.history) == without_times(reference.history)


@pytest.mark.parametrize("what", ["start", "fisher", "scale", "lambda", "replay", "beta", "off"])
def test_checkpoint_of_another_update_is_not_continued(
    tiny_base, pairs, start, terms, tmp_path, caplog, what
):
    def stop(done, total, record):
        if done == 7:
            raise StoppedError

    folder = {"checkpoint_folder": tmp_path / "c"}
    with pytest.raises(StoppedError):
        train(
            tiny_base, pairs[20:], tmp_path / "x", start=start, update=terms, on_step=stop, **folder
        )
    values = {"fisher": terms.fisher, "ewc_strength": 2.0, "replay": pairs[:5]}
    values["replay_strength"] = 0.5
    origin = start
    if what == "start":
        train(tiny_base, pairs[:20], tmp_path / "other", seed=5)
        origin = tmp_path / "other"
        values["fisher"] = measure_fisher(tiny_base, origin, pairs[:20], CONFIG)
    elif what == "fisher":
        values["fisher"] = measure_fisher(tiny_base, start, pairs[:10], CONFIG)
    else:
        values |= {
            "scale": {"fisher_scale": "max"},
            "lambda": {"ewc_strength": 1.0},
            "replay": {"replay": pairs[:6]},
            "beta": {"replay_strength": 0.4},
            "off": {"fisher": None},
        }[what]
    steps = []
    train(
        tiny_base,
        pairs[20:],
        tmp_path / "y",
        start=origin,
        update=UpdateTerms(**values),
        on_step=lambda done, total, record: steps.append(done),
        **folder,
    )
    assert steps[0] == 1
    assert "another recipe" in caplog.text


def test_fisher_of_another_adapter_is_refused(tiny_base, pairs, terms, tmp_path):
    train(tiny_base, pairs[:20], tmp_path / "other", seed=5)
    with pytest.raises(ModelError, match="the update starts from") as caught:
        train_adapter(tiny_base, pairs[20:], CONFIG, seed=0, start=tmp_path / "other", update=terms)
    assert caught.value.code == "E33"
    assert not hasattr(tiny_base.model, "peft_config")


def test_terms_without_weights_to_start_from_are_refused(tiny_base, pairs, terms):
    with pytest.raises(ConfigError, match="start_folder"):
        train_adapter(tiny_base, pairs, CONFIG, seed=0, update=terms)


@pytest.mark.parametrize(("batch", "expected"), [(32, 4), (16, 2), (8, 1), (2, 1), (20, 2)])
def test_replay_is_an_eighth_of_a_step_and_one_example_at_least(batch, expected):
    config = TrainingConfig(batch_size=batch)
    assert UpdateTerms().replay_batch(config) == expected
    assert UpdateTerms(replay_batch_size=7).replay_batch(config) == 7


# --------------------------------------------------------------------------- jobs
@pytest.fixture
def spec(tiny_base_folder, pairs, tmp_path):
    """A trained start, and the update of it, as plain JSON values."""
    for name, rows in (("old", pairs[:20]), ("new", pairs[20:]), ("buffer", pairs[:5])):
        write_table(tmp_path / f"{name}.parquet", examples_to_table(rows))
    common = {
        "base": BaseConfig(model=str(tiny_base_folder), device="cpu").model_dump(mode="json"),
        "training": CONFIG.model_dump(mode="json"),
        "seed": 0,
        "threads": 1,
    }
    train_job(
        common | {"rows": [str(tmp_path / "old.parquet")], "out_folder": str(tmp_path / "t0")}
    )
    return common | {
        "rows": [str(tmp_path / "new.parquet")],
        "start_folder": str(tmp_path / "t0" / "adapter"),
        "fisher_path": None,
        "replay_rows": [],
        "update": {"ewc_strength": 2.0, "replay_strength": 0.1, "fisher_scale": "mean"},
        "out_folder": str(tmp_path / "t1"),
        "checkpoint_folder": str(tmp_path / "checkpoints"),
        "card": {"language": "swh_Latn"},
        "progress_path": str(tmp_path / "progress.json"),
    }


def fisher_spec(spec, tmp_path, **changes):
    return {
        **{name: spec[name] for name in ("base", "training", "seed", "threads")},
        "rows": [str(tmp_path / "old.parquet")],
        "adapter_folder": str(tmp_path / "t0" / "adapter"),
        "max_examples": 0,
        "previous_path": None,
        "decay": 1.0,
        "out_folder": str(tmp_path / "fisher"),
        **changes,
    }


def test_update_without_terms_is_naive_fine_tuning(spec, tiny_base, pairs, tmp_path):
    facts = update_job(spec)
    start = tmp_path / "t0" / "adapter"
    result = train_adapter(tiny_base, pairs[20:], CONFIG, seed=0, start=start)
    card = {"language": "swh_Latn"}
    assert (
        save_adapter(result.model, tmp_path / "n", card, base=tiny_base) == facts["adapter_sha256"]
    )
    detach_adapter(result.model)
    assert facts["tokens_replay"] == 0
    assert facts["fisher"] is None
    assert facts["n_examples"] == 20
    assert read_json(tmp_path / "progress.json")["step"] == 12
    json.dumps(facts)


def test_fisher_job_writes_what_the_update_job_reads(spec, tmp_path):
    facts = fisher_job(fisher_spec(spec, tmp_path, progress_path=str(tmp_path / "f.json")))
    assert facts["n_examples"] == 20
    assert facts["seconds"] > 0
    assert read_json(tmp_path / "f.json")["step"] == 20
    json.dumps(facts)
    terms = {
        "fisher_path": str(tmp_path / "fisher"),
        "replay_rows": [str(tmp_path / "buffer.parquet")],
    }
    updated = update_job(spec | terms)
    assert updated["tokens_replay"] > 0
    assert updated["loss_ewc"] > 0
    assert updated["fisher"] == {"mean": facts["mean"], "max": facts["max"], "scale": "mean"}
    lines = (tmp_path / "t1" / "history.jsonl").read_text().splitlines()
    assert "loss_replay" in json.loads(lines[-1])
    naive = update_job(spec | {"out_folder": str(tmp_path / "n"), "checkpoint_folder": None})
    assert naive["adapter_sha256"] != updated["adapter_sha256"]


def test_fisher_job_adds_what_earlier_updates_meant(spec, tmp_path):
    fisher_job(fisher_spec(spec, tmp_path))
    earlier = read_fisher(tmp_path / "fisher")
    out = {"out_folder": str(tmp_path / "second"), "previous_path": str(tmp_path / "fisher")}
    facts = fisher_job(fisher_spec(spec, tmp_path, decay=0.5, **out))
    both = read_fisher(tmp_path / "second")
    assert facts["n_stages"] == 2
    expected = add_fisher(earlier, earlier, 0.5)
    assert all(torch.equal(both.values[n], expected.values[n]) for n in both.values)


def test_update_job_refuses_the_fisher_of_another_base(spec, tmp_path):
    fisher_job(fisher_spec(spec, tmp_path))
    path = tmp_path / "fisher" / "fisher.json"
    path.write_text(json.dumps(read_json(path) | {"base_fingerprint": "0" * 64}))
    with pytest.raises(ModelError, match="computed on base 000000000000") as caught:
        update_job(spec | {"fisher_path": str(tmp_path / "fisher")})
    assert caught.value.code == "E33"


# --------------------------------------------------------------------------- what it is for
@pytest.mark.slow
def test_ewc_and_replay_keep_what_naive_fine_tuning_forgets(tmp_path):
    """One language of the starter: three topics arrive, six must stay."""
    torch.set_num_threads(1)
    language, seed = "swh_Latn", 0
    base = load_base(BaseConfig(model=str(base_path()), device="cpu"))
    split = build_language(
        language, seed=seed, n_coverage=300, n_usage=200, n_test=450, n_missing_topics=3
    )
    tested = {row.prompt for row in split.test}
    missing = split.missing_topics
    pool = [r for r in language_rows(language, "train") if r.topic in missing]
    new = [row for row in pool if row.prompt not in tested][::3][:60]
    config = CONFIG.model_copy(
        update={"lora_rank": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "learning_rate": 3e-3}
        | {"batch_size": 16, "min_steps": 150, "max_steps": 150, "max_length": 128}
    )
    short = config.model_copy(update={"min_steps": 100, "max_steps": 100})
    train(base, split.coverage, tmp_path / "t0", config=config)
    fisher = measure_fisher(base, tmp_path / "t0", split.coverage, config)
    ids = torch.tensor([TOPICS.index(row.topic) for row in split.coverage]).numpy()
    keys = example_keys(row.id for row in split.coverage)
    chosen = draw_replay(ids, keys, 0.05, 5_000, derive_rng(seed, "replay"))
    ecda = UpdateTerms(fisher, 2.0, "mean", [split.coverage[i] for i in chosen], 0.1)
    accuracy = {}
    for name, update in (("naive", None), ("ecda", ecda)):
        train(base, new, tmp_path / name, config=short, start=tmp_path / "t0", update=update)
    for name in ("t0", "naive", "ecda"):
        table = evaluate_items(base, split.test, EvaluationConfig(), tmp_path / name)
        right = table.column("correct").to_pylist()
        for kind in ("old", "new"):
            of_kind = [
                r
                for r, item in zip(right, split.test, strict=True)
                if (item.topic in missing) == (kind == "new")
            ]
            accuracy[name, kind] = sum(of_kind) / len(of_kind)
    forgotten = {n: accuracy["t0", "old"] - accuracy[n, "old"] for n in ("naive", "ecda")}
    learned = {n: accuracy[n, "new"] - accuracy["t0", "new"] for n in ("naive", "ecda")}
    assert forgotten["naive"] > 0.2
    assert forgotten["ecda"] < forgotten["naive"] / 2
    assert learned["ecda"] > 0.85 * learned["naive"]

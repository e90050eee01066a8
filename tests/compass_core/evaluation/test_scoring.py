from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from compass_core.adaptation.adapters import attach_adapter, detach_adapter, save_adapter
from compass_core.adaptation.rendering import encode_prompts, encode_responses
from compass_core.config import EvaluationConfig, TrainingConfig
from compass_core.errors import DataError
from compass_core.evaluation import choices
from compass_core.evaluation.scoring import (
    answers_match,
    evaluate_items,
    normalise_answer,
    score_choices,
    score_generations,
)
from compass_core.records import Example


def one_by_one(model, tokenizer, items):
    """Slow twin: a forward pass of the whole text per choice, no batch, no sharing."""
    result = []
    for item in items:
        prompt = encode_prompts([item], tokenizer)[0]
        values = []
        for choice in item.choices:
            tokens = encode_responses([choice], tokenizer, ends=False)[0]
            with torch.inference_mode():
                ids = torch.tensor([prompt + tokens])
                logprobs = model(input_ids=ids).logits[0].float().log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
            pairs = zip(places, tokens, strict=True)
            values.append(sum(float(logprobs[place, token]) for place, token in pairs))
        result.append(values)
    return result


def flat(logliks):
    return [value for values in logliks for value in values]


@pytest.fixture
def adapter_folder(tiny_base, tmp_path):
    """An adapter that changes the logits."""
    model = attach_adapter(tiny_base, TrainingConfig(adapter="dora", lora_rank=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    save_adapter(model, tmp_path / "adapter", {}, base=tiny_base)
    detach_adapter(model)
    return tmp_path / "adapter"


@pytest.mark.parametrize("batch_tokens", [1, 100, 16_384])
@pytest.mark.parametrize("branches", [True, False])
def test_scores_equal_a_plain_loop_whatever_the_batch(
    tiny_base, items, monkeypatch, batch_tokens, branches
):
    if not branches:
        monkeypatch.setattr(choices, "_takes_branches", lambda model: False)
    expected = one_by_one(tiny_base.model, tiny_base.tokenizer, items)
    found = score_choices(tiny_base.model, tiny_base.tokenizer, items, batch_tokens=batch_tokens)
    assert flat(found) == pytest.approx(flat(expected), abs=1e-4)


def test_scores_without_template_equal_a_plain_loop(tiny_base, items, monkeypatch):
    monkeypatch.setattr(tiny_base.tokenizer, "chat_template", None)
    expected = one_by_one(tiny_base.model, tiny_base.tokenizer, items)
    found = score_choices(tiny_base.model, tiny_base.tokenizer, items)
    assert flat(found) == pytest.approx(flat(expected), abs=1e-4)


def test_other_architectures_equal_a_plain_loop(items, tiny_base):
    tokenizer = tiny_base.tokenizer
    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.2}
    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    models = [
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, **sizes)),
        Qwen2ForCausalLM(Qwen2Config(**small, **sizes)),
        MistralForCausalLM(MistralConfig(sliding_window=6, **small, **sizes)),
    ]
    for model in models:
        model.eval()
        expected = one_by_one(model, tokenizer, items)
        found = score_choices(model, tokenizer, items)
        assert flat(found) == pytest.approx(flat(expected), abs=1e-4), type(model)


def test_branches_that_do_not_agree_are_not_used(tiny_base, items, monkeypatch):
    genuine = choices._branch_inputs

    def wrong_positions(rows, width, model):
        inputs = genuine(rows, width, model)
        return inputs | {"position_ids": inputs["position_ids"] + torch.arange(width)}

    monkeypatch.setattr(choices, "_branch_inputs", wrong_positions)
    expected = one_by_one(tiny_base.model, tiny_base.tokenizer, items)
    found = score_choices(tiny_base.model, tiny_base.tokenizer, items)
    assert flat(found) == pytest.approx(flat(expected), abs=1e-4)


def test_normalisation_divides_by_tokens_or_bytes(tiny_base, items):
    settings = {"model": tiny_base.model, "tokenizer": tiny_base.tokenizer, "items": items}
    plain = score_choices(**settings)
    tokens = score_choices(**settings, normalise="tokens")
    by_bytes = score_choices(**settings, normalise="bytes")
    for item, raw, per_token, per_byte in zip(items, plain, tokens, by_bytes, strict=True):
        lengths = [
            len(ids) for ids in encode_responses(item.choices, tiny_base.tokenizer, ends=False)
        ]
        assert per_token == pytest.approx(np.divide(raw, lengths).tolist())
        assert per_byte == pytest.approx(
            [v / len(c.encode()) for v, c in zip(raw, item.choices, strict=True)]
        )


def test_prompt_longer_than_the_model_keeps_its_end(tiny_base):
    ending = "the moon is a sun and the sky"
    long = Example(
        id="long", language="swh_Latn", prompt="red " * 400 + ending, choices=("blue", "green")
    )
    prompt = encode_prompts([long], tiny_base.tokenizer)[0]
    assert len(prompt) > 256
    found = score_choices(tiny_base.model, tiny_base.tokenizer, [long])
    blue, green = encode_responses(long.choices, tiny_base.tokenizer, ends=False)
    room = 256 - max(len(blue), len(green)) + 1
    ids = torch.tensor([prompt[-room:] + green])
    with torch.inference_mode():
        logprobs = tiny_base.model(input_ids=ids[:, :256]).logits[0].log_softmax(-1)
    places = range(room - 1, room - 1 + len(green))
    expected = sum(float(logprobs[p, t]) for p, t in zip(places, green, strict=True))
    assert found[0][1] == pytest.approx(expected, abs=1e-4)


def test_empty_choice_is_refused_by_name(tiny_base, items):
    broken = replace(items[3], choices=("red", ""))
    with pytest.raises(DataError, match=f"{broken.id}: choice 1 of 2"):
        score_choices(tiny_base.model, tiny_base.tokenizer, [*items[:3], broken])


def test_item_without_choices_is_refused_by_name(tiny_base, items):
    with pytest.raises(DataError, match="item-1"):
        score_choices(
            tiny_base.model, tiny_base.tokenizer, [items[0], replace(items[1], choices=())]
        )


def test_table_has_one_row_per_item_in_order(tiny_base, items):
    written = [
        Example(id="w0", language="swh_Latn", prompt="the sky", response="blue", topic="t"),
    ]
    mixed = [items[0], written[0], *items[1:]]
    table = evaluate_items(tiny_base, mixed, EvaluationConfig(max_new_tokens=4)).to_pylist()
    assert [row["id"] for row in table] == [item.id for item in mixed]
    logliks = score_choices(tiny_base.model, tiny_base.tokenizer, items)
    for row, item, values in zip([table[0], *table[2:]], items, logliks, strict=True):
        assert row["logliks"] == pytest.approx(values, abs=1e-4)
        best = int(np.argmax(row["logliks"]))
        assert row["predicted"] == item.choices[best]
        assert row["answer"] == item.choices[item.answer_index]
        assert row["correct"] == (best == item.answer_index)
        assert (row["topic"], row["kind"], row["n_choices"]) == (
            item.topic,
            "choices",
            len(item.choices),
        )
    assert (table[1]["kind"], table[1]["logliks"], table[1]["answer"]) == ("generation", [], "blue")


def test_adapter_changes_the_scores_and_leaves_no_trace(tiny_base, items, adapter_folder):
    config = EvaluationConfig()
    before = evaluate_items(tiny_base, items, config)
    adapted = evaluate_items(tiny_base, items, config, adapter_folder)
    after = evaluate_items(tiny_base, items, config)
    assert before.equals(after)
    assert not before.equals(adapted)


def test_generation_scoring_does_not_depend_on_the_batch(tiny_base, pairs):
    model, tokenizer = tiny_base.model, tiny_base.tokenizer
    small = score_generations(model, tokenizer, pairs[:8], batch_tokens=1, max_new_tokens=6)
    large = score_generations(model, tokenizer, pairs[:8], max_new_tokens=6)
    assert small == large


def test_items_without_gold_answer_are_refused_all_together(tiny_base, items):
    broken = [replace(items[0], answer_index=None), replace(items[1], answer_index=9), items[2]]
    with pytest.raises(DataError, match="2 test items") as caught:
        evaluate_items(tiny_base, broken, EvaluationConfig())
    assert "item-0" in caught.value.message
    assert "item-1" in caught.value.message


def test_empty_test_set_is_refused(tiny_base):
    with pytest.raises(DataError) as caught:
        evaluate_items(tiny_base, [], EvaluationConfig())
    assert caught.value.code == "E03"


@pytest.mark.parametrize(
    ("predicted", "answer", "exact", "contains"),
    [
        ("Paris", "paris", True, True),
        (" “Paris”. ", "Paris", True, True),
        ("It is Paris, in France", "paris", False, True),
        ("parish", "paris", False, False),
        ("ﬁsh", "fish", True, True),
        ("two  words", "two words", True, True),
        ("", "", False, False),
        ("!", "?", False, False),
    ],
)
def test_answers_are_compared_after_normalisation(predicted, answer, exact, contains):
    assert answers_match(predicted, answer, rule="exact") == exact
    assert answers_match(predicted, answer, rule="contains") == contains


def test_normalised_answer_keeps_punctuation_inside():
    assert normalise_answer("«3.14»") == "3.14"

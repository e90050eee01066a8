import pytest
import torch

from compass_core.adaptation.adapters import detach_adapter
from compass_core.adaptation.generation import generate_batch, generate_text
from compass_core.adaptation.rendering import encode_prompts
from compass_core.adaptation.training import train_adapter
from compass_core.config import TrainingConfig
from compass_core.errors import DataError


def greedy_by_hand(model, tokenizer, ids, max_new_tokens):
    """Slow twin: one token at a time, without cache."""
    tokens = list(ids)
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            best = int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        tokens.append(best)
    return tokenizer.decode(tokens[len(ids) :], skip_special_tokens=True)


def test_batch_answers_equal_one_token_at_a_time(tiny_base, pairs):
    prompts = encode_prompts(pairs[:6], tiny_base.tokenizer)
    answers = generate_batch(tiny_base.model, tiny_base.tokenizer, prompts, max_new_tokens=8)
    assert answers == [
        greedy_by_hand(tiny_base.model, tiny_base.tokenizer, ids, 8) for ids in prompts
    ]


def test_trained_adapter_answers_as_it_was_taught(tiny_base, pairs):
    config = TrainingConfig(
        lora_rank=8, learning_rate=1e-2, batch_size=8, min_steps=100, max_steps=100
    )
    result = train_adapter(tiny_base, pairs, config, seed=0)
    try:
        answers = [generate_text(result.model, tiny_base.tokenizer, p.prompt) for p in pairs[:10]]
    finally:
        detach_adapter(result.model)
    assert sum(a == p.response for a, p in zip(answers, pairs, strict=False)) >= 8


def test_conversation_and_single_question_are_both_prompts(tiny_base):
    messages = [{"role": "user", "content": "the sky"}]
    settings = {"max_new_tokens": 5}
    single = generate_text(tiny_base.model, tiny_base.tokenizer, "the sky", **settings)
    assert generate_text(tiny_base.model, tiny_base.tokenizer, messages, **settings) == single


def test_sampling_follows_its_seed_and_leaves_the_global_one_alone(tiny_base):
    state = torch.random.get_rng_state()

    def sample(seed):
        return generate_text(
            tiny_base.model,
            tiny_base.tokenizer,
            "the sky",
            max_new_tokens=12,
            temperature=1.5,
            seed=seed,
        )

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1
    assert torch.equal(state, torch.random.get_rng_state())


def test_empty_prompt_is_refused(tiny_base):
    with pytest.raises(DataError, match="prompt is empty"):
        generate_text(tiny_base.model, tiny_base.tokenizer, "  ")

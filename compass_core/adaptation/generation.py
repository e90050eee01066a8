"""Greedy or sampled answers from a base with or without an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from compass_core.adaptation.adapters import seeded
from compass_core.adaptation.rendering import Message, encode_prompts
from compass_core.errors import DataError
from compass_core.records import Example


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return every token that ends an answer, by tokenizer and by the model's own settings."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return sorted({int(i) for i in [tokenizer.eos_token_id, *listed] if i is not None})


def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
) -> list[str]:
    """Return the answers to tokenised prompts, padded on the left to one batch.

    Args:
        model: A causal LM or a peft model around one.
        tokenizer: Its tokenizer.
        prompts: Token lists, none empty.
        max_new_tokens: Tokens to generate at most.
        temperature: 0 takes the most likely token; above, sampling from torch's generator.
    """
    width = max(len(ids) for ids in prompts)
    tokens = torch.full((len(prompts), width), int(tokenizer.pad_token_id), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        mask[row, width - len(ids) :] = 1
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=end_tokens(model, tokenizer),
        pad_token_id=int(tokenizer.pad_token_id),
        **sampling,
    )
    with torch.no_grad():
        output = model.generate(
            input_ids=tokens.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
        )
    texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    return [str(text) for text in texts]


def generate_text(
    model: Any,
    tokenizer: Any,
    prompt: str | Sequence[Message],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Return the answer to one prompt or conversation, rendered as in training.

    Args:
        model: The base's model, with or without an adapter.
        tokenizer: Its tokenizer.
        prompt: A question, or messages of a conversation whose last turn is the user's.
        max_new_tokens: Tokens to generate at most.
        temperature: 0 for the most likely answer.
        seed: Seed of the sampling.

    Raises:
        DataError: E16 the prompt is empty.
    """
    history: tuple[tuple[str, str], ...] = ()
    if not isinstance(prompt, str):
        *before, last = prompt or [{"role": "user", "content": ""}]
        history = tuple((turn["role"], turn["content"]) for turn in before)
        prompt = last["content"]
    if not prompt.strip():
        raise DataError("The prompt is empty. Give a question.", code="E16")
    example = Example(id="prompt", language="und", prompt=prompt, history=history)
    ids = encode_prompts([example], tokenizer)
    with seeded(seed, model.device):
        return generate_batch(
            model, tokenizer, ids, max_new_tokens=max_new_tokens, temperature=temperature
        )[0].strip()

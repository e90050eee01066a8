"""A causal LM small enough to train in a test: two layers, random weights, its own tokenizer."""

from pathlib import Path

import pytest

from compass_core.records import Example

WORDS = ["red", "blue", "green", "one", "two", "three", "sky", "sun", "moon", "is", "a", "the"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(*, chat_template=CHAT_TEMPLATE):
    """Return a byte-level BPE tokenizer that can write any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat_template,
    )


def build_base(folder: Path, *, seed: int = 0, chat_template=CHAT_TEMPLATE, **changes) -> Path:
    """Save a random two-layer Llama with its tokenizer into `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(chat_template=chat_template)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # Large enough that random models disagree clearly about the next token.
        "initializer_range": 0.2,
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_pairs(n: int) -> list[Example]:
    """Return `n` learnable question/answer rows of skewed lengths."""
    rows = []
    for index in range(n):
        colour = WORDS[index % 3]
        padding = " ".join(WORDS[3 + (index + k) % 9] for k in range(1 + (index * index) % 17))
        rows.append(
            Example(
                id=f"pair-{index}",
                language="swh_Latn",
                prompt=f"{padding} {colour}",
                response=f"the {colour}",
            )
        )
    return rows


def make_items(n: int) -> list[Example]:
    """Return `n` multiple-choice items whose choices share beginnings and differ in length."""
    choices = ("the red", "the blue sky", "the blue", "green", "the red")[:4]
    return [
        Example(
            id=f"item-{index}",
            language="swh_Latn",
            prompt=" ".join(WORDS[(index + k) % 12] for k in range(1 + (index * 5) % 11)),
            choices=choices if index % 3 else choices[:2],
            answer_index=index % 2,
            topic=f"topic-{index % 2}",
        )
        for index in range(n)
    ]


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory):
    """Folder of a random two-layer Llama with a chat template."""
    import torch

    # Tensors this small gain nothing from threads, and lose much on a machine that is shared.
    torch.set_num_threads(1)
    return build_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def tiny_base(tiny_base_folder):
    """The loaded tiny base; every test must leave it without an adapter."""
    from compass_core.adaptation.bases import load_base
    from compass_core.config import BaseConfig

    base = load_base(BaseConfig(model=str(tiny_base_folder), device="cpu"))
    yield base
    assert not hasattr(base.model, "peft_config"), "a test left its adapter on the base"


@pytest.fixture
def pairs():
    """Forty question/answer rows."""
    return make_pairs(40)


@pytest.fixture
def items():
    """Twenty multiple-choice items."""
    return make_items(20)

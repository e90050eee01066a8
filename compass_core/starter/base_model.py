"""Starter base model: a tiny Llama trained on CLDR names, with the typing task in some languages.

The base has read names of every language of the corpus (train keys only), grouped by kind, so it
knows which names belong together.  It has seen the task itself in one language per script at
least, never in a target language and never for `UNSEEN_TOPICS`: there is something to adapt.  What
it costs: 1.4 M parameters know nothing but names.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from compass_core.records import Example
from compass_core.seeding import derive_rng, derive_seed
from compass_core.starter import corpus

logger = logging.getLogger(__name__)

TASK_LANGUAGES = (
    "spa_Latn",
    "ind_Latn",
    "hun_Latn",
    "rus_Cyrl",
    "arb_Arab",
    "hin_Deva",
    "ben_Beng",
    "cmn_Hans",
    "ell_Grek",
    "heb_Hebr",
    "amh_Ethi",
    "tam_Taml",
    "tha_Thai",
)
"""Languages whose typing task the base has seen; no target language is among them."""

UNSEEN_TOPICS = ("city", "unit")
"""Topics whose names the base has read but whose label it has never been asked for."""

VOCAB_SIZE = 6144
HIDDEN_SIZE, N_LAYERS, N_HEADS, INTERMEDIATE_SIZE = 128, 3, 4, 384
MAX_POSITIONS = 1024
NAMES_PER_LIST = 5
LEARNING_RATE, WARMUP_STEPS, BATCH_SIZE = 3e-3, 100, 64
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any script can be written, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def list_documents(rows: Sequence[Example], rng: np.random.Generator) -> list[str]:
    """Return lists of names of one kind and language."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for row in rows:
        groups.setdefault((row.language, row.topic), []).append(row)
    documents = []
    for group in groups.values():
        order = rng.permutation(len(group))
        for start in range(0, len(order), NAMES_PER_LIST):
            members = [group[index] for index in order[start : start + NAMES_PER_LIST]]
            listed = [row.prompt.removesuffix(corpus.PROMPT_SUFFIX) for row in members]
            documents.append("<s>" + " ; ".join(listed) + "</s>")
    return documents


def task_documents(rows: Sequence[Example]) -> list[str]:
    """Return the rows of `TASK_LANGUAGES` in the chat format, but for `UNSEEN_TOPICS`."""
    return [
        f"<s><|user|>{row.prompt}<|assistant|>{row.response}</s>"
        for row in rows
        if row.language in TASK_LANGUAGES and row.topic not in UNSEEN_TOPICS
    ]


def train_base(out_dir: Path, *, seed: int = 0, n_steps: int = 1200) -> Path:
    """Train tokenizer and model from CLDR and save both under `out_dir`.

    Args:
        out_dir: Folder to create or replace.
        seed: Of initialisation and order.
        n_steps: Optimiser steps of `BATCH_SIZE` documents.
    """
    rows = corpus.build_pool()
    tokenizer = train_tokenizer(_tokenizer_texts(rows), VOCAB_SIZE)
    torch.manual_seed(derive_seed(seed, "starter-base"))
    model = LlamaForCausalLM(_model_config(tokenizer))
    _train(model, tokenizer, rows, n_steps, derive_rng(seed, "starter-base"))
    temporary = out_dir.with_name(out_dir.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.generation_config = GenerationConfig(
        max_new_tokens=24,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    for file in temporary.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files only their owner can read
    shutil.rmtree(out_dir, ignore_errors=True)
    temporary.rename(out_dir)
    return out_dir


def _tokenizer_texts(rows: Sequence[Example]) -> list[str]:
    """Return prompts and labels, so that each label becomes a single token."""
    return [text for row in rows for text in (f"{row.prompt} ; ", row.response)]


def _model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Example],
    n_steps: int,
    rng: np.random.Generator,
) -> None:
    """Run plain AdamW with a linear decay on next-token loss over whole documents."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP_STEPS, max(0.02, 1 - step / n_steps)),
    )
    model.train()
    batches = _batches(tokenizer, rows, rng)
    for step in range(n_steps):
        input_ids, attention_mask = next(batches)
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            logger.info("base step %d of %d: loss %.3f", step, n_steps, loss.item())
    model.eval()


def _batches(
    tokenizer: PreTrainedTokenizerFast, rows: Sequence[Example], rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (B, T) ids and masks for ever; documents of like length share a batch."""
    task = tokenizer(task_documents(rows), add_special_tokens=False)["input_ids"]
    while True:
        documents = tokenizer(list_documents(rows, rng), add_special_tokens=False)["input_ids"]
        documents += task
        order = sorted(rng.permutation(len(documents)), key=lambda index: len(documents[index]))
        starts = rng.permutation(range(0, len(order), BATCH_SIZE))
        for start in starts:
            chosen = [documents[index][:96] for index in order[start : start + BATCH_SIZE]]
            width = max(len(ids) for ids in chosen)
            padded = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in chosen]
            input_ids = torch.tensor(padded)
            lengths = torch.tensor([len(ids) for ids in chosen])
            yield input_ids, (torch.arange(width)[None, :] < lengths[:, None]).long()

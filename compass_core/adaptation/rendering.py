"""From an example to the text and tokens a model sees, the same in training and inference.

The prompt is tokenised alone, as inference does, and the response is tokenised alone and appended:
the tokens of a training example therefore always start with the tokens of its inference prompt.
What a chat template puts around the last assistant turn is found once per tokenizer with a
sentinel; a template whose full text does not start with its own generation prompt falls back to
*response + end-of-text*, which is what inference will be asked to produce.

Tokenizers without a chat template use the plain fallback: every turn and the prompt followed by a
newline, then the response, then end-of-text. A row without prompt and history is plain text: all of
its tokens are trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import ModelError
from compass_core.records import Example

Message = dict[str, str]
"""``{"role": …, "content": …}`` as chat templates expect it."""

_SENTINEL = "\ue000answer\ue001"
IGNORED_LABEL = -100
"""Label of a token that is read but not trained on (torch's own convention)."""


@dataclass(frozen=True)
class ResponseFormat:
    """What stands around the last assistant turn, after the generation prompt.

    Attributes:
        before: Text between generation prompt and response.
        after: Text from the end of the response to the end of the turn.
        trims: Whether the template strips white space around the response.
    """

    before: str
    after: str
    trims: bool


def messages_of(example: Example) -> list[Message]:
    """Return history and prompt of `example` as chat messages."""
    turns = [{"role": role, "content": content} for role, content in example.history]
    if example.prompt:
        turns.append({"role": "user", "content": example.prompt})
    return turns


def is_plain_text(example: Example) -> bool:
    """Whether `example` is text to continue rather than a question and its answer."""
    return not example.prompt and not example.history


def render_messages(messages: Sequence[Message], tokenizer: Any, *, answer: bool = True) -> str:
    """Return `messages` as text, ending where the assistant is to answer if `answer`.

    A template without a system role gets the system turn in front of the first user turn.

    Raises:
        ModelError: E32 when the chat template refuses the messages.
    """
    if not tokenizer.chat_template:
        return "".join(f"{message['content']}\n" for message in messages)
    try:
        return _apply(messages, tokenizer, answer)
    except Exception as error:
        merged = _merge_system(messages)
        if merged != list(messages):
            return render_messages(merged, tokenizer, answer=answer)
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"The chat template refuses a conversation of the roles {roles}: {error}. Give turns "
            "that alternate between user and assistant.",
            code="E32",
        ) from error


def _apply(messages: Sequence[Message], tokenizer: Any, answer: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=answer
    )
    return text


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    if len(messages) < 2 or messages[0]["role"] != "system":
        return list(messages)
    first, second, *rest = messages
    text = f"{first['content']}\n\n{second['content']}"
    return [{"role": second["role"], "content": text}, *rest]


def response_format(tokenizer: Any) -> ResponseFormat:
    """Return what the tokenizer's template puts around a response (see the module's docstring)."""
    plain = ResponseFormat("", str(tokenizer.eos_token), trims=False)
    if not tokenizer.chat_template:
        return plain
    question = [{"role": "user", "content": "question"}]
    spaced = {"role": "assistant", "content": f" {_SENTINEL} "}
    prompt = render_messages(question, tokenizer)
    try:
        full = _apply([*question, spaced], tokenizer, answer=False)
    except Exception:  # a template may raise anything; the fallback is always right
        return plain
    if not full.startswith(prompt) or full.count(_SENTINEL) != 1:
        return plain
    before, after = full[len(prompt) :].split(_SENTINEL)
    trims = not (before.endswith(" ") and after.startswith(" "))
    if not trims:
        before, after = before[:-1], after[1:]
    eos = str(tokenizer.eos_token)
    # Training ends with the token that ends generation; a template's newline after it is dropped.
    after = after[: after.rfind(eos) + len(eos)] if eos in after else after + eos
    return ResponseFormat(before, after, trims)


def encode_prompts(examples: Sequence[Example], tokenizer: Any) -> list[list[int]]:
    """Return the tokens of every prompt, exactly as inference will see them.

    The tokens of a plain-text row are those that open a text (such as beginning-of-text).
    """
    texts = [
        "" if is_plain_text(row) else render_messages(messages_of(row), tokenizer)
        for row in examples
    ]
    templated = bool(tokenizer.chat_template)
    opening = _opening_tokens(tokenizer)
    # A template writes its own special tokens; without one the opening token is added here.
    return [
        ids if templated and not is_plain_text(row) else [*opening, *ids]
        for row, ids in zip(examples, encode_texts(texts, tokenizer), strict=True)
    ]


def encode_texts(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the tokens of every text, without special tokens added."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _opening_tokens(tokenizer: Any) -> list[int]:
    """Return [beginning-of-text] where the tokenizer or its template opens texts with it."""
    begin = tokenizer.bos_token_id
    if begin is None:
        return []
    ids: list[int] = tokenizer("", add_special_tokens=True)["input_ids"]
    question = [{"role": "user", "content": "question"}]
    templated = bool(tokenizer.chat_template)
    opens = templated and render_messages(question, tokenizer).startswith(tokenizer.bos_token)
    return [begin] if opens or ids[:1] == [begin] else []


def encode_responses(
    responses: Sequence[str], tokenizer: Any, *, ends: bool, formatted: bool = True
) -> list[list[int]]:
    """Return the tokens of every response, as they follow a prompt.

    Args:
        responses: Response texts.
        tokenizer: The base's tokenizer.
        ends: Whether the end of the turn follows (training) or not (scoring a choice).
        formatted: False for plain text, which has nothing around it but end-of-text.
    """
    form = response_format(tokenizer)
    if not formatted:
        form = ResponseFormat("", str(tokenizer.eos_token), trims=False)
    after = form.after if ends else ""
    bodies = [text.strip() if form.trims else text for text in responses]
    return encode_texts([f"{form.before}{body}{after}" for body in bodies], tokenizer)


@dataclass(frozen=True)
class Rendered:
    """One training example as tokens.

    Attributes:
        ids: (L,) tokens of prompt and response.
        n_prompt: Leading tokens that are not trained on.
    """

    ids: NDArray[np.int32]
    n_prompt: int

    @property
    def n_targets(self) -> int:
        """Tokens the loss sees (the first token of a text has nothing to predict it from)."""
        return len(self.ids) - max(self.n_prompt, 1)

    @property
    def labels(self) -> NDArray[np.int32]:
        """(L,) tokens to predict, `IGNORED_LABEL` on the prompt."""
        labels = self.ids.copy()
        labels[: self.n_prompt] = IGNORED_LABEL
        return labels


def render_examples(examples: Sequence[Example], tokenizer: Any) -> list[Rendered]:
    """Return every example as tokens with its loss on the response only.

    Plain-text rows are trained on completely.
    """
    prompts = encode_prompts(examples, tokenizer)
    plain = [is_plain_text(row) for row in examples]
    texts = [row.response for row in examples]
    chat = encode_responses(texts, tokenizer, ends=True)
    free = encode_responses(texts, tokenizer, ends=True, formatted=False) if any(plain) else chat
    rendered = []
    for index, is_plain in enumerate(plain):
        response = free[index] if is_plain else chat[index]
        ids = np.array([*prompts[index], *response], dtype=np.int32)
        rendered.append(Rendered(ids, 0 if is_plain else len(prompts[index])))
    return rendered


def render_example(example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return (input_ids, labels) of one example; labels are `IGNORED_LABEL` on the prompt."""
    rendered = render_examples([example], tokenizer)[0]
    return rendered.ids.tolist(), rendered.labels.tolist()

import pytest

from compass_core.adaptation.rendering import (
    IGNORED_LABEL,
    encode_prompts,
    encode_responses,
    messages_of,
    render_example,
    render_examples,
    render_messages,
    response_format,
)
from compass_core.errors import ModelError
from compass_core.records import Example

TRIMMING = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>(thinking){% endif %}"
)
OWN_END = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_base):
    """The tiny base's tokenizer, its template restored after the test."""
    template = tiny_base.tokenizer.chat_template
    yield tiny_base.tokenizer
    tiny_base.tokenizer.chat_template = template


def row(prompt="the sky is", response="blue", **changes):
    return Example(id="x", language="swh_Latn", prompt=prompt, response=response, **changes)


def trained_text(example, tokenizer):
    ids, labels = render_example(example, tokenizer)
    return tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label >= 0])


def test_loss_covers_the_response_and_the_end_only(tokenizer):
    ids, labels = render_example(row(), tokenizer)
    assert tokenizer.decode(ids) == "<s><|user|>the sky is<|assistant|>blue</s>"
    assert trained_text(row(), tokenizer) == "blue</s>"
    assert labels.count(IGNORED_LABEL) + len(trained := [i for i in labels if i >= 0]) == len(ids)
    assert trained == ids[-len(trained) :]


@pytest.mark.parametrize("template", [None, TRIMMING, THINKING, OWN_END, NO_SYSTEM, "keep"])
@pytest.mark.parametrize("response", ["blue", " blue ", "two\nlines", "🙂 café"])
def test_training_tokens_start_with_the_inference_prompt(tokenizer, template, response):
    if template != "keep":
        tokenizer.chat_template = template
    example = row(response=response, history=(("user", "one"), ("assistant", "two")))
    ids, labels = render_example(example, tokenizer)
    prompt = encode_prompts([example], tokenizer)[0]
    assert ids[: len(prompt)] == prompt
    assert set(labels[: len(prompt)]) == {IGNORED_LABEL}
    assert labels[len(prompt) :] == ids[len(prompt) :]
    assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("template", [TRIMMING, OWN_END, "keep"])
def test_training_text_is_the_template_s_own_where_it_is_consistent(tokenizer, template):
    if template != "keep":
        tokenizer.chat_template = template
    example = row(response="blue sky")
    turns = [*messages_of(example), {"role": "assistant", "content": "blue sky"}]
    full = tokenizer.apply_chat_template(turns, tokenize=False)
    rendered = tokenizer.decode(render_example(example, tokenizer)[0])
    assert rendered.startswith(full.rstrip("\n")) or full.startswith(rendered)


def test_template_that_adds_to_its_generation_prompt_trains_what_inference_will_ask(tokenizer):
    tokenizer.chat_template = THINKING
    assert trained_text(row(), tokenizer) == "blue</s>"
    ids, _ = render_example(row(), tokenizer)
    assert "(thinking)blue" in tokenizer.decode(ids)


def test_end_of_turn_that_is_not_end_of_text_is_followed_by_it(tokenizer):
    tokenizer.chat_template = OWN_END
    assert trained_text(row(), tokenizer) == "blue<|end|></s>"


def test_nothing_is_trained_after_the_end_of_text(tokenizer):
    tokenizer.chat_template = TRIMMING
    assert trained_text(row(response=" blue "), tokenizer) == "blue</s>"


def test_system_turn_moves_to_the_user_where_the_template_knows_none(tokenizer):
    tokenizer.chat_template = NO_SYSTEM
    example = row(history=(("system", "be brief"),))
    assert render_messages(messages_of(example), tokenizer) == (
        "<|user|>be brief\n\nthe sky is<|assistant|>"
    )


def test_conversation_the_template_refuses_is_an_error_with_advice(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ModelError, match="alternate between user and assistant"):
        render_example(row(), tokenizer)


def test_tokenizer_without_template_uses_plain_lines(tokenizer):
    tokenizer.chat_template = None
    ids, _ = render_example(row(), tokenizer)
    assert tokenizer.decode(ids) == "the sky is\nblue</s>"
    assert trained_text(row(), tokenizer) == "blue</s>"


def test_plain_text_is_trained_on_completely(tokenizer):
    example = row(prompt="", response="the sky is blue")
    ids, labels = render_example(example, tokenizer)
    assert tokenizer.decode(ids) == "<s>the sky is blue</s>"
    assert ids == labels


def test_choices_are_scored_on_the_tokens_training_uses(tokenizer):
    for template in (tokenizer.chat_template, TRIMMING, OWN_END, None):
        tokenizer.chat_template = template
        trained = render_examples([row(response="blue sky")], tokenizer)[0]
        scored = encode_responses(["blue sky"], tokenizer, ends=False)[0]
        start = trained.n_prompt
        assert trained.ids[start : start + len(scored)].tolist() == scored
        assert tokenizer.decode(scored) == "blue sky"


def test_many_rows_render_like_one_at_a_time(tokenizer, pairs):
    together = render_examples(pairs, tokenizer)
    for rendered, example in zip(together, pairs, strict=True):
        ids, labels = render_example(example, tokenizer)
        assert rendered.ids.tolist() == ids
        assert rendered.labels.tolist() == labels


def test_response_format_of_the_test_template(tokenizer):
    form = response_format(tokenizer)
    assert (form.before, form.after, form.trims) == ("", "</s>", False)

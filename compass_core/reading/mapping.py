"""Which column of a file is which field: what the user named, else the usual names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from compass_core.config import ColumnMapping, CorpusConfig
from compass_core.errors import DataError

Role = Literal["usage", "coverage", "pool", "test"]

MAX_COLUMNS_SHOWN: Final = 40
"""Columns of a file that a message lists."""

USUAL: Final[dict[str, tuple[str, ...]]] = {
    "id": ("id",),
    "language": ("language", "lang", "language_code", "lang_code", "locale"),
    "messages": ("messages", "conversations", "conversation", "chat", "dialogue"),
    "prompt": (
        "prompt", "instruction", "instructions", "inputs", "question", "query", "input", "user",
    ),
    "response": (
        "response", "completion", "output", "outputs", "targets", "target", "answer", "assistant",
    ),
    "text": ("text", "content", "document", "sentence"),
    "choices": ("choices", "options", "endings"),
    "answer": (
        "answer_index", "answer_idx", "answer", "answerKey", "answer_key", "label", "gold",
        "correct_answer",
    ),
    "topic": ("topic", "subject", "category", "domain"),
    "parallel_id": ("parallel_id",),
    "source": ("source",),
    "licence": ("licence", "license"),
}  # fmt: skip
"""Names looked for, best first, where the configuration names no column."""

_OPTION: Final = re.compile(r"(?:option|choice|answer)_?([a-j])", re.IGNORECASE)
_EXTRA_INPUT: Final = ("input", "context")
_PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_USED_ANYWAY: Final = ("split",)


@dataclass(frozen=True, slots=True)
class Fields:
    """Columns by field; empty where there is none.

    Attributes:
        prompt_extra: Second half of the prompt (`input` beside `instruction`).
        choices: One column with a list, or several with one option each.
        used: Every column that is read.
    """

    id: str
    language: str
    messages: str
    prompt: str
    prompt_extra: str
    response: str
    text: str
    choices: tuple[str, ...]
    answer: str
    topic: str
    parallel_id: str
    source: str
    licence: str
    used: tuple[str, ...]

    def as_mapping(self) -> dict[str, str]:
        """Return what a configuration file would say."""
        named = {name: getattr(self, name) for name in USUAL if name != "choices"}
        named["choices"] = ",".join(self.choices)
        return {name: column for name, column in named.items() if column}


def find_fields(config: CorpusConfig, role: Role, columns: Sequence[str], name: str) -> Fields:
    """Resolve the columns of a corpus.

    Args:
        config: Mapping, templates and filters as configured.
        role: What the corpus is for; it decides what is needed.
        columns: Columns that the file has.
        name: What messages call the corpus.

    Raises:
        DataError: a named column does not exist or a needed one was not found (E15); the message
            lists the columns there are.
    """
    found = {field: _resolve(field, config.columns, columns, name) for field in USUAL}
    choices = _choices(config.columns, columns, found["choices"], name)
    _settle(found, config, choices, role)
    extra = ""
    if not config.columns.prompt and found["prompt"].lower() in ("instruction", "instructions"):
        extra = next((c for c in columns if c.lower() in _EXTRA_INPUT), "")
    templated = placeholders(config.prompt_template) + placeholders(config.response_template)
    for column in [*templated, *config.where]:
        _require(column, "a template or `where`", columns, name)
    used = [v for f, v in found.items() if f != "choices" and v]
    used += [*choices, extra, *templated, *config.where]
    used += [column for column in _USED_ANYWAY if config.split]
    fields = Fields(
        **{field: found[field] for field in found if field != "choices"},
        prompt_extra=extra,
        choices=choices,
        used=tuple(column for column in dict.fromkeys(used) if column in columns),
    )
    _check_needed(fields, config, role, columns, name)
    return fields


def placeholders(template: str) -> list[str]:
    """Return the columns that a template names.

    Examples:
        >>> placeholders("{text} {{literal}} {topic}")
        ['text', 'topic']
    """
    return [match[1] for match in _PLACEHOLDER.finditer(template) if match[1] is not None]


def fill_template(template: str, row: dict[str, Any]) -> str:
    r"""Put the row's values into `{column}` placeholders; a list becomes lettered lines.

    Nothing but columns can be named (this is not `str.format`), ``{{`` and ``}}`` are literal, and
    a missing value is empty.

    Examples:
        >>> fill_template("{q}?", {"q": "1+1"})
        '1+1?'
        >>> fill_template("{options}", {"options": ["yes", "no"]})
        'A. yes\nB. no'
    """

    def value(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        return _as_text(row.get(match[1]))

    return _PLACEHOLDER.sub(value, template)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return "\n".join(f"{chr(65 + i)}. {_as_text(v)}" for i, v in enumerate(value))
    return str(value)


def columns_found(columns: Sequence[str]) -> str:
    """Return the columns of a file for a message."""
    shown = ", ".join(ascii(c)[1:-1][:60] for c in columns[:MAX_COLUMNS_SHOWN])
    more = len(columns) - MAX_COLUMNS_SHOWN
    return f"columns found: {shown}" + (f" and {more} more" if more > 0 else "")


# --------------------------------------------------------------------------- resolving
def _resolve(field: str, mapping: ColumnMapping, columns: Sequence[str], name: str) -> str:
    asked: str = getattr(mapping, field)
    if field == "choices":
        return asked
    if asked:
        _require(asked, f"`columns.{field}`", columns, name)
        return asked
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[n.lower()] for n in USUAL[field] if n.lower() in by_name), "")


def _require(column: str, asked_by: str, columns: Sequence[str], name: str) -> None:
    if column in columns:
        return
    near = difflib.get_close_matches(column, columns, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "name one of them"
    raise DataError(
        f"column {column!r} missing: {name} has no column that {asked_by} names "
        f"({columns_found(columns)}) - {hint}",
        code="E15",
    )


def _choices(
    mapping: ColumnMapping, columns: Sequence[str], asked: str, name: str
) -> tuple[str, ...]:
    if asked:
        wanted = (asked,) if asked in columns else tuple(p.strip() for p in asked.split(","))
        for column in wanted:
            _require(column, "`columns.choices`", columns, name)
        return wanted
    by_name = {column.lower(): column for column in columns}
    listed = next((by_name[n] for n in USUAL["choices"] if n in by_name), "")
    if listed:
        return (listed,)
    lettered = {
        match[1].lower(): column for column in columns if (match := _OPTION.fullmatch(column))
    }
    run = [lettered[letter] for letter in "abcdefghij"[: len(lettered)] if letter in lettered]
    return tuple(run) if len(run) >= 2 and len(run) == len(lettered) else ()


def _settle(
    found: dict[str, str], config: CorpusConfig, choices: tuple[str, ...], role: Role
) -> None:
    """Resolve names that can mean two things, in place."""
    _settle_answer(found, config.columns, has_choices=bool(choices or config.label_choices))
    mapping = config.columns
    if mapping.messages:
        found["prompt"] = found["response"] = ""
    elif found["prompt"]:
        found["messages"] = ""
    if mapping.text and not mapping.prompt:
        found["prompt"] = ""
    elif found["prompt"] and not mapping.text:
        found["text"] = ""
    if found["prompt"] == found["response"]:
        found["response"] = ""
    if role == "usage":
        found["answer"] = found["response"] = ""


def _settle_answer(found: dict[str, str], mapping: ColumnMapping, *, has_choices: bool) -> None:
    """`answer` picks one of the choices; where there are none it is the response itself."""
    if has_choices:
        if found["response"] == found["answer"] and not mapping.response:
            found["response"] = ""
    else:
        if mapping.answer and not mapping.response:
            found["response"] = mapping.answer
        found["answer"] = ""


def _check_needed(
    fields: Fields, config: CorpusConfig, role: Role, columns: Sequence[str], name: str
) -> None:
    asks = fields.prompt or fields.messages or fields.text or config.prompt_template
    answers = (
        fields.response
        or fields.messages
        or config.response_template
        or (fields.answer and (fields.choices or config.label_choices))
    )
    if role in ("coverage", "pool") and fields.text and not config.prompt_template:
        answers = answers or fields.text
    missing = [] if asks else ["the prompt"]
    if role != "usage" and not answers:
        missing.append("the right answer" if role == "test" else "the response")
    if missing:
        raise DataError(
            f"{' and '.join(missing)} missing: {name} has no column that is known as such "
            f"({columns_found(columns)}) - name it under `columns`",
            code="E15",
        )

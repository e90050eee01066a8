"""One raw row to one example: texts, turns, choices and answers, each checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from compass_core.config import CorpusConfig
from compass_core.reading.keys import FirstPlaces, id_key
from compass_core.reading.mapping import Fields, Role, fill_template
from compass_core.reading.problems import Problems, show

MAX_TEXT_CHARS: Final = 2_000_000
"""Longest prompt or response."""

_UNUSABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_ROLES: Final = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_LETTER: Final = re.compile(r"\(?([A-Za-z])[).:]?")
_INT64: Final = 2**63
_LINE_BITS: Final = 40
"""A place is one number: the file's in the high bits, the line's in these."""

Turns = list[dict[str, str]]


class RowError(Exception):
    """A row that cannot be used: (code, reason, field, value, advice)."""

    def __init__(self, code: str, reason: str, field_name: str, value: str, advice: str) -> None:
        """Keep the five parts of the message."""
        super().__init__(code, reason, field_name, value, advice)


@dataclass(slots=True)
class Columns:
    """The columns of the table that is being built."""

    id: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=list)
    prompt: list[str] = field(default_factory=list)
    response: list[str] = field(default_factory=list)
    history: list[Turns] = field(default_factory=list)
    choices: list[list[str]] = field(default_factory=list)
    answer_index: list[int | None] = field(default_factory=list)
    topic: list[str] = field(default_factory=list)
    parallel_id: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    licence: list[str] = field(default_factory=list)


class RowConverter:
    """Turns raw rows of one corpus into examples; they pile up in `columns` until `take`."""

    def __init__(
        self,
        config: CorpusConfig,
        fields: Fields,
        role: Role,
        *,
        many: bool,
        forgotten: Callable[[str], bool] | None = None,
    ) -> None:
        """Prepare for rows read as `role`; those of `many` files get ids that name their file.

        Rows whose id is `forgotten` are left out.
        """
        self.config = config
        self.fields = fields
        self.role = role
        self.columns = Columns()
        self.chars = 0
        self._many = many
        self._forgotten = forgotten
        self._labels: list[str] = []
        self._origin = ""
        self._id_type: tuple[type, str] | None = None
        self._seen = FirstPlaces()
        self._hash_range = _hash_range(config.hash_split)
        self._plain_text = (
            role in ("coverage", "pool")
            and bool(fields.text)
            and not (fields.prompt or fields.response or config.prompt_template)
            and not (fields.answer and (fields.choices or config.label_choices))
            and not config.response_template
        )

    def start_file(self, label: str, origin: str) -> None:
        """Take the rows that follow for those of file `label`, which come from `origin`."""
        self._labels.append(label)
        self._origin = origin

    def take(self) -> Columns:
        """Return what has piled up and start anew."""
        taken, self.columns, self.chars = self.columns, Columns(), 0
        return taken

    def add(self, row: dict[str, Any], language: str, line: int, number: int) -> bool:
        """Append the example of `row`; return False where it is left out (forgotten, `hash_split`).

        Args:
            row: Column → value.
            language: Canonical code.
            line: Line (or row) of the file, for messages.
            number: Count of the row (within its file, of many), for the id of a row without one.

        Raises:
            RowError: the row cannot be used.
        """
        fields, columns = self.fields, self.columns
        if self._forgotten is not None and self._forgotten(self._id_text(row, number)):
            return False
        history, prompt, response = self._texts(row)
        choices, answer = self._choices(row)
        if self.role == "usage":
            response = ""
        elif not response:
            response = self._answer_text(choices, answer)
        parallel_id = self._label(row, fields.parallel_id)
        if self._hash_range and not self._in_range(parallel_id or prompt or response):
            return False
        columns.id.append(self._id(row, line, number))
        columns.language.append(language)
        columns.prompt.append(prompt)
        columns.response.append(response)
        columns.history.append(history)
        columns.choices.append(choices)
        columns.answer_index.append(answer)
        columns.topic.append(self._label(row, fields.topic))
        columns.parallel_id.append(parallel_id)
        columns.source.append(self._label(row, fields.source) or self.config.source or self._origin)
        columns.licence.append(self._label(row, fields.licence) or self.config.licence)
        self.chars += len(prompt) + len(response) + sum(len(turn["content"]) for turn in history)
        return True

    # ----------------------------------------------------------------------- texts
    def _texts(self, row: dict[str, Any]) -> tuple[Turns, str, str]:
        fields, config = self.fields, self.config
        if fields.messages:
            history, prompt, response = self._turns(row.get(fields.messages))
        else:
            history, prompt, response = [], "", ""
        if self._plain_text:
            return [], "", clean_text(row.get(fields.text), fields.text)
        if config.prompt_template:
            prompt = clean_text(fill_template(config.prompt_template, row), "prompt_template")
        elif not fields.messages:
            column = fields.prompt or fields.text
            prompt = clean_text(row.get(column), column)
            extra = row.get(fields.prompt_extra) if fields.prompt_extra else None
            if isinstance(extra, str) and extra.strip():
                prompt = f"{prompt}\n\n{clean_text(extra, fields.prompt_extra)}"
        if self.role == "usage":
            return history, prompt, ""
        if config.response_template:
            response = clean_text(fill_template(config.response_template, row), "response_template")
        elif fields.response and not fields.messages:
            value = row.get(fields.response)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                value = str(value)
            response = clean_text(value, fields.response)
        return history, prompt, response

    def _turns(self, value: Any) -> tuple[Turns, str, str]:
        """Split a chat: earlier turns, the last user turn, the assistant's answer to it."""
        column = self.fields.messages
        if not isinstance(value, list) or not value:
            raise RowError("E11", "not a list of turns", column, show(value), _TURNS_ADVICE)
        turns = [_turn(item, column) for item in value]
        users = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
        if not users:
            raise RowError("E16", "no user turn", column, show(value), _TURNS_ADVICE)
        last = users[-1]
        if self.role == "usage":
            return turns[:last], turns[last]["content"], ""
        answers = [turn for turn in turns[last + 1 :] if turn["role"] == "assistant"]
        if not answers and not (self.config.response_template or self.fields.answer):
            if len(users) == 1:
                raise RowError("E16", "no assistant turn", column, show(value), _TURNS_ADVICE)
            return self._turns(value[:last])
        response = answers[-1]["content"] if answers else ""
        return turns[:last], turns[last]["content"], response

    # ----------------------------------------------------------------------- choices
    def _choices(self, row: dict[str, Any]) -> tuple[list[str], int | None]:
        fields = self.fields
        if self.config.label_choices:
            choices = list(self.config.label_choices)
        elif fields.choices:
            choices = _options(row, fields.choices)
        else:
            return [], None
        if not fields.answer or self.role == "usage":
            return choices, None
        return choices, _answer_index(row.get(fields.answer), choices, fields.answer)

    def _answer_text(self, choices: list[str], answer: int | None) -> str:
        if answer is None:
            wanted = "gold answer" if self.role == "test" else "response"
            raise RowError("E16", f"no {wanted}", "response", "nothing", "add it or remove the row")
        return choices[answer]

    # ----------------------------------------------------------------------- id, labels, split
    def _id_text(self, row: dict[str, Any], number: int) -> str:
        """Return the id of a row, whatever it is good for."""
        if self.fields.id:
            return str(row.get(self.fields.id))
        return f"{self._labels[-1]}:{number}" if self._many else f"row-{number}"

    def _id(self, row: dict[str, Any], line: int, number: int) -> str:
        column = self.fields.id
        if not column:
            return self._id_text(row, number)
        value = row.get(column)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise RowError("E15", "no id", column, show(value), "give every row a text or integer")
        if isinstance(value, int) and abs(value) >= _INT64:
            raise RowError("E12", "id too large for int64", column, show(value), "quote it")
        kind, first_place = self._id_type or (type(value), f"{self._labels[-1]}:{line}")
        self._id_type = (kind, first_place)
        if type(value) is not kind:
            raise RowError(
                "E11",
                f"{kind.__name__} in {first_place}, {type(value).__name__} here",
                column,
                show(value),
                "use one type",
            )
        text = clean_text(value, column) if isinstance(value, str) else str(value)
        first = self._seen.add(id_key(text), (len(self._labels) - 1 << _LINE_BITS) + line)
        if first is not None:
            raise RowError(
                "E17",
                f"duplicate id (also at {self._place(first)})",
                column,
                show(text),
                "make ids unique or map another column as `id`",
            )
        return text

    def _place(self, place: int) -> str:
        return f"{self._labels[place >> _LINE_BITS]}:{place & (1 << _LINE_BITS) - 1}"

    def _label(self, row: dict[str, Any], column: str) -> str:
        value = row.get(column) if column else None
        if value is None or isinstance(value, (list, dict)):
            return ""
        text = str(value)
        return _UNUSABLE.sub("\N{REPLACEMENT CHARACTER}", text) if text else ""

    def _in_range(self, key: str) -> bool:
        assert self._hash_range is not None
        low, high = self._hash_range
        return low <= hash_percent(key) < high


_TURNS_ADVICE: Final = 'write [{"role": "user", "content": …}, {"role": "assistant", "content": …}]'


def hash_percent(key: str) -> int:
    """Return a stable number from 0 to 99 for `key`.

    Examples:
        >>> hash_percent("a") == hash_percent("a")
        True
    """
    digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100


def clean_text(value: Any, field_name: str) -> str:
    """Return `value` when it is a usable text.

    Raises:
        RowError: not a text (E11), empty (E16), a control character (E07), a lone surrogate (E06),
            or longer than the limit (E14).
    """
    if type(value) is not str:
        if value is None:
            raise RowError("E16", "empty text", field_name, "null", "fill it or remove the row")
        raise RowError("E11", "not a text", field_name, show(value), "use a string")
    if not value or value.isspace():
        raise RowError("E16", "empty text", field_name, show(value), "fill it or remove the row")
    bad = _UNUSABLE.search(value)
    if bad is not None:
        character = f"U+{ord(bad[0]):04X}"
        if ord(bad[0]) >= 0xD800:
            raise RowError("E06", "invalid Unicode", field_name, character, "repair the escape")
        raise RowError("E07", "control character", field_name, character, "remove it")
    if len(value) > MAX_TEXT_CHARS:
        advice = f"keep it below {MAX_TEXT_CHARS} characters"
        raise RowError("E14", "text too long", field_name, f"{len(value)} characters", advice)
    return value


def report(error: RowError, place: str, problems: Problems) -> None:
    """Note a row that cannot be used."""
    code, reason, field_name, value, advice = error.args
    problems.add(code, reason, f"{place} {field_name}", got=value, advice=advice)


# --------------------------------------------------------------------------- parts of a row
def _turn(item: Any, column: str) -> dict[str, str]:
    if not isinstance(item, dict):
        raise RowError("E11", "a turn must be an object", column, show(item), _TURNS_ADVICE)
    role = _ROLES.get(str(item.get("role", item.get("from", ""))).lower())
    if role is None:
        found = show(item.get("role", item.get("from")))
        raise RowError("E11", "unknown role of a turn", column, found, "use user or assistant")
    content = item.get("content", item.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "\n".join(part for part in parts if isinstance(part, str))
    return {"role": role, "content": clean_text(content, f"{column}.content")}


def _options(row: dict[str, Any], columns: tuple[str, ...]) -> list[str]:
    if len(columns) > 1:
        values: Any = [row.get(column) for column in columns]
        while values and values[-1] in (None, ""):
            values.pop()
    else:
        values = row.get(columns[0])
        if isinstance(values, str):
            values = _listed(values, columns[0])
        if isinstance(values, dict) and isinstance(values.get("text"), list):
            values = values["text"]
    if not isinstance(values, list) or len(values) < 2:
        advice = "give a list of at least two options"
        raise RowError("E11", "no list of options", columns[0], show(values), advice)
    return [
        clean_text(str(v) if isinstance(v, (int, float)) else v, columns[i % len(columns)])
        for i, v in enumerate(values)
    ]


def _listed(text: str, column: str) -> Any:
    """Read a list that a CSV cell holds as JSON."""
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        advice = 'write a JSON list: ["yes", "no"]'
        raise RowError("E11", "no list of options", column, show(text), advice) from None


def _answer_index(value: Any, choices: list[str], column: str) -> int:
    """Return the 0-based index that an index, a letter or the option's own text stands for."""
    index: int | None = None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        index = value
    elif isinstance(value, str):
        text = value.strip()
        stripped = [choice.strip() for choice in choices]
        letter = _LETTER.fullmatch(text)
        if text in stripped:
            index = stripped.index(text)
        elif letter is not None:
            index = ord(letter[1].upper()) - ord("A")
        elif text.isascii() and text.isdigit() and len(text) < 4:
            index = int(text)
    if index is None or not 0 <= index < len(choices):
        raise RowError(
            "E16",
            f"right answer is none of the {len(choices)} options",
            column,
            show(value),
            "give a 0-based index, a letter, or the option's text",
        )
    return index


def _hash_range(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    low, high = text.split("-")
    return int(low), int(high)

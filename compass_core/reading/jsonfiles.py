"""JSON Lines and JSON arrays, read strictly: what other readers accept silently is a problem here.

Duplicate keys, NaN, integers beyond int64 as they stand, deep nesting and truncated lines are named
with their line. Python's parser is used because it cannot bring the process down (a deep line
crashes some native ones), after a cheap look at the number of brackets.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # not in typeshed
from typing import Any, BinaryIO, Final

from compass_core.errors import DataError
from compass_core.reading.files import DataFile
from compass_core.reading.lines import (
    MAX_LINE_BYTES,
    check_not_html,
    expansion_limit,
    open_data,
    read_lines,
    too_large,
)
from compass_core.reading.problems import Problems, show

Row = dict[str, Any]
Numbered = tuple[int, Row]

MAX_DEPTH: Final = 64
"""Deepest nesting of lists and objects in one record."""

MAX_ARRAY_BYTES: Final = 2**30
"""Largest JSON array; JSON Lines has no such limit because it is read line by line."""

_SPACE: Final = " \t\r\n"
_TOKENS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class _BadValueError(Exception):
    """A value that JSON or Arrow cannot hold; carries code, reason and what was got."""

    def __init__(self, code: str, reason: str, got: str, advice: str) -> None:
        super().__init__(code, reason, got, advice)


_FAULTS: Final = (_BadValueError, ValueError, RecursionError)


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _BadValueError("E09", "key given twice", show(twice), "keep one of them")
    return row


def _constant(text: str) -> float:
    raise _BadValueError("E08", "not a finite number", text, "use null or leave the key out")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _constant(text)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
)
_LENIENT: Final = json.JSONDecoder()


def read_jsonl(file: DataFile, problems: Problems, notes: list[str]) -> Iterator[Numbered]:
    """Yield (line number, row) of JSON Lines; blank lines are skipped.

    Raises:
        DataError: the whole file is something else (an array E10, HTML E18, UTF-16 E05).
    """
    first = True
    with open_data(file) as stream:
        for number, raw, text in read_lines(file, stream, problems, notes):
            if not text or text.isspace():
                continue
            if first:
                first = False
                check_not_html(file, text)
                if text.lstrip()[0] == "[":
                    raise DataError(
                        f"this is a JSON array: {file.label}:{number} - set `format: json`, or "
                        "write one object per line",
                        code="E10",
                    )
            row = _parse_line(file, number, raw, text, problems)
            if row is not None:
                yield number, row


def read_json(file: DataFile, problems: Problems, notes: list[str]) -> Iterator[Numbered]:
    """Yield (line number, row) of a ``.json`` file: an array of objects, or JSON Lines.

    Raises:
        DataError: as `read_jsonl`; an array above the size limit (E14).
    """
    with open_data(file) as stream:
        head = stream.read(4096)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
        yield from read_jsonl(file, problems, notes)
        return
    with open_data(file) as stream:
        text = _array_text(file, stream, problems, notes)
    if text is not None:
        yield from _array_items(file, text, problems)


# --------------------------------------------------------------------------- one line
def _parse_line(
    file: DataFile, number: int, raw: bytes, text: str, problems: Problems
) -> Row | None:
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _too_deep(text):
        _add_depth(problems, f"{file.label}:{number}")
        return None
    text = text.strip(_SPACE)
    try:
        value, end = _DECODER.raw_decode(text)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except _FAULTS as error:
        _report(error, text, f"{file.label}:{number}", problems)
        return None
    if type(value) is dict:
        return value
    return _as_row(value, f"{file.label}:{number}", problems)


def _report(error: Exception, text: str, place: str, problems: Problems) -> None:
    """Turn what the parser raised into a problem of the record."""
    if isinstance(error, _BadValueError):
        code, reason, got, advice = error.args
        problems.add(code, reason, place, got=got, advice=advice)
    elif isinstance(error, json.JSONDecodeError):
        _add_syntax(problems, place, error, text)
    elif isinstance(error, RecursionError):
        _add_depth(problems, place)
    else:
        problems.add("E12", "integer too large", place, advice="quote it")


def _as_row(value: Any, place: str, problems: Problems) -> Row | None:
    if isinstance(value, dict):
        return value
    problems.add(
        "E11", "a record must be an object", place, got=show(value), advice='write {"prompt": …}'
    )
    return None


def _add_depth(problems: Problems, place: str) -> None:
    problems.add("E13", f"nesting deeper than {MAX_DEPTH}", place, advice="flatten the record")


def _add_syntax(problems: Problems, place: str, error: json.JSONDecodeError, text: str) -> None:
    if error.msg.startswith("Invalid control character"):
        character = f"U+{ord(text[error.pos]):04X}" if error.pos < len(text) else ""
        problems.add("E07", "control character", place, got=character, advice="escape or remove it")
        return
    ended = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    reason = "unexpected end" if ended else error.msg.lower()
    advice = "the file may be cut; copy it again" if ended else "write one JSON object per line"
    problems.add(
        "E04", f"not valid JSON ({reason})", f"{place} column {error.colno}", advice=advice
    )


def _too_deep(text: str) -> bool:
    depth = 0
    for match in _TOKENS.finditer(text):
        token = match[0]
        if token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif token in "]}":
            depth -= 1
    return False


# --------------------------------------------------------------------------- an array
def _array_text(
    file: DataFile, stream: BinaryIO, problems: Problems, notes: list[str]
) -> str | None:
    data = stream.read(MAX_ARRAY_BYTES + 1)
    if file.gzipped and len(data) > expansion_limit(file.path.stat().st_size):
        raise too_large(file)
    if len(data) > MAX_ARRAY_BYTES:
        raise DataError(
            f"JSON array larger than {MAX_ARRAY_BYTES // 2**20} MB: {file.label} - convert it to "
            "JSON Lines (one object per line)",
            code="E14",
        )
    if data.startswith(b"\xef\xbb\xbf"):
        notes.append(f"{file.label} starts with a byte order mark; it was skipped")
        data = data[3:]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.add(
            "E05", "not UTF-8", f"{file.label}:{line}", got=f"0x{data[error.start]:02x}",
            advice="save the file as UTF-8",
        )  # fmt: skip
        return None


def _array_items(file: DataFile, text: str, problems: Problems) -> Iterator[Numbered]:
    position = _space(text, text.index("[") + 1)
    line, counted = 1, 0
    while position < len(text) and text[position] != "]":
        line += text.count("\n", counted, position)
        counted = position
        place = f"{file.label}:{line}"
        value, end = _parse_item(text, position, place, problems)
        if end < 0:
            return
        if value is not None:
            yield line, value
        position = _space(text, end)
        if text[position : position + 1] == ",":
            position = _space(text, position + 1)
        elif text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            problems.add(
                "E04", "not valid JSON (a comma or ] is missing)", f"{file.label}:{line}",
                advice="the file may be cut; copy it again",
            )  # fmt: skip
            return
    if position >= len(text):
        problems.add(
            "E04", "not valid JSON (unexpected end)", f"{file.label}:{line}",
            advice="the file may be cut; copy it again",
        )  # fmt: skip
    elif text[_space(text, position + 1) :]:
        problems.add(
            "E04", "not valid JSON (text after the array)", f"{file.label}:{line}",
            advice="keep one array per file",
        )  # fmt: skip


def _parse_item(text: str, position: int, place: str, problems: Problems) -> tuple[Any, int]:
    """Return (row or None, end); end is -1 when nothing after it can be read."""
    try:
        value, end = _DECODER.raw_decode(text, position)
    except _FAULTS as error:
        _report(error, text, place, problems)
        return None, _end_of_item(text, position) if isinstance(error, _BadValueError) else -1
    if end - position > MAX_LINE_BYTES:
        problems.add("E14", "record too long", place, advice="split the record")
        return None, end
    brackets = text.count("[", position, end) + text.count("{", position, end)
    if brackets > MAX_DEPTH and _too_deep(text[position:end]):
        _add_depth(problems, place)
        return None, end
    return _as_row(value, place, problems), end


def _end_of_item(text: str, position: int) -> int:
    try:
        return _LENIENT.raw_decode(text, position)[1]
    except (ValueError, RecursionError):
        return -1


def _space(text: str, position: int) -> int:
    end: int = WHITESPACE.match(text, position).end()
    return end

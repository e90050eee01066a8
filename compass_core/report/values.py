"""Dataclasses of plain values to JSON and back, the same way for every report.

Numbers that were not measured (``None``, NaN, infinite) become null. Keys of later additions are
left out when read, so that an older page can still be made from a newer file.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from compass_core.errors import DataError

T = TypeVar("T")


def dump(report: Any, version: int) -> str:
    """Return dataclass `report` as one line of JSON that says its `version`.

    The items of a list, such as languages, become text one by one: as plain values all of them
    together would take many times the memory of their text.
    """
    parts = [f'"report_version": {version}']
    for item in dataclasses.fields(report):
        value = getattr(report, item.name)
        if isinstance(value, (list, tuple)):
            text = f"[{', '.join(map(_json, value))}]"
        else:
            text = _json(value)
        parts.append(f"{_json(item.name)}: {text}")
    return f"{{{', '.join(parts)}}}\n".encode(errors="replace").decode()


def _json(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def load(
    text: str, *, file: str, version: int, build: Callable[[Mapping[str, Any]], T], what: str
) -> T:
    """Rebuild a report from `dump`.

    Args:
        text: Content of the file.
        file: Its name, for messages.
        version: The version that this code reads.
        build: Makes the report from the values; its own errors become a `DataError`.
        what: What is read, in words ("run report").

    Raises:
        DataError: `text` is not such a report, or one of another version.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}). "
            "The file is damaged or not a report; render the run again."
        ) from None
    found = values.get("report_version") if isinstance(values, dict) else None
    if found != version:
        raise DataError(
            f"{file}: report_version {version} is needed, found {found!r}. "
            "Render it with the version of COMPASS that wrote it."
        )
    try:
        return build(values)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise DataError(f"{file}: not a {what}: {error}. Compare it with a fresh {file}.") from None


def plain(value: Any) -> Any:
    """Return `value` as JSON values: keys as text, unmeasured numbers as ``None``."""
    # The order is that of their numbers: a report holds some hundred thousand numbers and texts.
    if isinstance(value, (str, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    names = getattr(type(value), "__dataclass_fields__", None)
    if names is not None:
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def known(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what dataclass `kind` knows of `values`."""
    names = {item.name for item in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def many(kind: Any, rows: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return one `kind` for each of `rows`."""
    names = {item.name for item in dataclasses.fields(kind)}
    return [kind(**{n: value for n, value in row.items() if n in names}) for row in rows]

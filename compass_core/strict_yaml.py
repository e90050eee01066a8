"""YAML for configuration files, without its traps.

Only mappings, lists and scalars: no tags, no anchors or aliases, no key twice, bounded size and
depth. Numbers are what they look like (``1e-4`` is one, ``012`` is refused), dates stay text, and
every value's line is kept for messages.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from compass_core.errors import ConfigError

MAX_BYTES: Final = 2**20
MAX_DEPTH: Final = 32

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "yes"})
_FALSE: Final = frozenset({"false", "no"})
"""`on` and `off` stay words: they are values of settings, and pydantic reads them as booleans."""

_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_LEADING_ZERO: Final = re.compile(r"[-+]?0[0-9_]+")
_FLOAT: Final = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|nan)", re.IGNORECASE)

_MAX_FLOW: Final = 80

Path = tuple[str | int, ...]


@dataclass
class Document:
    """One parsed document.

    Attributes:
        values: Plain Python values.
        lines: 1-based line of every key and list item, by path.
        problems: What is wrong inside, one message each, with its code in front.
        overridden: Keys that were set on the command line.
    """

    values: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    overridden: set[str] = field(default_factory=set)


def parse_yaml(text: str, name: str) -> Document:
    """Parse one configuration document called `name` in messages.

    Raises:
        ConfigError: not YAML (E42), tags (E38), aliases, too deep or too large (E39), or no mapping
            at the top (E40). Faults inside the mapping are collected in `Document.problems`.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise ConfigError(f"{name} is larger than {MAX_BYTES // 2**20} MB - shorten it", code="E39")
    try:
        _check_events(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax(error, name)) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid YAML: {str(error)[:200]}") from error
    if node is None:
        raise ConfigError(f"{name} is empty - start from a file under configs/", code="E40")
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ConfigError(f"{name} holds {found} at the top - write `key: value` lines", code="E40")
    document = Document(values={})
    document.values = _mapping(node, (), document)
    return document


def scalar(text: str) -> Any:
    """Return what an unquoted scalar means.

    Raises:
        ValueError: an octal-looking or infinite number.

    Examples:
        >>> scalar("1e-4"), scalar("20"), scalar("true"), scalar("swh_Latn"), scalar("2024-01-01")
        (0.0001, 20, True, 'swh_Latn', '2024-01-01')
    """
    if text in _NULL:
        return None
    if text.lower() in _TRUE | _FALSE and text in (text.lower(), text.title(), text.upper()):
        return text.lower() in _TRUE
    if _INTEGER.fullmatch(text):
        return int(text.replace("_", "")) if len(text) < 400 else text
    if _LEADING_ZERO.fullmatch(text):
        raise ValueError(f"{text} starts with a zero (octal in YAML); write {text.lstrip('0')}")
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if _FLOAT.fullmatch(text):
        value = float(text.replace("_", ""))
        if not math.isfinite(value):
            raise ValueError(f"{text} is not a finite number")
        return value
    return text


def dump_yaml(values: Any) -> str:
    """Return `values` as YAML that `parse_yaml` reads back unchanged."""
    text: str = yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, indent=2
    )
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes what would be read as something else, and never writes anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        plain = scalar(text) == text and isinstance(scalar(text), str)
    except ValueError:
        plain = False
    quoted = not plain or not text.isprintable() or text != text.strip()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    """Write a short list of plain values on one line."""
    short = all(not isinstance(item, (list, dict)) for item in items)
    short = short and sum(len(str(item)) + 2 for item in items) < _MAX_FLOW
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=short)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)


# --------------------------------------------------------------------------- reading
def _check_events(text: str, name: str) -> None:
    """Refuse what is dangerous before anything is built from it."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = _line_of(event)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(
                f"{name}:{line}: aliases and anchors are not allowed - write the value out",
                code="E39",
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(
                f"{name}:{line}: tags are not allowed ({str(tag)[:60]!r}) - write the plain value",
                code="E38",
            )
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ConfigError(f"{name}:{line}: a second document - keep one", code="E42")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(f"{name}:{line}: depth > {MAX_DEPTH} - flatten it", code="E39")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _line_of(marked: Any) -> int:
    """Return the 1-based line of an event or node."""
    return int(marked.start_mark.line) + 1


def _syntax(error: yaml.MarkedYAMLError, name: str) -> str:
    mark = error.problem_mark
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
    return f"{place}: not valid YAML ({error.problem}) - check indentation and quotes"


def _mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = _line_of(key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(f"E42 line {line}: a key must be a word")
            continue
        key = str(key_node.value)
        here = (*path, key)
        if key in values:
            document.problems.append(
                f"E37 {dotted(here)}: key given twice, in lines {document.lines[here]} and {line}"
            )
            continue
        document.lines[here] = line
        values[key] = _value(value_node, here, document)
    return values


def _value(node: Any, path: Path, document: Document) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = _line_of(item)
            items.append(_value(item, (*path, index), document))
        return items
    if node.style is not None:
        return str(node.value)
    try:
        return scalar(str(node.value))
    except ValueError as error:
        document.problems.append(f"E42 {dotted(path)}: {error} (line {_line_of(node)})")
        return str(node.value)


def dotted(path: Path) -> str:
    """Return `path` as a person writes it.

    Examples:
        >>> dotted(("data", "pool", "exclude_languages", 0))
        'data.pool.exclude_languages[0]'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text

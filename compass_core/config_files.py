"""Configuration files: YAML plus dotted overrides in, a checked configuration out.

Relative paths of corpora and models start from the configuration file's folder (a path typed as an
override starts from the current one), so a file means the same wherever it is run from. Paths may
hold environment variables (``${NAME}``); nothing else does. All problems are reported together.
"""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compass_core.config import AdaptConfig, Config
from compass_core.errors import ConfigError, bounded_list
from compass_core.reading.files import expand_home
from compass_core.reading.problems import show
from compass_core.strict_yaml import MAX_BYTES, Document, dotted, dump_yaml, parse_yaml, scalar

ConfigT = TypeVar("ConfigT", bound=Config)

_ROLES: Final = ("usage", "coverage", "pool", "test", "retention")
_MODELS: Final = (("base", "model"), ("embedding", "encoder"), ("selection", "langrank_model"))
_FILE_DATABASES: Final = ("duckdb", "sqlite")
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_CODE: Final = re.compile(r"\bE\d\d\b")
_OVERRIDE_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_config(
    path: Path | str, overrides: Sequence[str] = (), kind: type[ConfigT] | None = None
) -> ConfigT:
    """Read a configuration file.

    Args:
        path: YAML file.
        overrides: ``training.learning_rate=1e-4`` and the like, applied in order.
        kind: Model to read it as; default `AdaptConfig`.

    Returns:
        The configuration, with paths of existing local files made absolute.

    Raises:
        ConfigError: with every problem of the file and the overrides, each with its key, line and
            advice; nothing else has happened yet.
    """
    model: type[Any] = kind or AdaptConfig
    path = Path(path)
    document = parse_yaml(_read(path), path.name)
    _apply(document, overrides, model)
    _resolve_paths(document, path.resolve().parent)
    problems = list(document.problems)
    loaded: Any = None
    try:
        loaded = model.model_validate(document.values)
    except ValidationError as error:
        problems += [_describe(detail, document, model) for detail in error.errors()]
    if problems:
        code = _CODE.search(problems[0])
        raise ConfigError(
            f"{path} cannot be used:\n{bounded_list(problems)}", code=code[0] if code else "E42"
        )
    result: ConfigT = loaded
    return result


def dump_config(config: Config) -> str:
    """Return `config` as YAML that `load_config` reads back to an equal configuration."""
    return dump_yaml(config.model_dump(mode="json"))


# --------------------------------------------------------------------------- the file
def _read(path: Path) -> str:
    try:
        if not path.exists():
            raise ConfigError(_missing(path), code="E01")
        if not path.is_file():
            raise ConfigError(f"not a regular file: {path} - give a YAML file", code="E02")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {path}: {error}", code="E02") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path.name}:{line} is not UTF-8 - save it as UTF-8", code="E05"
        ) from error


def _missing(path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, [n for n in names if n.endswith(("yaml", "yml"))])
    hint = f"did you mean {', '.join(near)}?" if near else "see configs/ for files to start from"
    return f"configuration not found: {path} - {hint}"


# --------------------------------------------------------------------------- overrides
def _apply(document: Document, overrides: Sequence[str], model: type[BaseModel]) -> None:
    """Set overridden values in place."""
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not _OVERRIDE_KEY.fullmatch(key):
            document.problems.append(
                f"E42 override {show(override)}: write key=value, for example selection.budget=200"
            )
            continue
        parts = key.split(".")
        try:
            value = _typed(text.strip(), _annotation(model, parts, document.values))
        except (ValueError, ConfigError) as error:
            document.problems.append(f"E42 {key}: {error} (override)")
            continue
        target: Any = document.values
        for part in parts[:-1]:
            target = target.setdefault(part, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            document.problems.append(f"E42 {key}: its parent is a single value (override)")
            continue
        target[parts[-1]] = value
        document.overridden.add(key)


def _typed(text: str, annotation: Any) -> Any:
    """Turn an override's text into a value: text where text is wanted, else as YAML would."""
    if annotation is str:
        return text
    if text.startswith(("[", "{")):
        return parse_yaml(f"value: {text}", "override").values["value"]
    item = _item_type(annotation)
    if item is not None:
        parts = [part.strip() for part in text.split(",")] if text else []
        return parts if item is str else [scalar(part) for part in parts]
    return scalar(text)


def _item_type(annotation: Any) -> Any:
    """Return what a tuple or list field holds; None for other fields."""
    if get_origin(annotation) not in (tuple, list):
        return None
    item = get_args(annotation)[0]
    base = get_args(item)[0] if get_origin(item) is Annotated else item
    return str if base is str or _is_text_literal(base) else base


def _is_text_literal(annotation: Any) -> bool:
    return all(isinstance(value, str) for value in get_args(annotation)) and bool(
        get_args(annotation)
    )


def _annotation(model: type[BaseModel], parts: Sequence[str], values: Any) -> Any:
    """Return the type of the field that `parts` names; None where there is no such field."""
    annotation: Any = model
    for part in parts:
        annotation = _model_of(annotation, values)
        if annotation is None or part not in annotation.model_fields:
            return None
        annotation = annotation.model_fields[part].annotation
        values = values.get(part, {}) if isinstance(values, Mapping) else {}
    return annotation


def _model_of(annotation: Any, values: Any) -> type[BaseModel] | None:
    """Return the model behind an annotation, choosing a union's member by its `kind`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        members = [_model_of(member, values) for member in get_args(annotation)]
        models = [member for member in members if member is not None]
        kind = values.get("kind") if isinstance(values, Mapping) else None
        for member in models:
            if "kind" in member.model_fields and member.model_fields["kind"].default == kind:
                return member
        return models[-1] if models else None
    return None


# --------------------------------------------------------------------------- paths
def _resolve_paths(document: Document, folder: Path) -> None:
    values = document.values
    data = values.get("data")
    if isinstance(data, dict):
        data.setdefault("kind", "files" if any(role in data for role in _ROLES) else "starter")
        for role in _ROLES:
            _resolve_corpus(data.get(role), f"data.{role}", folder, document)
    monitoring = values.get("monitoring")
    if isinstance(monitoring, dict) and isinstance(monitoring.get("log"), dict):
        _resolve_log(monitoring["log"], folder, document)
    for section, field in _MODELS:
        part = values.get(section)
        if isinstance(part, dict) and isinstance(part.get(field), str) and part[field]:
            start = Path.cwd() if f"{section}.{field}" in document.overridden else folder
            local = start / expand_home(part[field])
            explicit = part[field].startswith((".", "/", "~"))
            if part[field] != "starter" and (explicit or _exists(local)):
                part[field] = os.path.normpath(local)


def _resolve_corpus(corpus: Any, name: str, folder: Path, document: Document) -> None:
    """Make the path (or paths) of a corpus or log absolute."""
    if not isinstance(corpus, dict):
        return
    key = f"{name}.path"
    start = Path.cwd() if key in document.overridden else folder
    given = corpus.get("path")
    if isinstance(given, str) and given:
        corpus["path"] = _corpus_path(corpus, given, key, start, document)
    elif isinstance(given, list) and all(isinstance(text, str) for text in given):
        corpus["path"] = [_corpus_path(corpus, text, key, start, document) for text in given]


def _resolve_log(log: dict[str, Any], folder: Path, document: Document) -> None:
    """Make the place of a usage log absolute: files, or a database that is a file.

    ``env:NAME`` stays as it is, so that what the variable holds is kept nowhere.
    """
    _resolve_corpus(log, "monitoring.log", folder, document)
    key = "monitoring.log.database"
    given, kind = log.get("database"), log.get("database_type", "duckdb")
    is_file = kind in _FILE_DATABASES and not str(given).startswith("env:")
    if isinstance(given, str) and given and is_file:
        start = Path.cwd() if key in document.overridden else folder
        log["database"] = _corpus_path({}, given, key, start, document)


def _corpus_path(
    corpus: Mapping[str, Any], text: str, key: str, start: Path, document: Document
) -> str:
    """Fill in environment variables and make a local path absolute."""
    unset = [name for name in _VARIABLE.findall(text) if not os.environ.get(name)]
    if unset:
        line = document.lines.get(tuple(key.split(".")))
        place = f" (line {line})" if line else ""
        document.problems.append(
            f"E42 {key}: the environment variable {unset[0]} is not set{place} - set it, for "
            f"example `export {unset[0]}=/path/to/data`"
        )
        return text
    filled = _VARIABLE.sub(lambda match: os.environ[match[1]], text)
    if text.startswith("${"):
        start = Path.cwd()
    if corpus.get("format") == "hub" or "://" in filled or "\0" in filled:
        return filled
    local = start / expand_home(filled)
    never_on_hub = key.startswith("monitoring.")
    if (
        not never_on_hub
        and not _exists(local)
        and _HUB_ID.fullmatch(filled)
        and not Path(filled).suffix
    ):
        return filled
    return str(Path(os.path.normpath(local)))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


# --------------------------------------------------------------------------- messages
def _describe(detail: ErrorDetails, document: Document, model: type[BaseModel]) -> str:
    """Return one problem of pydantic's as ``E<nn> key: what, advice (got …, line n)``."""
    path = _without_tags(detail["loc"], document.values)
    key = dotted(path) or "the file"
    kind = detail["type"]
    line = _line(path, document)
    place = f"line {line}" if line else "override" if path else ""
    if kind == "extra_forbidden":
        return f"E41 {key}: unknown key{_near(path, document, model)} ({place})"
    if kind == "missing":
        return f"E42 {key}: needed but not given"
    message = detail["msg"].removeprefix("Value error, ")
    if kind.startswith("union_tag"):
        message = "say `kind: starter` or `kind: files`"
    found = "" if kind == "value_error" else f"got {show(detail['input'])}"
    if kind == "string_type" and isinstance(detail["input"], (int, float)):
        message = "must be text; quote it"
    given = _CODE.search(message)
    code = given[0] if given else "E42"
    message = message.removeprefix(f"{code} ")
    rest = ", ".join(filter(None, [found, place]))
    return f"{code} {key}: {message}" + (f" ({rest})" if rest else "")


def _without_tags(loc: Sequence[int | str], values: Any) -> tuple[int | str, ...]:
    """Drop pydantic's union tags (`files`) from a location, which no file contains."""
    path: list[int | str] = []
    for index, part in enumerate(loc):
        is_tag = (
            path == ["data"]
            and part in ("files", "starter")
            and not (isinstance(values, Mapping) and part in (values.get("data") or {}))
        )
        if not is_tag or index != 1:
            path.append(part)
    return tuple(path)


def _line(path: Sequence[int | str], document: Document) -> int | None:
    """Return the line of a key or of what holds it; None where it came from the command line."""
    for length in range(len(path), 0, -1):
        if dotted(tuple(path[:length])) in document.overridden:
            return None
        line = document.lines.get(tuple(path[:length]))
        if line is not None:
            return line
    return None


def _near(path: Sequence[int | str], document: Document, model: type[BaseModel]) -> str:
    """Return what a misspelt key was probably meant to be."""
    values: Any = document.values
    annotation: Any = model
    for part in path[:-1]:
        owner = _model_of(annotation, values)
        if owner is None or part not in owner.model_fields:
            return ""
        annotation = owner.model_fields[str(part)].annotation
        values = values.get(part) if isinstance(values, Mapping) else None
    owner = _model_of(annotation, values)
    if owner is None:
        return ""
    home = [
        name
        for name, info in model.model_fields.items()
        if (inner := _model_of(info.annotation, {})) is not None and path[-1] in inner.model_fields
    ]
    if home:
        return f"; it belongs under {home[0]}"
    near = difflib.get_close_matches(str(path[-1]), owner.model_fields, n=1, cutoff=0.6)
    known = ", ".join(owner.model_fields)
    return f", did you mean {near[0]}?" if near else f"; known: {known}"

"""Makes `docs/configuration.md` from the models (``python -m compass_core.config_docs``).

Every text in it is the description that stands under a field, so that the page, the form of the
Prefect interface and the source cannot disagree.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from compass_core.config import AdaptConfig, AdaptLanguageConfig, StudyConfig
from compass_core.storage import write_text

_HEADER: Final = """# Configuration

Made from `compass_core/config.py` by `python -m compass_core.config_docs`; do not edit.
How files are written and read: [configs/README.md](../configs/README.md).

Every key may be overridden on the command line: `compass adapt FILE training.learning_rate=1e-4`.
"""
_BOUNDS: Final = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def render_configuration() -> str:
    """Return the whole page."""
    nested: dict[type[BaseModel], str] = {}
    parts = [_HEADER, _section("compass adapt", AdaptConfig, "", nested)]
    variants: tuple[tuple[str, type[BaseModel]], ...] = (
        ("compass study", StudyConfig),
        ("Flow `adapt-language`", AdaptLanguageConfig),
    )
    for title, variant in variants:
        parts.append(_section(title, variant, "", nested, base=AdaptConfig))
    done: set[type[BaseModel]] = set()
    while waiting := [model for model in nested if model not in done]:
        model = waiting[0]
        done.add(model)
        parts.append(_section(model.__name__, model, nested[model], nested))
    return "\n".join(parts)


def _section(
    title: str,
    model: type[BaseModel],
    prefix: str,
    nested: dict[type[BaseModel], str],
    base: type[BaseModel] | None = None,
) -> str:
    """Return one table; note the models inside and the keys they stand under in `nested`."""
    rows = []
    for name, info in model.model_fields.items():
        inside = _models(info.annotation)
        for part in inside:
            nested.setdefault(part, f"{prefix}{name}.")
        if base is not None and name in base.model_fields:
            continue
        text = " ".join((info.description or "").split())
        rows.append(f"| `{name}` | {_kind(info, inside)} | {_default(info)} | {_cell(text)} |")
    about = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    about += " As `compass adapt`, and:" if base is not None else ""
    about += f" Keys start with `{prefix}`" if prefix else ""
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([f"## {title}", "", about, "", *table, ""])


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for part in get_args(annotation):
        found += _models(part)
    return found


def _kind(info: FieldInfo, nested: list[type[BaseModel]]) -> str:
    if nested:
        return " or ".join(f"[{part.__name__}](#{part.__name__.lower()})" for part in nested)
    limits = [
        f"{sign} {bound:g}"
        for item in info.metadata
        for name, sign in _BOUNDS.items()
        if (bound := getattr(item, name, None)) is not None
    ]
    return " ".join([_name(info.annotation), *([", ".join(limits)] if limits else [])])


def _name(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (tuple, list):
        return f"list of {_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    if origin in (Union, types.UnionType):
        return " or ".join(_name(part) for part in arguments if part is not type(None))
    words = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return words.get(annotation, str(annotation))


def _default(info: FieldInfo) -> str:
    default = info.default
    if default is PydanticUndefined:
        return "`{}`" if info.default_factory is not None else "needed"
    if isinstance(default, BaseModel):
        return "as below"
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`[{', '.join(str(item) for item in default)}]`" if default else "`[]`"
    if isinstance(default, str):
        return f"`{default}`" if default else "empty"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "docs/configuration.md"
    write_text(Path(target), render_configuration())

"""Write `docs/cli.md` and `docs/configuration.md` from the code (`python3 run.py docs` calls it).

A command documents itself in its help text and a field under itself, so the pages cannot drift;
a test compares them with the code.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from compass_core.config import AdaptConfig, AdaptLanguageConfig, StudyConfig

DOCS = Path(__file__).resolve().parent.parent / "docs"
GENERATED = "*Written by `python3 run.py docs` from the code; edit the code instead.*"
CLI_HEAD = f"""# The command line

{GENERATED}

`compass` is in `.venv/bin` after `python3 run.py setup`; every command answers `--help`. Any key of
a [configuration](configuration.md) can be overridden behind its file (`selection.budget=200`);
lists are written with commas. Exit codes: 0 done, also when nothing was promoted; 1 a language or
the run failed; 2 wrong input; 130 interrupted.
"""
CONFIG_HEAD = f"""# Configuration

{GENERATED}

One YAML file describes a run; a misspelt key is an error. Each field stands here with its default,
and only what is required must be written. The same models are the parameters of the flows, so the
form in Prefect's pages shows the same text. [configs/README.md](../configs/README.md) lists the
files that come with COMPASS.
"""


# ------------------------------------------------------------------ command line
def cli_page() -> str:
    """Return the page of all commands."""
    from flows.cli import app

    root = typer.main.get_command(app)
    sections = [command_section(name, command) for name, command in leaves(root, "compass")]
    return "\n".join([CLI_HEAD, *sections])


def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with its full name."""
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
        return
    for name, child in children.items():
        yield from leaves(child, f"{path} {name}")


def command_section(name: str, command: Any) -> str:
    """Return one command: what it does, how it is called, what it takes."""
    usage = [usage_piece(parameter) for parameter in command.params]
    lines = [f"## `{name}`", "", cell(command.help or ""), ""]
    lines += ["```text", " ".join([name, *filter(None, usage)]), "```", ""]
    rows = [parameter_row(parameter) for parameter in command.params]
    if rows:
        lines += ["| | | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def usage_piece(parameter: Any) -> str:
    """Return an argument, or an option that must be given, as the usage line shows it."""
    if parameter.param_type_name == "argument":
        name = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
        return name if parameter.required else f"[{name}]"
    return f"{parameter.opts[0]} …" if parameter.required else ""


def parameter_row(parameter: Any) -> str:
    """Return one argument or option as a row of a table."""
    argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if argument else ", ".join(parameter.opts)
    default = "required" if parameter.required else shown(parameter.default)
    return f"| `{name}` | {cell(parameter.help or '')} | {default} |"


# ------------------------------------------------------------------ configuration
def configuration_page() -> str:
    """Return the page of all configuration models, each once, in the order they are met."""
    seen: dict[type[BaseModel], str] = {}
    roots: dict[type[BaseModel], str] = {
        AdaptConfig: "the file of `compass adapt`",
        AdaptLanguageConfig: "the same for the flow of one language",
        StudyConfig: "the same and more, the file of `compass study`",
    }
    for model, path in roots.items():
        collect(model, path, seen)
    fields_of_adapt = set(AdaptConfig.model_fields)
    sections = []
    for model, path in seen.items():
        heir = model in (AdaptLanguageConfig, StudyConfig)
        sections.append(model_section(model, path, skip=fields_of_adapt if heir else set()))
    return "\n".join([CONFIG_HEAD, *sections])


def collect(model: type[BaseModel], path: str, seen: dict[type[BaseModel], str]) -> None:
    """Add `model` and the models of its fields to `seen`, parents first."""
    if model in seen:
        return
    seen[model] = path
    for name, field in model.model_fields.items():
        for child in models_of(field.annotation):
            collect(child, f"`{name}`", seen)


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the configuration models inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_of(part)]


def model_section(model: type[BaseModel], path: str, *, skip: set[str]) -> str:
    """Return one model as a table of its fields, but for those in `skip`."""
    summary = (model.__doc__ or "").strip().split("\n")[0]
    lines = [f"## {model.__name__}: {path}", "", summary, "", "| key | meaning | default |"]
    lines += ["|---|---|---|"]
    for name, field in model.model_fields.items():
        if name not in skip:
            lines.append(f"| `{name}` | {cell(field.description or '')} | {default_of(field)} |")
    return "\n".join([*lines, ""])


def default_of(field: FieldInfo) -> str:
    """Return a field's default for people."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return f"{type(default).__name__}, below"
    return shown(default)


# ------------------------------------------------------------------ both
def shown(value: Any) -> str:
    """Return a default value as it would be written in YAML."""
    if value is None or value == "":
        return ""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, (tuple, list)):
        value = list(value)
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def cell(text: str) -> str:
    """Return `text` on one line, safe inside a table."""
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"cli.md": cli_page, "configuration.md": configuration_page}


def main() -> int:
    """Write the pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

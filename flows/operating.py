"""Commands of whoever runs COMPASS day by day: status, metrics, back-up, upgrade, keys."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the program."""
    app.command()(status)


def status(
    language: Annotated[
        list[str] | None,
        typer.Option("--language", "-l", help="Everything about this language; repeat for more."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash the files of every champion.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if somebody has to do something.")
    ] = False,
) -> None:
    """What serves each language, since when, from which data, and whether its usage drifts."""
    from flows.status import show_status

    raise typer.Exit(show_status(language or [], as_json=as_json, verify=verify, check=check))

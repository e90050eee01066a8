"""Commands of whoever runs COMPASS day by day: status, metrics, back-up, upgrade, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the program."""
    for command in (status, metrics, backup, restore, upgrade):
        app.command()(command)
    app.command("rotate-key")(rotate_key)


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


def metrics(
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write, for a textfile collector.")
    ] = None,
) -> None:
    """The status as Prometheus reads it."""
    from flows.maintaining import show_metrics

    show_metrics(output)


def backup(
    folder: Annotated[Path, typer.Argument(help="Folder of the back-up; made if it is missing.")],
    with_key: Annotated[
        Path | None,
        typer.Option("--with-key", help="Also copy the secret of hashed ids, to this other file."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check the back-up that is there.")
    ] = False,
) -> None:
    """Copy everything that cannot be made again, while runs go on; the same folder takes less."""
    from flows.maintaining import back_up

    back_up(folder, with_key=with_key, verify=verify)


def restore(
    folder: Annotated[Path, typer.Argument(help="Folder of the back-up.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="File with the secret of hashed ids.")
    ] = None,
) -> None:
    """Bring a back-up into an empty COMPASS_HOME, every file checked."""
    from flows.maintaining import restore_from

    restore_from(folder, key=key)


def upgrade(
    check: Annotated[
        bool, typer.Option("--check", help="Only say what would be done; 1 if anything.")
    ] = False,
) -> None:
    """Bring what an earlier release left in COMPASS_HOME to this one, with a copy of the old."""
    from flows.maintaining import upgrade_home

    raise typer.Exit(upgrade_home(check=check))


def rotate_key(
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it only say what.")] = False,
) -> None:
    """Replace the secret of hashed ids; what was forgotten stays forgotten."""
    from flows.maintaining import rotate

    rotate(yes=yes)

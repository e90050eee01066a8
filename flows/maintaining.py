"""Metrics, back-ups, upgrades and rotated keys from the command line."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from compass_core.errors import StoreError
from flows.terminal import OUT
from tasks.settings import compass_home

_SHOWN = 20


def show_metrics(output: Path | None) -> None:
    """Print the metrics, or write them to a file in one piece."""
    from tasks.metrics import metrics_text, write_metrics

    if output is None:
        sys.stdout.write(metrics_text(datetime.now(UTC)))
    else:
        write_metrics(output)


def back_up(folder: Path, *, with_key: Path | None, verify: bool) -> None:
    """Back the home up, or check the back-up that is there."""
    if verify:
        _verify(folder)
        return
    from tasks.backup import make_backup

    snapshot = make_backup(folder, datetime.now(UTC), with_key=with_key)
    _say(f"Back-up {snapshot.name} in {folder}: {_size(len(snapshot.files), snapshot.bytes)}")
    if with_key is not None:
        _say(f"Secret of hashed ids: {with_key}. Keep it apart from the back-up.")
    left_out = [text for text in snapshot.left_out if with_key is None or "secret" not in text]
    for text in left_out:
        _say(f"Not in it: {text}.")


def _verify(folder: Path) -> None:
    from compass_core.backups import BackupFolder

    backups = BackupFolder(folder.expanduser().resolve())
    snapshot = backups.newest()
    problems = list(backups.problems(snapshot))
    for text in problems[:_SHOWN]:
        _say(text)
    if problems:
        raise StoreError(
            f"{len(problems)} of {len(snapshot.files)} files of the back-up {snapshot.name} are "
            "missing or damaged. Make another one: what is still whole is not copied again.",
            code="E29",
        )
    _say(f"Back-up {snapshot.name} is whole: {_size(len(snapshot.files), snapshot.bytes)}")


def restore_from(folder: Path, *, key: Path | None) -> None:
    """Bring the newest back-up into the home and say what is missing."""
    from tasks.backup import restore_backup

    done = restore_backup(folder, key)
    count = _size(len(done.snapshot.files), done.snapshot.bytes)
    _say(f"Restored the back-up of {done.snapshot.created} to {compass_home()}: {count}")
    for text in done.notes:
        _say(f"Note: {text}.")
    _say("Next: compass status")


def upgrade_home(*, check: bool) -> int:
    """Say what an upgrade would do, or do it; 1 if something waits and only a check was asked."""
    from flows.inspecting import print_table
    from tasks.migrations import home_states, lock_drift, pending, upgrade

    if check:
        waiting = pending()
        states = home_states() if waiting or (compass_home() / "runs").exists() else []
        print_table(
            ("part", "found", "this release", "to do"),
            [(state.name, state.found, state.wanted, state.todo or "nothing") for state in states],
            empty="This home is empty; there is nothing to upgrade.",
        )
        for name, have, locked in lock_drift(Path(__file__).parents[1] / "constraints.txt"):
            _say(f"{name} {have} is installed, {locked} is locked: `python3 run.py setup`.")
        return 1 if waiting else 0
    for text in upgrade(datetime.now(UTC)) or ["Everything is of this release."]:
        _say(text)
    return 0


def rotate(*, yes: bool) -> None:
    """Replace the secret of hashed ids, or say what that means."""
    from compass_core.monitoring.rotation import rotate_key

    if not yes:
        _say(
            "A new secret is laid over the one in use: every kept hash of an id is replaced, and "
            "whoever has the old secret alone can test no guess any more. Back-ups made before "
            "still answer to the old one. Stop monitors and whatever appends usage, then add --yes."
        )
        return
    done = rotate_key(compass_home(), os.environ)
    verb = "Finished the interrupted rotation" if done.resumed else "Done"
    _say(f"{verb}: {done.observations} observations, {done.forgotten} forgotten ids.")
    _say("Next: compass backup FOLDER --with-key FILE; then delete earlier back-ups and keys.")


def _size(files: int, count: int) -> str:
    return f"{files} files, {count / 2**20:.1f} MiB"


def _say(text: str) -> None:
    OUT.print(text, markup=False, highlight=False, soft_wrap=True)

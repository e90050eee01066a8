"""Forgetting ids from the command line: what holds them, and a receipt once it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compass_core.languages import language_name
from flows.terminal import OUT
from tasks.forgetting import ForgetPlan, apply_forget, plan_forget
from tasks.settings import compass_home

_SHOWN = 20


def forget(ids: Sequence[str], *, yes: bool) -> None:
    """List what holds `ids`, and remove it if asked to; no id is ever printed."""
    plan = plan_forget(ids)
    _show(plan)
    if not yes:
        OUT.print("Nothing was changed. Add --yes to remove it; no run may be under way then.")
        return
    done = apply_forget(plan)
    _receipt(done)


def _show(plan: ForgetPlan) -> None:
    if plan.is_empty():
        OUT.print("Nothing here holds any of them.")
    for language, count in plan.observations.items():
        OUT.print(f"{count} observations of usage in {language_name(language)} ({language})")
    for title, paths in (
        ("artefacts of the store to remove (made anew without the rows when needed)",
         plan.artefacts),
        ("other files to take them out of", plan.files),
        ("databases to take them out of", plan.databases),
    ):  # fmt: skip
        _list(title, paths)


def _list(title: str, paths: Sequence[Path]) -> None:
    if not paths:
        return
    OUT.print(f"{len(paths)} {title}", markup=False)
    home = compass_home()
    for path in paths[:_SHOWN]:
        OUT.print(f"  {path.relative_to(home)}", markup=False, soft_wrap=True)
    if len(paths) > _SHOWN:
        OUT.print(f"  … and {len(paths) - _SHOWN} more")


def _receipt(plan: ForgetPlan) -> None:
    """Print what was done, by keyed hash, and what is left to do."""
    for text in plan.hashes:
        OUT.print(f"forgotten: {text}", markup=False)
    OUT.print("From now on rows and records of these ids are passed over wherever they are read.")
    for adapter, alias in plan.trained:
        role = f" ({alias})" if alias else ""
        OUT.print(
            f"{adapter.name} version {adapter.version}{role} was trained on one of the rows and "
            "was not changed. Train it again with `compass adapt`.",
            markup=False,
            soft_wrap=True,
        )
    for text in plan.left:
        OUT.print(f"Left: {text}", markup=False, soft_wrap=True)
    OUT.print(
        "Your own files (logs, corpora, back-ups) are not touched. Remove the rows there as well.",
        soft_wrap=True,
    )

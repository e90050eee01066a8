"""Which strategies there are: one file each in ``strategies/``, and those of installed packages.

Asking for names imports no strategy, so the configuration can do it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compass_core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from compass_core.selection.problem import Selection, SelectionProblem

    Strategy = Callable[[SelectionProblem, int, np.random.Generator], Selection]

ENTRY_POINTS = "compass.strategies"
"""Entry point group in which an installed package offers strategies."""

_PACKAGE = "compass_core.selection.strategies"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@cache
def strategy_names() -> tuple[str, ...]:
    """Return every name that ``selection.strategy`` may have, ours first, each part by alphabet."""
    return (*_own_files(), *sorted(set(_installed()) - set(_own_files())))


def find_strategy(name: str) -> Strategy:
    """Return the ``select`` function of one strategy.

    Raises:
        ConfigError: there is no such strategy, or an installed package offers one that cannot be
            loaded (E42).
    """
    if name in _own_files():
        module = importlib.import_module(f"{_PACKAGE}.{_own_files()[name]}")
        own: Strategy = module.select
        return own
    if name not in _installed():
        raise ConfigError(
            f"selection.strategy={name!r} does not exist; choose {', '.join(strategy_names())}."
        )
    entry = _installed()[name]
    try:
        found: Any = entry.load()
    except Exception as error:
        raise ConfigError(
            f"The strategy {name!r} of the package {_package_of(entry)} cannot be loaded from "
            f"{entry.value!r}: {type(error).__name__}: {error}. Repair or uninstall the package."
        ) from error
    if not callable(found):
        raise ConfigError(
            f"The strategy {name!r} of the package {_package_of(entry)} is not a function: "
            f"{entry.value!r} must be `select(problem, budget, rng)`."
        )
    strategy: Strategy = found
    return strategy


def strategy_version(name: str) -> str:
    """Return what identifies a strategy's code in cache keys: package and version, "" for ours."""
    if name in _own_files() or name not in _installed():
        return ""
    entry = _installed()[name]
    return f"{_package_of(entry)} {entry.dist.version if entry.dist else ''} {entry.value}"


@cache
def _own_files() -> dict[str, str]:
    folder = Path(__file__).parent / "strategies"
    stems = [m.name for m in pkgutil.iter_modules([str(folder)]) if not m.name.startswith("_")]
    names = {stem.replace("_", "-"): stem for stem in stems}
    return {"compass": names.pop("compass"), **dict(sorted(names.items()))}


@cache
def _installed() -> dict[str, importlib.metadata.EntryPoint]:
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=_package_of):
        if entry.name in _own_files() or entry.name in found or not _NAME.fullmatch(entry.name):
            # A package must not replace a baseline that results are compared with.
            warnings.warn(
                f"The strategy {entry.name!r} of the package {_package_of(entry)} is ignored: the "
                "name is taken, or is not lower-case words joined by hyphens.",
                stacklevel=2,
            )
            continue
        found[entry.name] = entry
    return found


def _package_of(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module

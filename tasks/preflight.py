"""What can be known to fail before anything expensive starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from compass_core.adaptation.base_files import check_targets
from compass_core.adaptation.checks import check_device_job
from compass_core.config import Recipe, SelectionConfig
from compass_core.errors import CompassError, InputError, InsufficientPoolError, bounded_list
from compass_core.languages import language_name
from compass_core.records import ArtifactRef
from compass_core.storage import read_table
from tasks.compute import run_job
from tasks.settings import open_store

_MAX_LABELS = 12
_NEED_THE_BUDGET = {"compass", "dsir", "nearest", "proportional", "random"}
"""Strategies that refuse a pool smaller than the budget; the others take what there is."""


def check_training(recipe: Recipe, base_path: str) -> None:
    """Refuse layers that the base does not have and devices that are not there.

    Raises:
        ModelError: E35 or E26.
    """
    check_targets(base_path, recipe.training.target_modules)
    asked = {recipe.base.device, recipe.embedding.device} - {"auto", "cpu"}
    if asked:
        spec = {"devices": sorted(asked)}
        run_job(check_device_job, spec, recipe.execution, language="", stage="check")


def budget_check(recipe: Recipe, pool: Sequence[ArtifactRef]) -> Callable[[str], None]:
    """Return a check that refuses a language whose pool cannot fill the budget.

    It counts rows of other languages with an allowed licence and source. Rows that repeat a test
    item or are beyond the radius are known only later, so a pool that passes may still turn out
    too small.
    """
    config = recipe.selection
    counts: Counter[str] = Counter()
    labels: dict[str, set[str]] = {"licences": set(), "sources": set()}
    for shard in pool:
        counts += _count_languages(shard, config, labels)
    n_rows = sum(shard.rows for shard in pool)
    strict = _NEED_THE_BUDGET & {config.strategy, *recipe.baselines}

    def check(language: str) -> None:
        available = counts.total() - counts[language]
        if not strict or available >= config.budget:
            return
        advice = f"Lower `selection.budget` to {available} or less, or add data to `data.pool`."
        if not available:
            advice = "Add data to `data.pool`."
        raise InsufficientPoolError(
            f"selection.budget={config.budget} asks for more than the pool has: {available} of "
            f"{n_rows} rows are of other languages than {language_name(language)} "
            f"({language}){_filters(config)}. {advice}{_found(config, labels)}"
        )

    return check


def _filters(config: SelectionConfig) -> str:
    """Return what the configuration allows, for a message."""
    told = [
        f"{name} {', '.join(values)}"
        for name, values in (
            ("with a licence of", config.licences),
            ("from", config.sources),
            ("not from", config.exclude_sources),
        )
        if values
    ]
    return f", {' and '.join(told)}" if told else ""


def _found(config: SelectionConfig, labels: Mapping[str, set[str]]) -> str:
    """Return the labels that the pool has, where the configuration filters by them."""
    asked = {"licences": config.licences, "sources": (*config.sources, *config.exclude_sources)}
    return "".join(
        f" The pool's {name}: {', '.join(sorted(labels[name])[:_MAX_LABELS]) or 'none'}."
        for name, values in asked.items()
        if values
    )


def _count_languages(
    rows: ArtifactRef, config: SelectionConfig, labels: Mapping[str, set[str]]
) -> Counter[str]:
    """Return how many rows that are allowed each language has; gather the labels that occur."""
    path = open_store().folder(rows) / "rows.parquet"
    table = read_table(path, ["language", "licence", "source"])
    for column, name in (("licence", "licences"), ("source", "sources")):
        labels[name].update(value or "(empty)" for value in table[column].unique().to_pylist())
    for column, wanted, keep in (
        ("licence", config.licences, True),
        ("source", config.sources, True),
        ("source", config.exclude_sources, False),
    ):
        if wanted:
            inside = pc.is_in(table[column], value_set=pa.array(wanted, pa.string()))
            table = table.filter(inside if keep else pc.invert(inside))
    found = table["language"].value_counts().to_pylist()
    return Counter({entry["values"]: entry["counts"] for entry in found})


def all_refused(refused: Mapping[Any, Exception]) -> Exception:
    """Return one error for a run in which no language can be adapted.

    Equal reasons are said once, and one that nobody expected is not hidden behind those that tell
    the user what to change.
    """
    errors = list(refused.values())
    unexpected = [error for error in errors if not isinstance(error, InputError)]
    if unexpected:
        return unexpected[0]
    messages = {str(error): error for error in errors}
    if len(messages) == 1:
        return errors[0]
    first = errors[0]
    assert isinstance(first, CompassError)
    return InputError(
        f"No language can be adapted:\n{bounded_list(list(messages))}", code=first.code
    )

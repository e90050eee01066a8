"""Selection strategies under one signature: ours and the baselines it is compared with.

A strategy is a function ``select(problem, budget, rng) -> Selection`` in a file of this folder; the
file's name, with hyphens for underscores, is what people write in ``selection.strategy``. Nothing
has to be registered. A strategy takes rows only from ``problem.candidates``, derives chance from
``rng`` and ``problem.pool_keys`` alone, and gives each row a short reason. Files that start with an
underscore are parts of strategies. A package of somebody else offers the same function through the
entry point group ``compass.strategies``.

``tests/compass_core/selection/test_strategies.py`` checks a new file with all the others, and
`select_examples` checks every selection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from compass_core.errors import DataError
from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.registry import find_strategy, strategy_names

if TYPE_CHECKING:
    from compass_core.selection.registry import Strategy


class _Strategies(Mapping[str, "Strategy"]):
    """Strategies by name, each imported when it is first asked for."""

    def __getitem__(self, name: str) -> Strategy:
        if name not in strategy_names():
            raise KeyError(name)
        return find_strategy(name)

    def __iter__(self) -> Iterator[str]:
        return iter(strategy_names())

    def __len__(self) -> int:
        return len(strategy_names())


STRATEGIES: Mapping[str, Strategy] = _Strategies()
"""Every strategy by the name it has in ``selection.strategy``."""


def select_examples(
    name: str, problem: SelectionProblem, budget: int, rng: np.random.Generator
) -> Selection:
    """Run the strategy called `name` and check what it promises.

    Raises:
        ConfigError: there is no such strategy.
        DataError: it chose a row twice or one that may not be chosen, or did not explain it.
    """
    chosen = find_strategy(name)(problem, budget, rng)
    rows = np.asarray(chosen.indices)
    problems = []
    if len(rows) and (
        (np.diff(rows) <= 0).any() or rows[0] < 0 or rows[-1] >= len(problem.allowed)
    ):
        problems.append("its rows are not ascending numbers of the pool")
    elif not problem.candidates[rows].all():
        problems.append("it took rows that may not be selected")
    elif not np.array_equal(chosen.allocation, problem.count_by_cluster(rows)):
        problems.append("its allocation is not what it took")
    if len(chosen.reasons) != len(rows):
        problems.append(f"it gave {len(chosen.reasons)} reasons for {len(rows)} rows")
    if problems:
        raise DataError(
            f"The strategy {name!r} broke its promise: {'; '.join(problems)}. Nothing was "
            "selected; see docs/strategies.md for what a strategy must do.",
            code="E68",
        )
    return chosen


__all__ = ["STRATEGIES", "Selection", "SelectionProblem", "Strategy", "select_examples"]

"""Selection strategies under one signature: ours and the baselines it is compared with.

A strategy is a function ``select(problem, budget, rng) -> Selection``. To add one:

1. write ``strategies/<name>.py`` with that function; take rows only from ``problem.candidates``,
   derive chance from ``rng`` and ``problem.keys`` alone, give each row a short reason;
2. register it below under the name people will write in ``selection.strategy``;
3. add the name to ``compass_core.config.STRATEGIES``.

``tests/compass_core/selection/test_strategies.py`` then checks it with all the others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.strategies import (
    all_data,
    compass,
    english,
    proportional,
    random_draw,
    similar,
    target_only,
)

Strategy = Callable[[SelectionProblem, int, np.random.Generator], Selection]

STRATEGIES: dict[str, Strategy] = {
    "compass": compass.select,
    "random": random_draw.select,
    "target-only": target_only.select,
    "all-data": all_data.select,
    "similar": similar.select,
    "english": english.select,
    "proportional": proportional.select,
}
"""Every strategy by the name it has in ``selection.strategy``."""

__all__ = ["STRATEGIES", "Selection", "SelectionProblem", "Strategy"]

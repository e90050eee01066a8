"""The allocation spends exactly the budget, within capacity, and solves equation (4) exactly."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from compass_core.errors import DataError, InsufficientPoolError
from compass_core.selection.allocation import allocate_budget, plan_allocation, round_to_counts
from compass_core.selection.gap import js_divergence, measure_gap, smoothed_shares
from compass_core.selection.shrinkage import adaptive_shares

RULES = ("waterfill", "gap", "importance")


@st.composite
def problems(draw):
    """(usage share p, coverage count n, capacity c, budget B) with B <= Σ c."""
    cluster = st.tuples(st.integers(0, 60), st.integers(0, 80), st.integers(0, 50))
    rows = np.array(draw(st.lists(cluster, min_size=1, max_size=15)))
    capacity = rows[:, 2]
    budget = draw(st.integers(0, int(capacity.sum())))
    return smoothed_shares(rows[:, 0]), rows[:, 1], capacity, budget


def bisect_water_level(p, n, c, budget):
    """Slow twin of the sorted search: 200 halvings of the level."""
    low, high = 0.0, float(((n + c) / p).max()) + 1
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(p * middle - n, 0, c).sum() < budget:
            low = middle
        else:
            high = middle
    return np.clip(p * high - n, 0, c)


@given(problems(), st.sampled_from(RULES))
def test_allocation_spends_exactly_the_budget_and_never_exceeds_capacity(problem, rule):
    p, n, c, budget = problem
    plan = plan_allocation(p, n, c, budget, rule=rule)
    assert plan.counts.dtype == np.int64
    assert plan.counts.sum() == budget
    assert (plan.counts >= 0).all()
    assert (plan.counts <= c).all()
    assert plan.ideal.sum() == pytest.approx(budget, abs=1e-6)


@given(problems(), st.sampled_from(RULES))
def test_rounding_moves_no_cluster_by_a_whole_example(problem, rule):
    p, n, c, budget = problem
    plan = plan_allocation(p, n, c, budget, rule=rule)
    assert (np.abs(plan.counts - plan.ideal) < 1 + 1e-6).all()


@given(problems())
def test_waterfill_equals_bisection(problem):
    p, n, c, budget = problem
    found = plan_allocation(p, n, c, budget).ideal
    assert found == pytest.approx(bisect_water_level(p, n, c, budget), abs=1e-6)


@given(problems())
def test_waterfill_satisfies_the_optimality_conditions_of_equation_4(problem):
    p, n, c, budget = problem
    b = plan_allocation(p, n, c, budget).ideal
    # With level λ_k = (n_k + b_k)/p_k: open clusters share one level, an empty cluster lies at or
    # above it, a full one at or below.
    level = (n + b) / p
    scale = 1e-6 * max(1.0, level.max())
    is_open = (b > 1e-7) & (b < c - 1e-7)
    receives = b > 1e-7
    could_receive = b < c - 1e-7
    if receives.any() and could_receive.any():
        assert level[receives].max() <= level[could_receive].min() + scale or is_open.any()
    if is_open.any():
        water = level[is_open]
        assert np.ptp(water) <= scale
        assert (level[receives] <= water.max() + scale).all()
        assert (level[could_receive] >= water.min() - scale).all()


@st.composite
def extreme_problems(draw):
    """The same with shares over 20 orders of magnitude, zeros among them."""
    share = st.one_of(st.just(0.0), st.floats(-20, 0).map(lambda x: 10**x))
    cluster = st.tuples(share, st.integers(0, 80), st.integers(0, 50))
    rows = draw(st.lists(cluster, min_size=1, max_size=8).filter(lambda r: sum(x[0] for x in r)))
    p, n, c = (np.array(column) for column in zip(*rows, strict=True))
    return p, n, c, draw(st.integers(0, int(c[p > 0].sum())))


def exact_water_level(p, n, c, budget):
    """Equation (4) in rational arithmetic: walk up the break points one by one."""
    rows = [(Fraction(float(w)), int(m), int(k)) for w, m, k in zip(p, n, c, strict=True)]

    def spent(level):
        return [min(max(w * level - m, 0), k) if w else 0 for w, m, k in rows]

    breaks = sorted({b for w, m, k in rows if w for b in (m / w, (m + k) / w)})
    below = Fraction(0)
    for level in breaks:
        total = sum(spent(level))
        if total >= budget:
            start = sum(spent(below))
            part = Fraction(budget - start, total - start) if total > start else 0
            return [float(b) for b in spent(below + (level - below) * part)]
        below = level
    return [float(b) for b in spent(below)]


@settings(deadline=None)
@given(extreme_problems())
def test_waterfill_equals_rational_arithmetic_however_small_the_shares(problem):
    p, n, c, budget = problem
    found = plan_allocation(p, n, c, budget).ideal
    assert found == pytest.approx(exact_water_level(p, n, c, budget), abs=1e-6)


def test_shares_too_small_for_a_level_count_as_none():
    assert allocate_budget([1e-310, 1.0], [10, 0], [5, 7], 9).tolist() == [2, 7]
    assert allocate_budget([1.0, 1e-150, 0.0], [10, 0, 5], [5, 7, 3], 7).tolist() == [5, 2, 0]


@given(problems(), st.data())
def test_moving_examples_between_two_clusters_never_lowers_the_divergence(problem, data):
    p, n, c, budget = problem
    b = plan_allocation(p, n, c, budget).ideal
    source, goal = (data.draw(st.integers(0, len(p) - 1)) for _ in range(2))
    moved = min(b[source], c[goal] - b[goal]) * data.draw(st.floats(0, 1))

    def divergence(mix):
        with np.errstate(divide="ignore"):
            return float(-(p * np.log(mix)).sum())

    other = b.copy()
    other[source] -= moved
    other[goal] += moved
    assert divergence(n + b) <= divergence(n + other) + 1e-9


@given(problems())
def test_waterfill_does_not_depend_on_the_scale_of_the_shares(problem):
    p, n, c, budget = problem
    found = plan_allocation(p, n, c, budget).ideal
    assert plan_allocation(1e-30 * p, n, c, budget).ideal == pytest.approx(found, abs=1e-7)


@given(problems(), st.sampled_from(RULES), st.randoms())
def test_the_order_of_the_clusters_does_not_matter_before_rounding(problem, rule, random):
    p, n, c, budget = problem
    order = random.sample(range(len(p)), len(p))
    turned = plan_allocation(p[order], n[order], c[order], budget, rule=rule).ideal
    plain = plan_allocation(p, n, c, budget, rule=rule).ideal
    assert turned == pytest.approx(plain[order], abs=1e-6)


@given(problems())
def test_a_budget_as_large_as_the_pool_takes_all_of_it(problem):
    p, n, c, _ = problem
    assert (allocate_budget(p, n, c, int(c.sum())) == c).all()


@pytest.mark.parametrize("rule", RULES)
def test_usage_of_one_example_still_spends_the_budget(rule):
    usage = np.array([0, 1, 0, 0])
    for p in (smoothed_shares(usage), adaptive_shares(usage)):
        counts = allocate_budget(p, [5, 0, 0, 9], [50, 8, 50, 50], 60, rule=rule)
        assert counts.sum() == 60
        assert counts[1] == 8


@pytest.mark.parametrize("seed", range(6))
def test_waterfill_is_no_worse_than_a_general_convex_solver(seed):
    rng = np.random.default_rng(seed)
    k, budget = 6, 40
    p = rng.dirichlet(np.full(k, 1.0 if seed % 2 else 0.3)) + 1e-4
    n, c = rng.integers(1, 30, k).astype(float), rng.integers(5, 30, k).astype(float)

    def divergence(b):
        return float((p * np.log(p / ((n + b) / (n.sum() + budget)))).sum())

    solved = minimize(
        divergence,
        c * budget / c.sum(),
        bounds=[(0, x) for x in c],
        constraints={"type": "eq", "fun": lambda b: b.sum() - budget},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    ours = plan_allocation(p, n, c, budget).ideal
    assert divergence(ours) <= solved.fun + 1e-9
    assert ours == pytest.approx(solved.x, abs=0.02)


@given(problems(), st.sampled_from(RULES), st.data())
def test_a_larger_budget_takes_nothing_away_from_any_cluster(problem, rule, data):
    p, n, c, budget = problem
    smaller = data.draw(st.integers(0, budget))
    less = plan_allocation(p, n, c, smaller, rule=rule).ideal
    more = plan_allocation(p, n, c, budget, rule=rule).ideal
    assert (more >= less - 1e-6).all()


@given(problems(), st.sampled_from(RULES))
def test_inputs_stay_as_they_were_and_equal_inputs_give_equal_allocations(problem, rule):
    p, n, c, budget = problem
    before = (p.copy(), n.copy(), c.copy())
    first = allocate_budget(p, n, c, budget, rule=rule)
    assert (first == allocate_budget(p, n, c, budget, rule=rule)).all()
    for now, then in zip((p, n, c), before, strict=True):
        assert (now == then).all()


def test_cluster_covered_beyond_its_share_receives_nothing():
    # Level 100: .5·100 − 60 < 0, .3·100 − 0 = 30, .2·100 − 0 = 20.
    assert allocate_budget([0.5, 0.3, 0.2], [60, 0, 0], [99, 99, 99], 50).tolist() == [0, 30, 20]


def test_full_cluster_passes_its_surplus_to_open_clusters():
    # Without the cap 40/40; the first holds 10, so the level rises until the second takes 70.
    assert allocate_budget([0.5, 0.5], [0, 0], [10, 90], 80).tolist() == [10, 70]


def test_gap_rule_follows_the_gap_alone():
    # q = (90.5/101, 10.5/101), p = (.2, .8): only the second cluster has a gap.
    assert allocate_budget([0.2, 0.8], [90, 10], [99, 99], 60, rule="gap").tolist() == [0, 60]


def test_gap_rule_says_when_clusters_with_a_gap_cannot_hold_the_budget():
    plan = plan_allocation([0.2, 0.8], [90, 10], [99, 40], 60, rule="gap")
    assert plan.counts.tolist() == [20, 40]
    assert "hold only 40" in plan.notes[0]


def test_importance_rule_is_proportional_to_the_ratio_of_shares():
    # q is uniform without coverage, so the ratio follows p.
    assert allocate_budget([0.75, 0.25], [0, 0], [99, 99], 40, rule="importance").tolist() == [
        30,
        10,
    ]


@pytest.mark.parametrize("rule", RULES)
def test_without_any_gap_the_budget_follows_usage_and_a_note_says_so(rule):
    n = np.array([30, 10])
    plan = plan_allocation(smoothed_shares(n), n, [99, 99], 40, rule=rule)
    share = smoothed_shares(n)[0] if rule != "importance" else 0.5
    assert plan.counts[0] == pytest.approx(40 * share, abs=1)
    assert "no cluster has a gap" in plan.notes[0]


def test_ties_between_remainders_go_to_the_lower_cluster():
    assert allocate_budget([0.25] * 4, [0] * 4, [9] * 4, 6).tolist() == [2, 2, 1, 1]
    assert round_to_counts(np.full(3, 1 / 3), [1, 1, 1], 1).tolist() == [1, 0, 0]


def test_budget_zero_and_single_cluster_are_ordinary_cases():
    assert allocate_budget([1.0], [5], [7], 7).tolist() == [7]
    assert allocate_budget([0.5, 0.5], [0, 0], [3, 3], 0).tolist() == [0, 0]


def test_pool_too_small_names_the_largest_budget_that_fits():
    with pytest.raises(InsufficientPoolError, match=r"only 11 .*Lower `selection\.budget` to 11"):
        allocate_budget([0.5, 0.5], [0, 0], [10, 1], 12)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (([0.5, 0.5], [0], [1, 1], 1), "one usage share"),
        (([0.5, np.nan], [0, 0], [1, 1], 1), "usage_share must be finite"),
        (([0.0, 0.0], [0, 0], [1, 1], 1), "nothing to aim at"),
        (([0.5, 0.5], [0, 0], [1, 1], -1), "budget must be >= 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_the_reason(arguments, advice):
    with pytest.raises(DataError, match=advice):
        allocate_budget(*arguments)


def test_unknown_rule_is_refused_by_name():
    with pytest.raises(DataError, match="got 'softmax'"):
        allocate_budget([1.0], [0], [1], 1, rule="softmax")  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_million_examples_over_a_thousand_clusters_still_add_up(seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(1000, 0.1)) + 1e-12
    n, c = rng.integers(0, 3000, 1000), rng.integers(0, 5000, 1000)
    budget = int(rng.integers(0, c.sum() + 1))
    plan = plan_allocation(p, n, c, budget)
    assert plan.counts.sum() == budget
    assert (plan.counts <= c).all()


def test_simulation_of_the_method_notes_ranks_waterfill_before_gap_before_random():
    """The table of METHOD section 2 at B = 5,000: random .412, gap .161, waterfill .157."""
    k, n_usage, n_coverage, n_pool, budget = 100, 285, 4_000, 180_000, 5_000
    results = {name: [] for name in ("random", "gap", "waterfill")}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        target = rng.dirichlet(np.full(k, 0.4))
        usage = rng.multinomial(n_usage, target)
        coverage = rng.multinomial(n_coverage, rng.dirichlet(np.full(k, 0.4)))
        capacity = rng.multinomial(n_pool, rng.dirichlet(np.full(k, 0.6)))
        p = smoothed_shares(usage)
        results["random"].append(
            js_divergence(target, coverage + rng.multinomial(budget, capacity / n_pool))
        )
        for rule in ("gap", "waterfill"):
            allocation = allocate_budget(p, coverage, capacity, budget, rule=rule)
            results[rule].append(js_divergence(target, coverage + allocation))
    mean = {name: float(np.mean(values)) for name, values in results.items()}
    assert mean["random"] == pytest.approx(0.412, abs=0.04)
    assert mean["waterfill"] == pytest.approx(0.157, abs=0.02)
    assert mean["waterfill"] < mean["gap"] < mean["random"] - 0.15


def test_gap_is_closed_by_the_gap_rule_as_far_as_the_budget_reaches():
    p, n = np.array([0.6, 0.4]), np.array([10, 90])
    before = measure_gap(p, smoothed_shares(n)).sum()
    after = measure_gap(p, smoothed_shares(n + allocate_budget(p, n, [500, 500], 50, rule="gap")))
    assert after.sum() < before

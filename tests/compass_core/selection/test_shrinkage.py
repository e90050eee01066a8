"""Shares from few prompts: hand-checkable cases, slow twins, and what must hold for any counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import betabinom, gamma, poisson

from compass_core.errors import DataError
from compass_core.selection.allocation import plan_allocation
from compass_core.selection.gap import GapTable, js_divergence
from compass_core.selection.shrinkage import (
    adaptive_shares,
    best_alpha,
    smoothed_shares,
    usage_shares,
)

counts = st.lists(st.integers(0, 400), min_size=1, max_size=40)


def test_the_two_rules_are_selected_by_name():
    assert (usage_shares([3, 1]) == smoothed_shares([3, 1], 0.5)).all()
    assert (usage_shares([3, 1], shrinkage="adaptive") == adaptive_shares([3, 1])).all()


def test_unknown_rule_is_refused_by_its_config_name():
    with pytest.raises(DataError, match=r"selection\.shrinkage .*got 'stein'"):
        usage_shares([1, 2], shrinkage="stein")


@given(counts)
def test_adaptive_shares_are_positive_sum_to_one_and_grow_with_the_count(values):
    shares = adaptive_shares(values)
    assert shares.min() > 0
    assert shares.sum() == pytest.approx(1.0)
    assert (np.diff(shares[np.argsort(values, kind="stable")]) >= -1e-12).all()


@given(counts, st.randoms())
def test_equal_counts_get_equal_shares_in_any_order_of_the_clusters(values, random):
    shuffled = random.sample(range(len(values)), len(values))
    found = adaptive_shares(np.array(values)[shuffled])
    assert found == pytest.approx(adaptive_shares(values)[shuffled], rel=1e-9)


def test_without_prompts_or_with_one_cluster_shares_are_uniform():
    assert adaptive_shares([0, 0, 0]).tolist() == [1 / 3] * 3
    assert adaptive_shares([7]).tolist() == [1.0]


def test_one_prompt_is_smoothed_with_the_configured_alpha():
    # Nothing can be learnt from one prompt: α stays where it was put.
    assert best_alpha([1, 0, 0, 0], 0.5) == pytest.approx(0.5, rel=0.06)
    assert adaptive_shares([1, 0, 0, 0]) == pytest.approx(smoothed_shares([1, 0, 0, 0]), abs=0.01)


def test_large_counts_are_taken_as_they_are():
    values = np.array([100_000, 20_000, 3_000, 40_000])
    assert adaptive_shares(values) == pytest.approx(values / values.sum(), rel=2e-3)


def test_alpha_is_the_peak_of_the_marginal_likelihood():
    values = np.random.default_rng(0).multinomial(600, np.random.default_rng(1).dirichlet([2] * 80))

    def evidence(alpha):
        # Chain rule: the first count is beta-binomial, the next one of what remains, and so on.
        total, rest = 0.0, 600
        for place, value in enumerate(values[:-1]):
            total += betabinom.logpmf(value, rest, alpha, alpha * (79 - place))
            rest -= value
        return total - (np.log(alpha / 0.5) / 1.5) ** 2 / 2

    grid = np.exp(np.linspace(np.log(0.5), np.log(8), 60))
    best = grid[np.argmax([evidence(alpha) for alpha in grid])]
    assert best_alpha(values) == pytest.approx(best, rel=0.06)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 2.0])
def test_alpha_of_many_clusters_is_recovered(alpha):
    rng = np.random.default_rng(3)
    values = rng.multinomial(5_000, rng.dirichlet(np.full(1_000, alpha)))
    assert best_alpha(values) == pytest.approx(alpha, rel=0.15)


def slow_adaptive(values):
    """The same estimate by numerical integration over the rates and a plain loop."""
    values = np.asarray(values)
    mean, top = values.mean(), values.max() + 1.0
    low = min(0.02, mean)
    centres = np.geomspace(low, top, int(np.ceil(np.log(top / low) / 0.35)) + 1)
    rates = np.geomspace(1e-60, 20 * top, 100_000)
    width = np.gradient(rates)
    densities = [gamma.pdf(rates, best_alpha(values), scale=mean / best_alpha(values)) * width]
    densities += [gamma.pdf(rates, 10, scale=centre / 10) * width for centre in centres]
    weights = np.array([0.5] + [0.5 / len(centres)] * len(centres))
    trust = np.array([5.0] + [0.0] * len(centres))
    seen = [poisson.pmf(value, rates) for value in values]
    evidence = np.array([[(d * s).sum() for d in densities] for s in seen])
    for _ in range(50):
        share = evidence * weights
        share /= share.sum(axis=1, keepdims=True)
        weights = (share.sum(axis=0) + trust) / (len(values) + 5)
    expected = []
    for likelihood in seen:
        posterior = sum(w * d for w, d in zip(weights, densities, strict=True)) * likelihood
        expected.append((posterior * rates).sum() / posterior.sum())
    return np.array(expected) / np.sum(expected)


@pytest.mark.parametrize(
    "values", [[4, 0, 1, 0, 9, 2, 0, 1], [6, 6, 5, 7, 6], [30, 1, 0, 0, 0, 0, 2, 25, 28, 0]]
)
def test_adaptive_shares_equal_numerical_integration(values):
    assert adaptive_shares(values) == pytest.approx(slow_adaptive(values), rel=2e-3)


def closed_share(target, n_prompts, rule, draws=60, budget=5_000):
    """Part of the distance from the additive rule to the known target that `rule` closes."""
    distances = {"additive": [], rule: [], "known": []}
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        p = target(rng)
        usage = rng.multinomial(n_prompts, p)
        coverage = rng.multinomial(4_000, rng.dirichlet(np.full(len(p), 0.4)))
        capacity = rng.multinomial(180_000, rng.dirichlet(np.full(len(p), 0.6)))
        guesses = {
            "additive": smoothed_shares(usage),
            rule: usage_shares(usage, shrinkage=rule),
            "known": p,
        }
        for name, guess in guesses.items():
            mix = coverage + plan_allocation(guess, coverage, capacity, budget).ideal
            distances[name].append(js_divergence(p, mix))
    additive, found, known = (np.mean(values) for values in distances.values())
    return (additive - found) / (additive - known)


ZIPF = np.arange(1, 101) ** -1.0 / (np.arange(1, 101) ** -1.0).sum()


@pytest.mark.parametrize(
    ("target", "least"),
    [
        (lambda rng: rng.dirichlet(np.full(100, 0.05)), 0.5),
        (lambda rng: rng.dirichlet(np.full(100, 5.0)), 0.35),
        (lambda rng: np.full(100, 0.01), 0.8),
        (lambda rng: rng.permutation(ZIPF), 0.1),
        (lambda rng: rng.permutation(np.repeat([0.09, 0.1 / 90], [10, 90])), 0.6),
        (lambda rng: rng.dirichlet(np.full(100, 0.4)), -0.01),
        (lambda rng: rng.dirichlet(np.full(100, 1.0)), -0.03),
    ],
    ids=["sparse", "even", "uniform", "zipf", "ten-frequent", "like-additive", "flat"],
)
def test_adaptive_shares_gain_where_the_additive_rule_is_wrong_and_lose_nothing_where_right(
    target, least
):
    assert closed_share(target, 285, "adaptive") > least


@pytest.mark.parametrize("values", [[1, np.nan], [-1, 2], [[1, 2]], []])
def test_impossible_counts_are_refused(values):
    with pytest.raises(DataError, match="non-negative count"):
        adaptive_shares(values)


@pytest.mark.parametrize("smoothing", [0.0, -1.0, np.nan, np.inf])
def test_impossible_smoothing_is_refused_by_its_config_name(smoothing):
    with pytest.raises(DataError, match=r"selection\.smoothing"):
        adaptive_shares([1, 2], smoothing)


def test_gap_table_uses_the_rule_for_usage_and_never_for_coverage():
    usage = np.repeat([0, 1, 2], [9, 1, 0]).astype(np.int32)
    table = GapTable.from_assignments(usage, usage, usage, 3, shrinkage="adaptive")
    assert (table.usage_share == adaptive_shares([9, 1, 0])).all()
    assert (table.coverage_share == smoothed_shares([9, 1, 0])).all()

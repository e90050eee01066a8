"""Estimators of the usage shares p, judged by the mix that water-filling makes of them.

    python benchmarks/shrinkage.py [--draws 300] [--seed 0] [--skip-priors]

First table, the simulation of the method notes: K = 100, true usage and coverage shares from
Dirichlet(.4), pool shares from Dirichlet(.6), multinomial counts with |E| = 285, N = 4,000,
|A| = 180,000; JS in bits between the true usage and the final mix. "Closed" is the part of the
distance from `waterfill` (α = .5) to `waterfill` knowing p that an estimator closes, averaged over
the three budgets, with a paired bootstrap interval over draws.

The last row is a bound. It is given the prior of p and minimises the expected JS over the posterior
of p exactly, so in expectation over draws no estimator and no allocation made from these counts
does better. The objective is separable over clusters and the posterior of one share is a Beta, so
that the minimum is a one-dimensional root per cluster and a water level over all: with m_k the
final share, E log(1 + p_k/m_k) = ν wherever the budget may still move.

Second table: the same measure for other truths, other K and other |E|.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from compass_core.selection.allocation import water_level
from compass_core.selection.gap import js_divergence
from compass_core.selection.shrinkage import adaptive_shares, best_alpha, smoothed_shares

Floats = NDArray[np.float64]
Estimator = Callable[[Floats], Floats]
BUDGETS = (1_000, 5_000, 20_000)
N_COVERAGE, N_POOL = 4_000, 180_000
TRUE_ALPHA = 0.4
N_QUANTILES = 400


@dataclass(frozen=True)
class Draw:
    """One simulated language: true shares, counts of usage and coverage, capacities."""

    target: Floats
    usage: Floats
    coverage: Floats
    capacity: Floats


def simulate(target: Floats, n_usage: int, rng: np.random.Generator) -> Draw:
    """Return the counts that belong to one vector of true shares."""
    k = len(target)
    return Draw(
        target,
        rng.multinomial(n_usage, target).astype(float),
        rng.multinomial(N_COVERAGE, rng.dirichlet(np.full(k, 0.4))).astype(float),
        rng.multinomial(N_POOL, rng.dirichlet(np.full(k, 0.6))).astype(float),
    )


# ------------------------------------------------------------------------------ what is compared
def normalised(weights: Floats) -> Floats:
    """Return `weights` divided by their sum."""
    return weights / weights.sum()


def james_stein(counts: Floats) -> Floats:
    """Shrink the plain shares to uniform by the estimated optimal weight."""
    total, k = counts.sum(), len(counts)
    plain = counts / total
    spread = (total - 1) * ((1 / k - plain) ** 2).sum()
    weight = min(1.0, (1 - (plain**2).sum()) / max(spread, 1e-12))
    return normalised(weight / k + (1 - weight) * plain + 1e-9)


def good_turing(counts: Floats) -> Floats:
    """Give unseen clusters together the share of the singletons, the rest by plain counts."""
    unseen, total = counts == 0, counts.sum()
    if not unseen.any():
        return counts / total
    missing = min(max(float((counts == 1).sum()), 0.5) / total, 0.9)
    return np.where(unseen, missing / unseen.sum(), (1 - missing) * counts / total)


def median_like(counts: Floats) -> Floats:
    """Return the shares that minimise each cluster's expected JS alone, α by likelihood.

    For a Gamma posterior of shape a the root of E log(1 + X/m) = log 2 is a²/(a + ¼) to 1 %.
    """
    shape = counts + best_alpha(counts)
    return normalised(shape**2 / (shape + 0.25))


def truncated(counts: Floats) -> Floats:
    """Ignore clusters with at most one prompt."""
    return normalised(np.where(counts > 1, counts, 0.02))


ESTIMATORS: dict[str, Estimator] = {
    "additive .5 (waterfill)": lambda e: smoothed_shares(e, 0.5),
    "additive .4 (the prior)": lambda e: smoothed_shares(e, TRUE_ALPHA),
    "additive .2": lambda e: smoothed_shares(e, 0.2),
    "additive .1": lambda e: smoothed_shares(e, 0.1),
    "additive .02": lambda e: smoothed_shares(e, 0.02),
    "additive 1": lambda e: smoothed_shares(e, 1.0),
    "Dirichlet, alpha learnt": lambda e: smoothed_shares(e, best_alpha(e)),
    "expected-JS centre": median_like,
    "James-Stein": james_stein,
    "Good-Turing": good_turing,
    "truncated at 1": truncated,
    "adaptive (shipped)": adaptive_shares,
}


class LeastExpectedJs:
    """The allocation of least expected JS when the posterior of p is Dirichlet(e + α)."""

    def __init__(self, n_clusters: int, n_usage: int, alpha: float) -> None:
        """Tabulate E log(1 + p/m) over m for every count that may occur."""
        shapes = np.arange(n_usage + 1) + alpha
        others = n_usage + alpha * n_clusters - shapes
        levels = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
        self.log_shares = np.linspace(np.log(1e-10), np.log(2.0), 1_200)
        self._shapes, self._others, self._levels = shapes, others, levels
        self._tables: dict[int, Floats] = {}

    def _table(self, count: int) -> Floats:
        if count not in self._tables:
            posterior = betaincinv(self._shapes[count], self._others[count], self._levels)
            values = np.log1p(posterior / np.exp(self.log_shares)[:, None]).mean(axis=1)
            self._tables[count] = np.log(values)
        return self._tables[count]

    def allocate(self, draw: Draw, budget: float) -> Floats:
        """Return (K,) the ideal allocation."""
        distinct, place = np.unique(draw.usage.astype(int), return_inverse=True)
        tables = [self._table(int(count)) for count in distinct]
        final = draw.coverage.sum() + budget
        low, high = np.log(1e-5), np.log(25.0)
        for _ in range(60):
            nu = (low + high) / 2
            share = np.exp([np.interp(-nu, -table, self.log_shares) for table in tables])[place]
            spent = np.clip(final * share - draw.coverage, 0.0, draw.capacity)
            if spent.sum() > budget:
                low = nu
            else:
                high = nu
        return spent * (budget / spent.sum())


# ------------------------------------------------------------------------------------ measuring
def filled(shares: Floats, draw: Draw, budget: int) -> float:
    """Return the JS that water-filling to `shares` leaves."""
    _, allocation = water_level(shares, draw.coverage, draw.capacity, budget)
    return js_divergence(draw.target, draw.coverage + allocation)


def measure(draws: list[Draw], estimators: dict[str, Estimator]) -> dict[str, Floats]:
    """Return name → (draws, budgets) JS, with the reference ``known p``."""
    found = {name: np.empty((len(draws), len(BUDGETS))) for name in [*estimators, "known p"]}
    for i, draw in enumerate(draws):
        guesses = {name: estimate(draw.usage) for name, estimate in estimators.items()}
        for name, guess in [*guesses.items(), ("known p", draw.target)]:
            found[name][i] = [filled(guess, draw, budget) for budget in BUDGETS]
    return found


def closed(own: Floats, start: Floats, end: Floats, rows: NDArray[np.int64] | slice) -> float:
    """Return the closed part of the distance, mean over budgets, of the draws in `rows`."""
    gain = (start[rows] - own[rows]).mean(axis=0)
    return float((gain / (start[rows] - end[rows]).mean(axis=0)).mean())


def interval(own: Floats, start: Floats, end: Floats, rng: np.random.Generator) -> Floats:
    """Return the paired bootstrap 95 % interval of `closed`."""
    size = len(own)
    again = [closed(own, start, end, rng.integers(0, size, size)) for _ in range(1_000)]
    return np.quantile(again, [0.025, 0.975])


def simulation_of_the_notes(n_draws: int, seed: int) -> None:
    """Print the first table."""
    rng = np.random.default_rng(seed)
    k, n_usage = 100, 285
    draws = [simulate(rng.dirichlet(np.full(k, TRUE_ALPHA)), n_usage, rng) for _ in range(n_draws)]
    found = measure(draws, ESTIMATORS)
    best = LeastExpectedJs(k, n_usage, TRUE_ALPHA)
    found["BOUND: prior known"] = np.array(
        [
            [js_divergence(d.target, d.coverage + best.allocate(d, b)) for b in BUDGETS]
            for d in draws
        ]
    )
    start, end = found["additive .5 (waterfill)"], found["known p"]
    print(f"simulation of the method notes, {n_draws} draws, JS in bits")
    print(f"{'estimator':26}" + "".join(f"{f'B={b}':>10}" for b in BUDGETS) + "   closed [95 %]")
    for name, own in found.items():
        low, high = interval(own, start, end, np.random.default_rng(seed))
        cells = "".join(f"{value:10.4f}" for value in own.mean(axis=0))
        part = closed(own, start, end, slice(None))
        print(f"{name:26}{cells}   {part:+.3f} [{low:+.3f}, {high:+.3f}]")


# ---------------------------------------------------------------------------------- other truths
def zipf(exponent: float) -> Callable[[int, np.random.Generator], Floats]:
    """Return a maker of power-law shares in random order."""
    return lambda k, rng: rng.permutation(normalised(np.arange(1, k + 1) ** -exponent))


def half_silent(k: int, rng: np.random.Generator) -> Floats:
    """Return Dirichlet(2) shares over one half of the clusters, none for the other."""
    return rng.permutation(
        np.concatenate([rng.dirichlet(np.full(k // 2, 2.0)), np.zeros(k - k // 2)])
    )


def few_frequent(k: int, rng: np.random.Generator) -> Floats:
    """Return shares where a tenth of the clusters takes nine tenths."""
    weights = np.full(k, 0.1 / k)
    weights[: max(2, k // 10)] += 0.9 / max(2, k // 10)
    return rng.permutation(weights)


TRUTHS: dict[str, Callable[[int, np.random.Generator], Floats]] = {
    "Dirichlet .05": lambda k, rng: rng.dirichlet(np.full(k, 0.05)),
    "Dirichlet .4": lambda k, rng: rng.dirichlet(np.full(k, 0.4)),
    "Dirichlet 1": lambda k, rng: rng.dirichlet(np.ones(k)),
    "Dirichlet 5": lambda k, rng: rng.dirichlet(np.full(k, 5.0)),
    "uniform": lambda k, _: np.full(k, 1 / k),
    "power law 1": zipf(1.0),
    "power law 1.5": zipf(1.5),
    "half silent": half_silent,
    "few frequent": few_frequent,
}
SIZES = ((20, 50), (20, 2_000), (100, 50), (100, 285), (100, 2_000), (500, 285), (500, 2_000))
COMPARED = (
    "additive .1",
    "Dirichlet, alpha learnt",
    "expected-JS centre",
    "James-Stein",
    "Good-Turing",
    "adaptive (shipped)",
)
WIDTHS = [len(name) + 2 for name in COMPARED]


def line(head: str, values: list[float]) -> str:
    """Return one row of the second table."""
    return f"{head:42}" + "".join(f"{v:{w}.2f}" for v, w in zip(values, WIDTHS, strict=True))


def other_truths(n_draws: int, seed: int) -> None:
    """Print the second table."""
    print(f"\nother truths, {n_draws} draws each: closed part of the distance (0 = additive .5)")
    head = "".join(f"{name:>{width}}" for name, width in zip(COMPARED, WIDTHS, strict=True))
    print(f"{'truth':15}{'K':>5}{'|E|':>6}{'JS .5':>8}{'JS p':>8}{head}")
    names = ("additive .5 (waterfill)", *COMPARED)
    rows: list[list[float]] = []
    for truth, make in TRUTHS.items():
        for k, n_usage in SIZES:
            rng = np.random.default_rng([seed, k, n_usage])
            draws = [simulate(make(k, rng), n_usage, rng) for _ in range(n_draws)]
            found = measure(draws, {name: ESTIMATORS[name] for name in names})
            start, end = found[names[0]], found["known p"]
            rows.append([closed(found[name], start, end, slice(None)) for name in COMPARED])
            left = f"{truth:15}{k:5}{n_usage:6}{start.mean():8.4f}{end.mean():8.4f}"
            print(line(left, rows[-1]), flush=True)
    print(line("mean", np.mean(rows, axis=0).tolist()))
    print(line("worst", np.min(rows, axis=0).tolist()))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--prior-draws", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-priors", action="store_true", help="first table only")
    arguments = parser.parse_args()
    started = time.perf_counter()
    simulation_of_the_notes(arguments.draws, arguments.seed)
    if not arguments.skip_priors:
        other_truths(arguments.prior_draws, arguments.seed)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

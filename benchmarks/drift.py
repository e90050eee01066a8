"""The drift test on simulated usage: false alarms, power, false drifts in a year, cost.

    python benchmarks/drift.py [--windows 2000] [--user-windows 1000] [--power-windows 500]
                               [--years 300] [--seed 0]
                               [--only cost,prompts,power,years,users]

Every window comes with a reference of its own (10,000 prompts, K = 100 clusters, about 5 % of the
prompts outside every radius), so that windows are independent; only a simulated year keeps one
reference for its 365 daily checks, as a language in production does. Cluster shapes: uniform, Zipf
with exponent 1, and a new draw of Dirichlet(1) for each window. Intervals are Clopper and Pearson's
at 95 %.

Users have 10 prompts each and a strong taste: shares from Dirichlet(2·p), and a rate of novel
prompts of their own. There the window sizes count prompts, so that n = 200 means 20 users:
`min_units` is lowered for the simulation, to show that few users cost power and not the level.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from compass_core.config import DriftConfig
from compass_core.monitoring.decisions import Check, decide_drift
from compass_core.monitoring.drift import Sample, detect_drift
from compass_core.seeding import derive_rng, derive_seed
from compass_core.selection.gap import js_divergence

Floats = NDArray[np.float64]
K, N_REFERENCE = 100, 10_000
SIZES = (200, 1_000, 5_000)
SHAPES = ("uniform", "Zipf", "Dirichlet")
NOVEL = 0.05
PROMPTS_PER_USER, TASTE = 10, 2.0
ANY_SIZE = DriftConfig(min_units=1, min_prompts=1)
SMALL = ANY_SIZE.model_copy(update={"max_permutations": ANY_SIZE.n_permutations})


def shares_of(shape: str, n_clusters: int, rng: np.random.Generator) -> Floats:
    """Return the true shares of one language."""
    if shape == "Dirichlet":
        shares: Floats = rng.dirichlet(np.ones(n_clusters))
        return shares
    weights = 1.0 / np.arange(1, n_clusters + 1) if shape == "Zipf" else np.ones(n_clusters)
    shares = weights / weights.sum()
    return shares


def draw_prompts(shares: Floats, n: int, rng: np.random.Generator, novel: float = NOVEL) -> Sample:
    """Return prompts that have a user each."""
    ids = np.repeat(np.arange(len(shares)), rng.multinomial(n, shares))
    return Sample(ids, rng.random(n) < novel)


def draw_users(
    shares: Floats, n_users: int, rng: np.random.Generator, taste: float = TASTE
) -> Sample:
    """Return users with `PROMPTS_PER_USER` prompts each, every one with a mix of its own."""
    tastes = rng.dirichlet(taste * shares, n_users)
    counts = rng.multinomial(PROMPTS_PER_USER, tastes)
    user, cluster = np.nonzero(counts)
    times = counts[user, cluster]
    units = np.repeat(user, times)
    rates = rng.beta(10 * NOVEL, 10 * (1 - NOVEL), n_users)
    return Sample(np.repeat(cluster, times), rng.random(len(units)) < rates[units], units)


def shifted(kind: str, shares: Floats, rng: np.random.Generator) -> Floats:
    """Return shares that differ from `shares` by a total variation of .10.

    ``n clusters``: .10 of the mass, taken from everything in proportion, goes to n of the clusters,
    chosen at random. ``diffuse``: half of the clusters gain, half lose, all in proportion.
    """
    if kind == "diffuse":
        gains = rng.permutation(len(shares)) < len(shares) // 2
        up, down = shares[gains].sum(), shares[~gains].sum()
        changed: Floats = shares * np.where(gains, 1 + 0.1 / up, 1 - 0.1 / down)
        return changed
    chosen = rng.choice(len(shares), int(kind.partition(" ")[0]), replace=False)
    gain = np.zeros_like(shares)
    gain[chosen] = 0.1 / len(chosen)
    rest = shares.copy()
    rest[chosen] = 0.0
    changed = shares + gain - 0.1 * rest / rest.sum()
    return changed


def interval(hits: int, n: int) -> str:
    """Return the share of hits with its 95 % interval."""
    low = float(stats.beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return f"{hits / n:.4f} [{low:.4f}, {high:.4f}]"


def false_alarms_of_prompts(n_windows: int, seed: int) -> None:
    """Print the alarms of windows of prompts without drift."""
    print(f"\nNo drift, every prompt its own user; alpha = .01, {n_windows:,} windows per cell")
    print(f"{'n':>6} {'clusters':10} {'alarms':>6}  share [95 %]")
    pooled = 0
    for n in SIZES:
        for shape in SHAPES:
            rng = derive_rng(seed, "prompts", shape, str(n))
            hits = 0
            for window in range(n_windows):
                shares = shares_of(shape, K, rng)
                reference = draw_prompts(shares, N_REFERENCE, rng)
                current = draw_prompts(shares, n, rng)
                hits += _alarm(reference, current, ANY_SIZE, seed, window)
            pooled += hits
            print(f"{n:6,} {shape:10} {hits:6}  {interval(hits, n_windows)}", flush=True)
    total = n_windows * len(SIZES) * len(SHAPES)
    print(f"pooled            {pooled:6}  {interval(pooled, total)}")


def false_alarms_of_users(n_windows: int, seed: int) -> None:
    """Print the alarms of windows of users without drift, by users and (fewer) by prompts."""
    n_wrong = max(n_windows // 20, 1)
    by_prompt = ANY_SIZE.model_copy(update={"unit": "prompt", "max_permutations": 999})
    print(
        f"\nNo drift, {PROMPTS_PER_USER} prompts per user with strong taste; alpha = .01, "
        f"{n_windows:,} windows per cell,\nreference {N_REFERENCE // PROMPTS_PER_USER:,} users; "
        f"the wrong unit on the first {n_wrong} windows"
    )
    print(f"{'n':>6} {'users':>6} {'clusters':10} {'alarms':>6}  {'share [95 %]':24} by prompt")
    pooled = 0
    for n in SIZES:
        for shape in SHAPES:
            rng = derive_rng(seed, "users", shape, str(n))
            hits = wrong = 0
            for window in range(n_windows):
                shares = shares_of(shape, K, rng)
                reference = draw_users(shares, N_REFERENCE // PROMPTS_PER_USER, rng)
                current = draw_users(shares, n // PROMPTS_PER_USER, rng)
                hits += _alarm(reference, current, ANY_SIZE, seed, window)
                if window < n_wrong:
                    wrong += _alarm(reference, current, by_prompt, seed, window)
            pooled += hits
            print(
                f"{n:6,} {n // PROMPTS_PER_USER:6,} {shape:10} {hits:6}  "
                f"{interval(hits, n_windows):24} {wrong / n_wrong:.2f}",
                flush=True,
            )
    total = n_windows * len(SIZES) * len(SHAPES)
    print(f"pooled                   {pooled:6}  {interval(pooled, total)}")


CHANGES = (
    ("1 clusters", 1_000),
    ("2 clusters", 1_000),
    ("5 clusters", 1_000),
    ("new topic", 1_000),
    ("diffuse", 3_000),
)
"""Changes of total variation .10, and a new topic of 2 %; with the size of the window."""


def power(n_windows: int, seed: int) -> None:
    """Print how often a change is an alarm."""
    print(
        f"\nPower at alpha = .01: total variation .10 in so many clusters or in all, or a new "
        f"topic of 2 %;\n{n_windows:,} windows per cell, 999 permutations"
    )
    print(
        f"{'change':12} {'n':>6} {'clusters':10} {'combined [95 %]':24} {'score':>6} {'largest':>8}"
    )
    for kind, n in CHANGES:
        for shape in SHAPES:
            rng = derive_rng(seed, "power", kind, shape)
            hits = np.zeros(3, dtype=int)
            for window in range(n_windows):
                reference, current = _changed(kind, shape, n, rng)
                report = detect_drift(
                    reference, current, K + 1, SMALL, seed=derive_seed(seed, str(window))
                )
                p_values = (report.p_value, report.p_score, report.p_cluster)
                hits += np.array([p is not None and p <= report.level for p in p_values])
            print(
                f"{kind:12} {n:6,} {shape:10} {interval(int(hits[0]), n_windows):24} "
                f"{hits[1] / n_windows:6.3f} {hits[2] / n_windows:8.3f}",
                flush=True,
            )


def _changed(kind: str, shape: str, n: int, rng: np.random.Generator) -> tuple[Sample, Sample]:
    """Return a reference and a window with one kind of change; cluster K is empty before it."""
    shares = np.append(shares_of(shape, K, rng), 0.0)
    if kind == "new topic":
        after = shares * 0.98
        after[K] = 0.02
    else:
        after = np.append(shifted(kind, shares[:K], rng), 0.0)
    return draw_prompts(shares, N_REFERENCE, rng), draw_prompts(after, n, rng)


def _alarm(reference: Sample, current: Sample, config: DriftConfig, seed: int, window: int) -> bool:
    report = detect_drift(reference, current, K, config, seed=derive_seed(seed, str(window)))
    return report.status == "alarm"


def years(n_years: int, seed: int) -> None:
    """Print the false alarms and drifts of years of daily checks without drift."""
    n, n_clusters = 500, 20
    config = DriftConfig(n_permutations=199, max_permutations=199)
    print(
        f"\n{n_years:,} years of 365 daily checks without drift: one reference of {N_REFERENCE:,} "
        f"prompts a year, n = {n},\nK = {n_clusters}, Zipf, nothing novel, 199 permutations; two "
        f"alarms in a row make a drift, {config.cooldown} windows of cool-down"
    )
    alarms, drifts = [], []
    for year in range(n_years):
        rng = derive_rng(seed, "year", str(year))
        shares = shares_of("Zipf", n_clusters, rng)
        reference = draw_prompts(shares, N_REFERENCE, rng, novel=0)
        found = list(_year(reference, shares, n, config, derive_seed(seed, str(year)), rng))
        alarms.append(sum(check.status == "alarm" for check in found))
        drifts.append(sum(check.was_drift for check in found))
    with_any = sum(count > 0 for count in drifts)
    print(f"alarms per year              {np.mean(alarms):.2f}")
    print(f"false drifts per year        {np.mean(drifts):.3f}")
    print(f"years with a false drift     {interval(with_any, n_years)}")


def _year(
    reference: Sample,
    shares: Floats,
    n: int,
    config: DriftConfig,
    seed: int,
    rng: np.random.Generator,
) -> Iterator[Check]:
    recent: list[Check] = []
    for day in range(365):
        current = draw_prompts(shares, n, rng, novel=0)
        report = detect_drift(
            reference, current, len(shares), config, seed=derive_seed(seed, str(day))
        )
        start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
        check = Check(start, report.status, report.p_value, report.level)
        drift = decide_drift([*recent, check], config).drift_detected
        check = Check(start, report.status, report.p_value, report.level, was_drift=drift)
        recent = [*recent[-19:], check]
        yield check


def cost(seed: int, rounds: int = 7) -> None:
    """Print the time of one check beside the obvious loop and scipy, interleaved."""
    rng = derive_rng(seed, "cost")
    shares = shares_of("Zipf", K, rng)
    config = SMALL
    print(f"\nOne check, K = {K}, 999 permutations, median of {rounds} interleaved rounds, ms")
    for n in SIZES:
        reference, current = draw_prompts(shares, N_REFERENCE, rng), draw_prompts(shares, n, rng)
        row: dict[str, Callable[[], object]] = {
            "compass": partial(detect_drift, reference, current, K, config, seed=seed),
            "loop": partial(_loop_over_prompts, reference, current, seed),
        }
        if n == SIZES[1]:
            row["scipy"] = partial(_scipy_test, reference, current, seed)
        _print_cost(f"{n:,} + {N_REFERENCE:,} prompts", row, rounds)
    reference, current = draw_users(shares, 10_000, rng), draw_users(shares, 1_000, rng)
    row = {
        "compass": partial(detect_drift, reference, current, K, config, seed=seed),
        "loop": partial(_loop_over_users, reference, current, seed),
    }
    _print_cost("1,000 + 10,000 users of 10 prompts", row, rounds)


def _print_cost(what: str, row: dict[str, Callable[[], object]], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in row}
    for turn in range(rounds):
        names = list(row) if turn % 2 == 0 else list(reversed(row))
        for name in names:
            started = time.perf_counter()
            row[name]()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: float(np.median(taken)) * 1e3 for name, taken in seconds.items()}
    told = "  ".join(
        f"{name} {value:,.1f} (x{value / medians['compass']:.1f})"
        for name, value in medians.items()
    )
    print(f"{what:36} {told}", flush=True)


def _loop_over_prompts(reference: Sample, current: Sample, seed: int) -> float:
    """Return the p-value of JS alone by shuffling all prompts again and again."""
    rng = np.random.default_rng(seed)
    ids = np.concatenate([current.cluster_ids, reference.cluster_ids])
    n = len(current)

    def score(order: NDArray[np.int64]) -> float:
        return js_divergence(
            np.bincount(order[:n], minlength=K), np.bincount(order[n:], minlength=K)
        )

    null = [score(rng.permutation(ids)) for _ in range(999)]
    return (1 + np.count_nonzero(np.array(null) >= score(ids))) / 1_000


def _loop_over_users(reference: Sample, current: Sample, seed: int) -> float:
    """Return the p-value of JS alone by shuffling the rows of a table of users."""
    rng = np.random.default_rng(seed)
    tables = []
    for sample in (current, reference):
        assert sample.units is not None
        table = np.zeros((int(sample.units.max()) + 1, K), dtype=np.int64)
        np.add.at(table, (sample.units, sample.cluster_ids), 1)
        tables.append(table)
    users, n = np.concatenate(tables), len(tables[0])

    def score(order: NDArray[np.int64]) -> float:
        return js_divergence(users[order[:n]].sum(axis=0), users[order[n:]].sum(axis=0))

    null = [score(rng.permutation(len(users))) for _ in range(999)]
    return (1 + np.count_nonzero(np.array(null) >= score(np.arange(len(users))))) / 1_000


def _scipy_test(reference: Sample, current: Sample, seed: int) -> float:
    """Return the p-value of JS alone by `scipy.stats.permutation_test`."""

    def score(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
        return js_divergence(np.bincount(first, minlength=K), np.bincount(second, minlength=K))

    found = stats.permutation_test(
        (current.cluster_ids, reference.cluster_ids),
        score,
        vectorized=False,
        n_resamples=999,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what `--only` names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=2_000)
    parser.add_argument("--user-windows", type=int, default=1_000)
    parser.add_argument("--power-windows", type=int, default=500)
    parser.add_argument("--years", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="cost,prompts,power,years,users")
    options = parser.parse_args(arguments)
    parts: dict[str, Callable[[], None]] = {
        "cost": lambda: cost(options.seed),
        "prompts": lambda: false_alarms_of_prompts(options.windows, options.seed),
        "users": lambda: false_alarms_of_users(options.user_windows, options.seed),
        "power": lambda: power(options.power_windows, options.seed),
        "years": lambda: years(options.years, options.seed),
    }
    for name in options.only.split(","):
        started = time.perf_counter()
        parts[name]()
        print(f"({name}: {time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

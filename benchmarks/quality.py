"""Every strategy at the same budget, judged by usage that none of them saw.

    OMP_NUM_THREADS=2 python benchmarks/quality.py [--seeds 3] [--only sib200|exams]

Cases: the selection cases of ``scenarios.json``, four more of both kinds from sib200 in other
languages and topics, and exams with its natural gaps: one language is the target, a third of its
rows its coverage (of two planted subjects one row in ten is kept), the rest usage, the other
languages the pool. Every case has an encoder of its own, fitted on parallel rows the case has
nothing to do with. Per seed, usage is split into a shown and a held-out half, and a third of the
pool's items, with all their translations, is taken out: the reference clusters are fitted there,
one per ten held-out prompts (10 to 50). Budget 400.

- JS, KL: bits, held-out usage against the training mix (coverage and selection) and against the
  selection alone; KL with .5 added to the counts of the rows.
- MMD²: x 1,000, unbiased, Gaussian kernel on the centred unit vectors, σ the median distance of
  reference rows; about 0 where rows are distributed as held-out usage.
- lift: share in the selection over share in the pool, mean over planted and over other topics.
- languages: entropy of the selection's source languages in bits, share of the largest.

Clusters are those of ``compass scenarios``. ``compass`` splits the budget by ``selection.rule``'s
default, ``compass, gap`` by the rule that ``compass scenarios`` uses: all of it where usage exceeds
coverage. ``all-data`` and ``target-only`` ignore the budget. ``shown usage`` is no selection: it is
the other half of usage itself, measured like one, and says how much of a figure is noise of small
samples.
Intervals are 95 % bootstrap intervals over cases, and seeds inside them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.config import SelectionConfig
from compass_core.errors import ConfigError
from compass_core.scenarios.cases import ALL_BUT_TARGET, Case, PoolFilter, read_cases
from compass_core.scenarios.data import DataFolder, Row
from compass_core.scenarios.running import CLUSTERING, PreparedCase, make_problem, prepare_case
from compass_core.seeding import derive_rng
from compass_core.selection.allocation import AllocationRule
from compass_core.selection.centring import centre_languages
from compass_core.selection.quality import (
    Yardstick,
    make_yardstick,
    match_usage,
    measure_quality,
    topic_lifts,
)
from compass_core.selection.strategies import STRATEGIES, select_examples

Values = dict[str, float]
Results = dict[str, dict[str, list[Values]]]

BUDGET, N_DRAWS = 400, 2_000
SHOWN, GAP_ARM = "shown usage", "compass, gap"
SIB200 = (
    ("coverage_gap", "tur_Latn", ("health", "travel")),
    ("coverage_gap", "ben_Beng", ("politics", "sports")),
    ("usage_skew", "yor_Latn", ("geography", "science/technology")),
    ("usage_skew", "kor_Hang", ("entertainment", "politics")),
)
EXAMS = ("tur_Latn", "ita_Latn", "als_Latn", "srp_Cyrl")
COLUMNS = {
    "mix_js": "JS mix",
    "mix_kl": "KL mix",
    "selection_js": "JS selection",
    "selection_kl": "KL selection",
    "mix_mmd": "MMD² mix",
    "selection_mmd": "MMD² selection",
    "planted": "lift planted",
    "other": "lift other",
    "language_entropy": "languages, bits",
    "largest_language": "largest",
}


def sib200_cases(data: DataFolder) -> Iterator[Case]:
    """Yield cases of both kinds in languages and topics the shipped ones do not have."""
    for kind, language, planted in SIB200:
        rng = derive_rng(0, "quality-case", language)
        own = [row for row in data.rows("sib200") if row.language == language]
        train = [row for row in own if row.split == "train"]
        rest = [row for row in own if row.split != "train"]
        if kind == "coverage_gap":
            existing, usage = _thinned(train, planted, rng, keep=6), rest
        else:
            existing, usage = train, _thinned(rest, _others(rest, planted), rng, keep=6)
        yield _case(kind, "sib200", "train", language, planted, existing, usage)


def exams_cases(data: DataFolder) -> Iterator[Case]:
    """Yield one case per language of `EXAMS` that the data has."""
    rows = data.rows("exams")
    for language in EXAMS:
        rng = derive_rng(0, "quality-case", language)
        own = [row for row in rows if row.language == language]
        elsewhere = Counter(row.topic for row in rows if row.language != language)
        common = [
            name
            for name, _ in Counter(row.topic for row in own).most_common()
            if elsewhere[name] >= BUDGET
        ]
        if len(common) < 4:
            continue
        planted = tuple(str(name) for name in rng.choice(common[:5], 2, replace=False))
        order = rng.permutation(len(own))
        third = len(own) // 3
        covered = [own[i] for i in order[:third]]
        n_planted = max(sum(row.topic in planted for row in covered) // 20, 1)
        existing = _thinned(covered, planted, rng, keep=n_planted)
        usage = [own[i] for i in order[third:]]
        yield _case("coverage_gap", "exams", "", language, planted, existing, usage)


def _others(rows: Sequence[Row], planted: Sequence[str]) -> list[str]:
    return sorted({row.topic for row in rows} - set(planted))


def _thinned(
    rows: Sequence[Row], topics: Sequence[str], rng: np.random.Generator, *, keep: int
) -> list[Row]:
    """Return `rows` with at most `keep` of each of `topics`."""
    left = Counter({topic: keep for topic in topics})
    kept = []
    for index in rng.permutation(len(rows)):
        row = rows[index]
        if row.topic not in topics or left[row.topic] > 0:
            left[row.topic] -= 1
            kept.append(row)
    return kept


def _case(
    kind: str,
    file: str,
    split: str,
    language: str,
    planted: tuple[str, ...],
    existing: Sequence[Row],
    usage: Sequence[Row],
) -> Case:
    return Case(
        name=f"{file} {kind.replace('_', ' ')} {language} {'+'.join(planted)}",
        kind=kind,
        files=(file,),
        target_language=language,
        existing_ids=tuple(row.id for row in existing),
        usage_ids=tuple(row.id for row in usage),
        pool=PoolFilter(file=file, languages=ALL_BUT_TARGET, split=split),
        gap_topics=planted,
        budget=BUDGET,
        raw={},
    )


def split_case(
    prepared: PreparedCase, seed: int
) -> tuple[PreparedCase, dict[str, NDArray[np.float32]]]:
    """Return the case with half of its usage and two thirds of its pool, and centred vectors.

    The vectors are of shown usage, held-out usage, existing rows, reference and pool.
    """
    rng = derive_rng(seed, "quality-split", prepared.case.name)
    order = rng.permutation(len(prepared.usage))
    shown, held_out = np.sort(order[::2]), np.sort(order[1::2])
    items = np.array([row.parallel_id or row.id for row in prepared.pool])
    names = np.unique(items)
    apart = np.isin(items, rng.choice(names, len(names) // 3, replace=False))
    kept = np.flatnonzero(~apart)
    vectors = prepared.vectors
    part = replace(
        prepared,
        case=replace(prepared.case, budget=BUDGET),
        usage=[prepared.usage[i] for i in shown],
        pool=[prepared.pool[i] for i in kept],
        vectors=vectors | {"usage": vectors["usage"][shown], "pool": vectors["pool"][kept]},
    )
    own = np.concatenate([vectors["usage"], vectors["existing"]])
    stacked = np.concatenate([own, vectors["pool"]])
    languages = np.concatenate([np.full(len(own), prepared.target), prepared.languages])
    centred, _ = centre_languages(stacked, languages)
    usage, existing, pool = np.split(centred, [len(prepared.usage), len(own)])
    return part, {
        "shown": usage[shown],
        "held out": usage[held_out],
        "existing": existing,
        "reference": pool[apart],
        "pool": pool[kept],
    }


def run_seed(prepared: PreparedCase, seed: int, names: Sequence[str]) -> dict[str, Values]:
    """Return each strategy's figures for one case and seed; missing extras are left out."""
    part, vectors = split_case(prepared, seed)
    n_clusters = int(np.clip(len(vectors["held out"]) // 10, 10, 50))
    yardstick = make_yardstick(
        vectors["reference"], vectors["held out"], n_clusters=n_clusters, seed=seed
    )
    problem, _ = make_problem(part, seed, clustering=CLUSTERING, selection=SelectionConfig())
    found = {SHOWN: _noise(yardstick, vectors["shown"])}
    for name in names:
        rng = derive_rng(seed, "draw", prepared.target)
        rule: AllocationRule = "gap" if name == GAP_ARM else problem.rule
        try:
            chosen = select_examples(name.split(",")[0], replace(problem, rule=rule), BUDGET, rng)
        except ConfigError as error:
            print(f"skipped {name}: {error}")
            continue
        rows = chosen.indices
        quality = measure_quality(
            yardstick, vectors["pool"][rows], part.languages[rows], vectors["existing"]
        )
        found[name] = quality.to_dict() | _lifts(part, rows)
    return found


def _noise(yardstick: Yardstick, shown: NDArray[np.float32]) -> Values:
    match = match_usage(yardstick, shown)
    values = {"js": match.js, "kl": match.kl, "mmd": match.mmd}
    return {f"{part}_{name}": x for part in ("mix", "selection") for name, x in values.items()}


def _lifts(part: PreparedCase, rows: NDArray[np.int64]) -> Values:
    nothing = {"planted": float("nan"), "other": float("nan")}
    if len(rows) == 0:
        return nothing
    sides: dict[str, list[float]] = {"planted": [], "other": []}
    for topic, lift in topic_lifts(part.topics, rows).items():
        sides["planted" if topic in part.case.gap_topics else "other"].append(lift)
    return nothing | {side: float(np.mean(lifts)) for side, lifts in sides.items() if lifts}


def interval(cases: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return mean and 95 % interval of values by case and seed; NaN are left out."""
    values = np.array([case for case in cases if np.isfinite(case).any()])
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(0)
    n_cases, n_seeds = values.shape
    chosen = rng.integers(n_cases, size=(N_DRAWS, n_cases, 1))
    seeds = rng.integers(n_seeds, size=(N_DRAWS, n_cases, n_seeds))
    low, high = np.nanpercentile(np.nanmean(values[chosen, seeds], axis=(1, 2)), [2.5, 97.5])
    return float(np.nanmean(values)), float(low), float(high)


def print_tables(title: str, results: Results, names: Sequence[str]) -> None:
    """Print the figures of every strategy, and the paired differences to ``compass``."""
    shown = [name for name in (*names, SHOWN) if any(name in case for case in results.values())]
    print(f"\n### {title}: {len(results)} cases\n")
    _header(("strategy", "rows", *COLUMNS.values()))
    for name in shown:
        rows = np.mean([v.get("n_selected", 0) for c in results.values() for v in c.get(name, [])])
        cells = [_cell(results, name, column) for column in COLUMNS]
        print(f"| {name} | {f'{rows:,.0f}' if name != SHOWN else '–'} | {' | '.join(cells)} |")
    print("\nStrategy less compass on the same case and seed; above 0 favours compass:\n")
    _header(("strategy", "JS mix", "KL mix", "MMD² mix", "cases where compass has the lower JS"))
    for name in [name for name in shown if name not in ("compass", SHOWN)]:
        cells = [_cell(results, name, c, less="compass") for c in ("mix_js", "mix_kl", "mix_mmd")]
        means = [np.mean(v) for v in _by_case(results, name, "mix_js", less="compass") if v]
        print(f"| {name} | {' | '.join(cells)} | {sum(m > 0 for m in means)} of {len(means)} |")


def _header(names: Sequence[str]) -> None:
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")


def _by_case(results: Results, name: str, column: str, less: str = "") -> list[list[float]]:
    scale = 1_000 if column.endswith("mmd") else 1
    by_case = []
    for case in results.values():
        own = [values.get(column, float("nan")) * scale for values in case.get(name, [])]
        other = [v[column] * scale for v in case[less]] if own and less else [0.0] * len(own)
        by_case.append([a - b for a, b in zip(own, other, strict=True)])
    return by_case


def _cell(results: Results, name: str, column: str, less: str = "") -> str:
    mean, low, high = interval(_by_case(results, name, column, less))
    if not np.isfinite(mean):
        return "–"
    digits = 1 if column.endswith("mmd") else 2 if column in ("planted", "other") else 3
    sign = "+" if less else ""
    return f"{mean:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def run_cases(cases: Sequence[Case], data: DataFolder, seeds: int, names: Sequence[str]) -> Results:
    """Prepare every case once and run every seed and strategy."""
    results: Results = {}
    for case in cases:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as work:
            prepared = prepare_case(case, data, Path(work))
        found: dict[str, list[Values]] = {}
        for seed in range(seeds):
            for name, values in run_seed(prepared, seed, names).items():
                found.setdefault(name, []).append(values)
        results[case.name] = found
        seconds = time.perf_counter() - started
        print(
            f"{case.name}: {len(prepared.usage)} usage, {len(prepared.existing)} coverage, "
            f"{len(prepared.pool):,} pool rows; encoder: {', '.join(prepared.encoder_rows)}; "
            f"{seconds:.0f} s",
            flush=True,
        )
    return results


def main() -> None:
    """Run the cases that are asked for, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("sib200", "exams"), default="")
    chosen: Any = parser.parse_args()
    folder = Path(os.environ.get("COMPASS_TEST_DATA", "../shared/data"))
    if not (folder / "scenarios.json").is_file():
        raise SystemExit(f"No data in {folder}: set COMPASS_TEST_DATA.")
    data, names = DataFolder(folder), ("compass", GAP_ARM, *sorted({*STRATEGIES} - {"compass"}))
    if chosen.only != "exams":
        shipped = [case for case in read_cases(folder / "scenarios.json") if case.selects]
        cases = [*shipped, *sib200_cases(data)]
        print_tables("sib200", run_cases(cases, data, chosen.seeds, names), names)
    if chosen.only != "sib200":
        results = run_cases(list(exams_cases(data)), data, chosen.seeds, names)
        print_tables("exams", results, names)


if __name__ == "__main__":
    main()

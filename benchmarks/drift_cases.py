"""Drift cases like those of ``scenarios.json``, for other languages, sources and subjects.

    python benchmarks/drift_cases.py [--data DATA] [--first 0] [--cases 16] [--splits 20] [--seed 0]

A case has a reference of 300 rows and six windows of 100, of real rows of one language. Windows 0
to 2 are drawn as the reference is; of windows 3, 4 and 5 a third, two thirds and all rows are of
another kind: another file, or other subjects. It holds when no window before 3 is an alarm and one
up to 4 is, at α = .01 of a single window with 20 clusters. A control is only windows like the
reference, and holds without an alarm in all six.

"Resplit" counts alarms where nothing changed: rows of the reference and of the windows like it are
mixed and divided anew, so often, in the space the case was checked in. Splits of one case share
their rows, so the interval (Clopper and Pearson's, 95 %) is somewhat too narrow.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from compass_core.monitoring.drift import Sample
from compass_core.scenarios.cases import Case, DriftExpected, DriftSettings
from compass_core.scenarios.data import DataFolder, Row, known_language
from compass_core.scenarios.drift import PreparedDriftCase, check_drift_case, prepare_drift_case
from compass_core.seeding import derive_rng
from tasks.scenarios import data_folder

N_REFERENCE, N_WINDOW, N_WINDOWS, FIRST_MIXED = 300, 100, 6, 3
NEW_ROWS = (33, 67, 100)
SETTINGS = DriftSettings(min_prompts=100, n_clusters=20, alpha=0.01)


@dataclass(frozen=True)
class Kind:
    """Rows that a window may hold: of one file, all topics or some (or all but some)."""

    file: str
    topics: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    def rows(self, data: DataFolder, language: str) -> list[Row]:
        """Return the rows of one language, by id."""
        return sorted(
            (
                row
                for row in data.rows(self.file)
                if row.language == language
                and (not self.topics or row.topic in self.topics)
                and row.topic not in self.but
            ),
            key=lambda row: row.id,
        )


SIB, TICO, XQUAD, MGSM = Kind("sib200"), Kind("tico19"), Kind("xquad"), Kind("mgsm")
LEISURE = ("sports", "entertainment")
NATURAL = ("Biology", "Chemistry", "Physics")
WANTED: tuple[tuple[str, Kind, Kind | None], ...] = (
    ("bn", SIB, TICO),
    ("de", SIB, XQUAD),
    ("tr", Kind("exams", but=NATURAL), Kind("exams", NATURAL)),
    ("fi", SIB, None),
    ("ja", SIB, MGSM),
    ("bg", Kind("exams", but=NATURAL), Kind("exams", NATURAL)),
    ("hi", TICO, SIB),
    ("el", Kind("sib200", but=LEISURE), Kind("sib200", LEISURE)),
    ("vi", SIB, XQUAD),
    ("hr", Kind("exams"), None),
    ("pl", SIB, Kind("exams")),
    ("id", TICO, None),
    ("es", SIB, MGSM),
    ("sq", Kind("exams", but=NATURAL), Kind("exams", NATURAL)),
    ("sw", Kind("sib200", but=LEISURE), Kind("sib200", LEISURE)),
    ("zh", TICO, XQUAD),
)
"""Language, usual kind of rows, new kind; without a new kind it is a control."""


def make_case(
    code: str, usual: Kind, new: Kind | None, data: DataFolder, rng: np.random.Generator
) -> Case:
    """Draw the rows of one case."""
    language = known_language(code)
    old = rng.permutation([row.id for row in usual.rows(data, language)]).tolist()
    fresh = rng.permutation([row.id for row in new.rows(data, language)]).tolist() if new else []
    reference, windows = [old.pop() for _ in range(N_REFERENCE)], []
    for number in range(N_WINDOWS):
        n_new = NEW_ROWS[number - FIRST_MIXED] if new and number >= FIRST_MIXED else 0
        window = [fresh.pop() for _ in range(n_new)]
        windows.append(tuple(window + [old.pop() for _ in range(N_WINDOW - n_new)]))
    name = f"{code} {_told(usual)} -> {_told(new)}" if new else f"{code} {_told(usual)}, control"
    files = tuple(dict.fromkeys([usual.file, *([new.file] if new else [])]))
    return Case(
        name=name,
        kind="drift" if new else "no_drift_control",
        files=files,
        target_language=code,
        existing_ids=(),
        usage_ids=(),
        pool=None,
        gap_topics=(),
        budget=0,
        raw={},
        reference_ids=tuple(reference),
        windows=tuple(windows),
        drift=SETTINGS,
        expected=DriftExpected(no_alarm_before_window=3, alarm_no_later_than_window=4)
        if new
        else DriftExpected(no_alarm_in_any_window=True),
    )


def _told(kind: Kind | None) -> str:
    assert kind is not None
    if kind.topics:
        return f"{kind.file} {kind.topics[0].lower()} etc."
    return f"{kind.file} others" if kind.but else kind.file


def resplit(
    prepared: PreparedDriftCase, n_splits: int, rng: np.random.Generator
) -> Iterator[PreparedDriftCase]:
    """Yield the case with its unchanged rows divided anew."""
    n_usual = N_WINDOWS if prepared.case.kind == "no_drift_control" else FIRST_MIXED
    groups = [prepared.reference, *prepared.windows[:n_usual]]
    ids = np.concatenate([group.cluster_ids for group in groups])
    outside = np.concatenate([group.outside for group in groups])
    bounds = np.cumsum([len(group) for group in groups])[:-1]
    for _ in range(n_splits):
        parts = np.split(rng.permutation(len(ids)), bounds)
        samples = [Sample(ids[part], outside[part]) for part in parts]
        yield replace(prepared, reference=samples[0], windows=samples[1:])


def interval(hits: int, n: int) -> str:
    """Return the share of hits with its 95 % interval."""
    low = float(stats.beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return f"{hits / n:.4f} [{low:.4f}, {high:.4f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="")
    parser.add_argument("--first", type=int, default=0, help="case to begin with")
    parser.add_argument("--cases", type=int, default=len(WANTED))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    data = DataFolder(data_folder(options.data))
    print(f"{'case':44} {'p of windows 0 to 5':46} {'holds':6} {'resplit':>8} {'s':>4}")
    held, seen = {"drift": 0, "no_drift_control": 0}, {"drift": 0, "no_drift_control": 0}
    alarms = checks = 0
    for code, usual, new in WANTED[options.first : options.first + options.cases]:
        started = time.perf_counter()
        rng = derive_rng(options.seed, "drift-cases", code, _told(usual))
        case = make_case(code, usual, new, data, rng)
        with tempfile.TemporaryDirectory() as work:
            prepared = prepare_drift_case(case, data, Path(work), seed=options.seed)
        outcome = check_drift_case(prepared, seed=options.seed)
        again = [
            window.alarm
            for split in resplit(prepared, options.splits, rng)
            for window in check_drift_case(split, seed=options.seed).windows
        ]
        held[case.kind] += outcome.holds
        seen[case.kind] += 1
        alarms, checks = alarms + sum(again), checks + len(again)
        p_values = " ".join(f"{window.report.p_value:.4f}" for window in outcome.windows)
        print(
            f"{case.name:44} {p_values:46} {'yes' if outcome.holds else 'NO':6} "
            f"{sum(again):3} /{len(again):3} {time.perf_counter() - started:4.0f}",
            flush=True,
        )
    print(f"drift cases that hold: {held['drift']} of {seen['drift']}")
    print(f"controls that hold: {held['no_drift_control']} of {seen['no_drift_control']}")
    print(f"alarms of resplit windows: {alarms} of {checks}: {interval(alarms, checks)}")


if __name__ == "__main__":
    main()

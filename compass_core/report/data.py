"""What a report shows, as plain values; ``report.json`` keeps them so that a page can be re-made.

    RunReport ── LanguageReport ── ArmResult, ClusterRow, MapPoint
              ├─ StudyReport
              └─ ContinualReport

Shares, accuracies and differences are fractions; ``None`` or NaN means "not measured" (a dash).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from compass_core.languages import language_name
from compass_core.report import continual_data
from compass_core.report.continual_data import ContinualReport
from compass_core.report.values import dump, known, load, many

REPORT_VERSION = 1
"""Version of ``report.json``; raised when a reader of the old one would misread the new one."""

Status = Literal["promoted", "kept", "failed", "selected", "scored"]
"""promoted: new champion · kept: the champion stays · failed · selected: nothing was trained ·
scored: trained and compared, never up for promotion."""

Role = Literal["usage", "coverage", "selected", "pool"]
"""What a point of the map is."""

Point = tuple[float, float]
"""(x, y) of a curve, for example (optimiser step, loss)."""


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One way of training (or none), scored on the test items of one language.

    Attributes:
        arm: zero-shot, target-only, random, similar, all-data, compass, or another name.
        accuracy: Usage-weighted accuracy: the headline.
        low: Lower end of its confidence interval.
        high: Upper end of its confidence interval.
        missing: Accuracy on topics that the coverage lacks.
        covered: Accuracy on topics that the coverage has.
        n_items: Test items scored.
        steps: Optimiser steps.
        n_selected: Pool examples trained on, beside the coverage.
    """

    arm: str
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    missing: float | None = None
    covered: float | None = None
    n_items: int = 0
    steps: int = 0
    n_selected: int = 0


@dataclass(frozen=True, slots=True)
class ClusterRow:
    """One cluster of meaning.

    Attributes:
        cluster: 0-based number.
        label: Characteristic terms; comes from users' data, so it may hold anything.
        usage_share: Share of usage, equation (1).
        coverage_share: Share of coverage, equation (2).
        gap: Shortfall of coverage, equation (3).
        capacity: Pool examples available.
        allocation: Pool examples taken.
        accuracy_before: Accuracy of the base or champion on the cluster's test items.
        accuracy_after: Accuracy of the new adapter on the same items.
        n_items: Test items in the cluster.
    """

    cluster: int
    label: str
    usage_share: float
    coverage_share: float
    gap: float
    capacity: int = 0
    allocation: int = 0
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    n_items: int = 0


@dataclass(frozen=True, slots=True)
class MapPoint:
    """One example on the 2-D map of the semantic space; x and y in any unit."""

    x: float
    y: float
    role: Role
    cluster: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageReport:
    """Everything shown about one target language.

    Attributes:
        language: Canonical code, for example ``swh_Latn``.
        name: Name people know.
        script: ISO 15924 code or name of the writing system.
        status: Outcome, see `Status`.
        error: What went wrong, where the status is ``failed``.
        arms: Scored arms, in any order.
        clusters: Clusters, in any order.
        points: Points of the map; at most some hundreds per role are drawn.
        source_counts: Selected examples by source language and cluster.
        health: Figures about the clusters by name; lists per cluster are kept, not shown.
        health_warnings: What looked wrong there, as sentences.
        verdict_reasons: Why it was promoted or not, most important first.
        history: Per arm the training loss, as (step, loss).
        trivial: Accuracy of trivial baselines by name, for example ``majority``.
        selection_curve: One mapping per number of clusters tried: ``k`` and its score.
        chosen_k: Number of clusters chosen.
        chosen_by: Name of the score that chose it, where several numbers were tried.
        timings: Seconds by stage.
        links: Where to look further, by what is found there.
        fingerprints: Identity of each stage's output, by stage.
    """

    language: str
    name: str
    script: str = ""
    status: Status = "selected"
    error: str = ""
    arms: list[ArmResult] = field(default_factory=list)
    clusters: list[ClusterRow] = field(default_factory=list)
    points: list[MapPoint] = field(default_factory=list)
    source_counts: dict[str, dict[int, int]] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=dict)
    health_warnings: list[str] = field(default_factory=list)
    verdict_reasons: list[str] = field(default_factory=list)
    history: dict[str, list[Point]] = field(default_factory=dict)
    trivial: dict[str, float | None] = field(default_factory=dict)
    selection_curve: list[dict[str, float | None]] = field(default_factory=list)
    chosen_k: int | None = None
    chosen_by: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def arm(self, name: str) -> ArmResult | None:
        """Return the result of arm `name`, if it was scored."""
        return next((arm for arm in self.arms if arm.arm == name), None)


@dataclass(frozen=True, slots=True)
class StudyCell:
    """One trained and scored combination of a study; values as in `ArmResult`."""

    language: str
    seed: int
    arm: str
    accuracy: float | None
    missing: float | None = None
    covered: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired differences of two arms over languages.

    Attributes:
        comparison: Both arms, for example ``compass - random``.
        metric: ``accuracy``, ``missing`` or ``covered``.
        mean_difference: Mean over languages of first minus second.
        low: Lower end of its interval.
        high: Upper end of its interval.
        p: Two-sided p of the sign-flip test.
        p_holm: The same after Holm's correction.
        cohens_d: Mean over standard deviation of the differences.
        n_languages: Languages compared.
    """

    comparison: str
    metric: str
    mean_difference: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    cohens_d: float | None = None
    n_languages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyReport:
    """A grid of languages, seeds and arms at equal budgets and equal optimiser steps."""

    languages: list[str]
    seeds: list[int]
    arms: list[str]
    cells: list[StudyCell]
    comparisons: list[Comparison] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything one page shows.

    Attributes:
        run_id: Name of the run's folder.
        project: Project of the configuration.
        title: Headline of the page.
        started: ISO 8601 time.
        finished: ISO 8601 time, empty while running.
        config_summary: Settings worth knowing, as text.
        notes: Honest labels: what the numbers are not evidence of.
        languages: One report each.
        study: The study, if the run was one.
        continual: The continual study, if the run was one.
        versions: Versions of libraries, models and the package.
        links: Where the user interfaces and files of the run are.
        confidence: Level of all intervals.
        main_arm: The arm that is up for promotion.
    """

    run_id: str
    project: str
    title: str = "COMPASS run"
    started: str = ""
    finished: str = ""
    config_summary: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    languages: list[LanguageReport] = field(default_factory=list)
    study: StudyReport | None = None
    continual: ContinualReport | None = None
    versions: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    confidence: float = 0.95
    main_arm: str = "compass"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One line of the index of runs.

    Attributes:
        run_id: Name of the run's folder.
        project: Project of the configuration.
        title: Headline of the run's page.
        started: ISO 8601 time.
        finished: ISO 8601 time.
        href: Where the run's page is, relative to the index.
        languages: Names of the target languages.
        promoted: Languages with a new champion.
        kept: Languages whose champion stays.
        failed: Languages that failed.
        mean_gain: Mean over languages of the main arm's accuracy minus zero-shot.
    """

    run_id: str
    project: str
    title: str
    started: str
    finished: str
    href: str
    languages: list[str]
    promoted: int
    kept: int
    failed: int
    mean_gain: float | None


def is_number(value: float | None) -> bool:
    """Say whether `value` was measured: neither ``None`` nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the measured `values`, ``None`` if there is none."""
    known = [value for value in values if value is not None and is_number(value)]
    return math.fsum(known) / len(known) if known else None


def difference(first: float | None, second: float | None) -> float | None:
    """Return `first` minus `second` where both were measured."""
    gap = math.nan if first is None or second is None else first - second
    return gap if math.isfinite(gap) else None


def arm_gains(report: RunReport, baseline: str) -> list[float]:
    """Return per language the main arm's accuracy minus that of `baseline`, where both exist."""
    gains = []
    for language in report.languages:
        main, other = language.arm(report.main_arm), language.arm(baseline)
        gain = difference(main.accuracy, other.accuracy) if main and other else None
        if gain is not None:
            gains.append(gain)
    return gains


def summarise_run(report: RunReport, href: str) -> RunSummary:
    """Return the index line of `report`, whose page is at `href`."""
    counts = Counter(language.status for language in report.languages)
    return RunSummary(
        run_id=report.run_id,
        project=report.project,
        title=report.title,
        started=report.started,
        finished=report.finished,
        href=href,
        languages=_names(report),
        promoted=counts["promoted"],
        kept=counts["kept"],
        failed=counts["failed"],
        mean_gain=mean(arm_gains(report, "zero-shot")),
    )


def _names(report: RunReport) -> list[str]:
    if report.continual is not None:
        return [language_name(code) for code in report.continual.languages]
    return [language.name for language in report.languages]


def to_json(report: RunReport) -> str:
    """Return `report` as JSON; what was not measured becomes null."""
    return dump(report, REPORT_VERSION)


def from_json(text: str) -> RunReport:
    """Rebuild a report from `to_json`; keys of later additions are left out.

    Raises:
        DataError: `text` is not such a report, or one of another version.
    """
    return load(text, file="report.json", version=REPORT_VERSION, build=_run, what="run report")


def _with_shares(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cluster whose shares are numbers again where they were not measured."""
    shares = {name: row[name] for name in ("usage_share", "coverage_share", "gap")}
    return {**row, **{name: math.nan if x is None else x for name, x in shares.items()}}


def _run(values: Mapping[str, Any]) -> RunReport:
    kept = known(RunReport, values)
    kept["languages"] = [_language(row) for row in values.get("languages", [])]
    study = values.get("study")
    kept["study"] = _study(study) if study else None
    continual = values.get("continual")
    kept["continual"] = continual_data.from_values(continual) if continual else None
    return RunReport(**kept)


def _language(values: Mapping[str, Any]) -> LanguageReport:
    kept = known(LanguageReport, values)
    kept["arms"] = many(ArmResult, values.get("arms", []))
    kept["clusters"] = many(ClusterRow, map(_with_shares, values.get("clusters", [])))
    kept["points"] = many(MapPoint, values.get("points", []))
    kept["source_counts"] = {
        source: {int(cluster): count for cluster, count in counts.items()}
        for source, counts in values.get("source_counts", {}).items()
    }
    kept["history"] = {
        arm: [(x, y) for x, y in curve] for arm, curve in values.get("history", {}).items()
    }
    return LanguageReport(**kept)


def _study(values: Mapping[str, Any]) -> StudyReport:
    kept = known(StudyReport, values)
    kept["cells"] = many(StudyCell, values["cells"])
    kept["comparisons"] = many(Comparison, values.get("comparisons", []))
    return StudyReport(**kept)

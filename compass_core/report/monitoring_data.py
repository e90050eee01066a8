"""What the monitoring page shows, as plain values; ``monitoring.json`` keeps them.

    MonitoringReport ── WatchedLanguage ── WindowPoint ── MovedCluster
                                        ├─ UpdatePoint
                                        └─ AccuracyPoint

Times are ISO 8601 with a zone. Shares and accuracies are fractions, drift scores are bits;
``None`` or NaN means "not measured" (a dash).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from compass_core.report.values import dump, known, load, many

MONITORING_VERSION = 1
"""Version of ``monitoring.json``."""

WindowStatus = Literal["open", "empty", "insufficient", "stable", "alarm"]
"""open: not closed yet · empty: no prompt · insufficient: too few for a decision · stable ·
alarm: p-value at or below the level of the check."""

UpdateStatus = Literal["promoted", "retrained", "refused", "superseded", "failed", "running"]
"""promoted: the update serves · retrained: full retraining serves · refused: the champion stays ·
superseded: another champion served by then, so nothing was trained."""


@dataclass(frozen=True, slots=True)
class MovedCluster:
    """One cluster whose share of usage changed.

    A page shows what stands here: what too few users make up is left out, or merged, before
    (`compass_core.monitoring.shown`).

    Attributes:
        label: Characteristic terms; comes from users' data, so it may hold anything.
        reference_share: Its share of the reference, ``None`` where too few users make it up.
        current_share: Its share of the window, likewise.
        p: p-value of the change of this cluster.
    """

    label: str
    reference_share: float | None
    current_share: float | None
    p: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPoint:
    """One window of usage and what the test said about it.

    Attributes:
        name: Name of the window.
        start: Its start.
        end: Its end, exclusive.
        n_prompts: Prompts in it.
        n_units: Users (or sessions), ``None`` where they are unknown.
        status: See `WindowStatus`.
        score: Drift score, equation (5), bits.
        threshold: Quantile of the no-change null of the score for the sizes of this window.
        p_value: Combined p-value.
        level: The p-value at or below which the window is an alarm.
        p_score: p-value of the drift score alone.
        p_cluster: p-value of the largest change of one cluster or of the novelty share.
        p_novel: p-value of the novelty share.
        novel_current: Share of the window's prompts outside every cluster.
        novel_reference: The same of the reference.
        excess: Score beyond the mean of its null: the effect, bits.
        total_variation: Half the sum of absolute differences of the shares.
        moved: Clusters that moved, largest change first.
        drift_detected: The window completed a drift.
        in_cooldown: No drift could be declared in this window.
        n_reference: Prompts of the reference.
        units_reference: Its users or sessions.
        n_permutations: Permutations of the test.
        unit: What was resampled: user, session or prompt.
        seed: Seed of the permutations.
        champion: Version that served, empty where there was none.
        event: Drift event that the window completed.
        n_late: Records that came after the window was decided; they count in none.
        notes: What else is worth knowing, as sentences.
    """

    name: str
    start: str
    end: str
    n_prompts: int = 0
    n_units: int | None = None
    status: WindowStatus = "stable"
    score: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    level: float | None = None
    p_score: float | None = None
    p_cluster: float | None = None
    p_novel: float | None = None
    novel_current: float | None = None
    novel_reference: float | None = None
    excess: float | None = None
    total_variation: float | None = None
    moved: list[MovedCluster] = field(default_factory=list)
    drift_detected: bool = False
    in_cooldown: bool = False
    n_reference: int | None = None
    units_reference: int | None = None
    n_permutations: int | None = None
    unit: str = ""
    seed: int | None = None
    champion: str = ""
    event: str = ""
    n_late: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePoint:
    """One attempt to update the champion.

    Attributes:
        time: When it was decided (or started, while it runs).
        event: Drift event that started it, empty where a person did.
        version: Version of the challenger, empty where none was registered.
        status: See `UpdateStatus`.
        reasons: Why, most important first.
        accuracy_before: Accuracy of the champion on the new slice.
        accuracy_after: Accuracy of the challenger on the same items.
        forgetting: Mean over older slices of champion minus challenger; below 0 is a gain.
        run_id: Run that made it.
    """

    time: str
    event: str = ""
    version: str = ""
    status: UpdateStatus = "promoted"
    reasons: list[str] = field(default_factory=list)
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    forgetting: float | None = None
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class AccuracyPoint:
    """Accuracy of one champion from the time on from which it served.

    Attributes:
        time: When it was promoted.
        version: Its version.
        accuracy: Accuracy on the test items of its promotion.
        low: Lower end of its interval.
        high: Upper end of its interval.
        n_items: Items it was scored on.
    """

    time: str
    version: str
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    n_items: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedLanguage:
    """Everything shown about one language that is watched.

    Attributes:
        language: Canonical code.
        name: Name people know.
        champion: Version that serves, empty where there is none.
        base: Base model it stands on.
        windows: Windows in any order; those of other spaces too.
        updates: Updates in any order.
        accuracy: Champions in any order.
        event: Newest drift event that is not done, empty where there is none.
        event_state: ``pending``: nobody took it yet · ``taken``: an update works on it.
        n_pending: Drift events that are not done.
        unit: What was asked to be resampled: user, session or prompt; a window that lacks it says
            what it used instead.
        min_shown: A cluster with fewer units is never shown by itself.
        n_clusters: Clusters of the monitoring space.
        checked: When a monitor last looked at it, empty where none did.
        n_quarantined: Records of the log that could not be used, by reason.
        notes: What else is worth knowing, as sentences.
        error: Why the language could not be read, where it could not.
    """

    language: str
    name: str
    champion: str = ""
    base: str = ""
    windows: list[WindowPoint] = field(default_factory=list)
    updates: list[UpdatePoint] = field(default_factory=list)
    accuracy: list[AccuracyPoint] = field(default_factory=list)
    event: str = ""
    event_state: Literal["", "pending", "taken"] = ""
    n_pending: int = 0
    unit: str = "user"
    min_shown: int = 20
    n_clusters: int | None = None
    checked: str = ""
    n_quarantined: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringReport:
    """Everything the monitoring page shows.

    Attributes:
        created: When it was put together.
        title: Headline of the page.
        languages: One entry each, in any order.
        notes: Honest labels: what the numbers are not evidence of.
        links: Where the user interfaces and files are.
        versions: Versions of libraries and the package.
    """

    created: str
    title: str = "COMPASS: usage over time"
    languages: list[WatchedLanguage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def to_json(report: MonitoringReport) -> str:
    """Return `report` as JSON; what was not measured becomes null."""
    return dump(report, MONITORING_VERSION)


def from_json(text: str) -> MonitoringReport:
    """Rebuild a report from `to_json`; keys of later additions are left out.

    Raises:
        DataError: `text` is not such a report, or one of another version.
    """
    return load(
        text,
        file="monitoring.json",
        version=MONITORING_VERSION,
        build=_report,
        what="monitoring report",
    )


def _report(values: Mapping[str, Any]) -> MonitoringReport:
    kept = known(MonitoringReport, values)
    kept["languages"] = [_language(row) for row in values.get("languages", [])]
    return MonitoringReport(**kept)


def _language(values: Mapping[str, Any]) -> WatchedLanguage:
    kept = known(WatchedLanguage, values)
    kept["windows"] = [_window(row) for row in values.get("windows", [])]
    kept["updates"] = many(UpdatePoint, values.get("updates", []))
    kept["accuracy"] = many(AccuracyPoint, values.get("accuracy", []))
    return WatchedLanguage(**kept)


def _window(values: Mapping[str, Any]) -> WindowPoint:
    kept = known(WindowPoint, values)
    kept["moved"] = many(MovedCluster, values.get("moved", []))
    return WindowPoint(**kept)

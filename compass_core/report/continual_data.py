"""What a continual study shows, as plain values: arms that learn a sequence of shifts.

    ContinualReport ── ContinualCell   accuracy of one arm after one stage on one slice
                    ├─ ContinualCost   tokens and seconds of one stage
                    └─ ArmSummary      learning, forgetting, final accuracy, cost

Stage 0 is the first training, stage i the update to shift i; slice i is the test set of shift i.
Accuracies are fractions; ``None`` or NaN means "not measured" (a dash).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compass_core.report.values import dump, known, load, many

CONTINUAL_VERSION = 1
"""Version of a continual report that stands alone."""

Interval = tuple[float, float]
"""(lower end, upper end)."""


@dataclass(frozen=True, slots=True)
class ContinualCell:
    """Accuracy on one slice after one stage.

    Attributes:
        language: Canonical code.
        seed: Seed of the sequence.
        arm: frozen, naive, ewc-only, replay-only, rehearsal, ecda, full.
        stage: 0-based stage after which it was scored.
        slice: 0-based slice it was scored on; `stage` + 1 is the slice before it is learnt.
        accuracy: Usage-weighted accuracy.
    """

    language: str
    seed: int
    arm: str
    stage: int
    slice: int
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class ContinualCost:
    """What one stage of one arm cost.

    Attributes:
        language: Canonical code.
        seed: Seed of the sequence.
        arm: Its arm.
        stage: 0-based stage; stage 0 is shared by all arms.
        tokens_task: Tokens through forward and backward for the task.
        tokens_replay: The same for replayed examples.
        tokens_fisher: The same for the Fisher information.
        seconds: Seconds it took.
    """

    language: str
    seed: int
    arm: str
    stage: int
    tokens_task: int
    tokens_replay: int = 0
    tokens_fisher: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm over all shifts.

    Attributes:
        arm: Its name.
        learning: Mean over shifts of the score on the new slice after its stage minus before.
        forgetting: Mean over older slices of the best past score minus the score now.
        final_accuracy: Mean over all slices after the last stage.
        cost_tokens: Tokens of all shifts: task, replay and Fisher.
        cost_share_of_full: The same relative to full retraining.
        intervals: Ends of the intervals by attribute name (``learning``, ``forgetting``,
            ``final_accuracy``).
        language: The language it is of, empty for the mean over languages.
    """

    arm: str
    learning: float | None = None
    forgetting: float | None = None
    final_accuracy: float | None = None
    cost_tokens: float | None = None
    cost_share_of_full: float | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    language: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """Something the study was to show.

    Attributes:
        text: What was claimed ("ECDA forgets at most a third of what naive forgets").
        found: What was measured, as text.
        met: Whether it holds, ``None`` where it could not be said.
    """

    text: str
    found: str
    met: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinualReport:
    """A grid of languages, seeds and arms over the same sequence of shifts.

    Attributes:
        languages: Canonical codes.
        seeds: Seeds; each draws its own sequence.
        arms: Arms.
        n_stages: Stages, the first training included.
        cells: Every score.
        costs: Every cost.
        summary: Per arm over all languages (``language`` empty), and per arm and language.
        claims: What was to be shown, and what came out.
        confidence: Level of the intervals.
        notes: What else is worth knowing, as sentences.
    """

    languages: list[str]
    seeds: list[int]
    arms: list[str]
    n_stages: int
    cells: list[ContinualCell] = field(default_factory=list)
    costs: list[ContinualCost] = field(default_factory=list)
    summary: list[ArmSummary] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    confidence: float = 0.95
    notes: list[str] = field(default_factory=list)

    def arm(self, name: str, language: str = "") -> ArmSummary | None:
        """Return the summary of arm `name` of `language`, or over all languages."""
        return next(
            (row for row in self.summary if row.arm == name and row.language == language), None
        )


def to_json(report: ContinualReport) -> str:
    """Return `report` as JSON; what was not measured becomes null."""
    return dump(report, CONTINUAL_VERSION)


def from_json(text: str) -> ContinualReport:
    """Rebuild a report from `to_json`; keys of later additions are left out.

    Raises:
        DataError: `text` is not such a report, or one of another version.
    """
    return load(
        text,
        file="continual.json",
        version=CONTINUAL_VERSION,
        build=from_values,
        what="continual report",
    )


def from_values(values: Mapping[str, Any]) -> ContinualReport:
    """Rebuild a report from its JSON values."""
    kept = known(ContinualReport, values)
    kept["cells"] = many(ContinualCell, values.get("cells", []))
    kept["costs"] = many(ContinualCost, values.get("costs", []))
    kept["summary"] = [_summary(row) for row in values.get("summary", [])]
    kept["claims"] = many(Claim, values.get("claims", []))
    return ContinualReport(**kept)


def _summary(values: Mapping[str, Any]) -> ArmSummary:
    kept = known(ArmSummary, values)
    kept["intervals"] = {
        name: (ends[0], ends[1]) for name, ends in values.get("intervals", {}).items()
    }
    return ArmSummary(**kept)

"""One drift case through the product's own functions: encoder, space, a check per window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.config import ClusteringConfig, DriftConfig
from compass_core.embedding import load_encoder
from compass_core.embedding_batches import encode_texts
from compass_core.errors import DataError
from compass_core.monitoring.decisions import Check, decide_drift
from compass_core.monitoring.drift import DriftReport, Sample, detect_drift
from compass_core.ngram_encoder import fit_ngram_encoder
from compass_core.scenarios.cases import Case, DriftExpected
from compass_core.scenarios.data import DataFolder, Row, encoder_rows, known_language
from compass_core.seeding import derive_seed
from compass_core.selection.centring import language_means, sum_by_language
from compass_core.selection.drawing import example_keys
from compass_core.selection.space import Space, fit_space, locate, sample_rows, take_off

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class PreparedDriftCase:
    """A drift case with its rows placed in clusters.

    Attributes:
        case: The case.
        reference: Where the rows of the reference lie.
        windows: Where those of each window lie, in the order of time.
        n_clusters: K.
        n_fitted: Rows of other languages that the clusters were fitted on.
        encoder_rows: What the encoder was fitted on.
    """

    case: Case
    reference: Sample
    windows: list[Sample]
    n_clusters: int
    n_fitted: int
    encoder_rows: list[str]


@dataclass(frozen=True)
class CheckedWindow:
    """One window.

    Attributes:
        report: The check.
        alarm: What the case's decision makes of it.
    """

    report: DriftReport
    alarm: bool


@dataclass(frozen=True)
class DriftOutcome:
    """A drift case and what was seen.

    Attributes:
        case: The case.
        windows: Its windows, in the order of time.
    """

    case: Case
    windows: list[CheckedWindow]

    def to_dict(self) -> dict[str, Any]:
        """Return what the results file holds, as plain JSON values."""
        windows = [
            {"p": w.report.p_value, "score": w.report.score, "alarm": w.alarm} for w in self.windows
        ]
        return {"name": self.case.name, "windows": windows}

    @property
    def holds(self) -> bool:
        """Whether alarms came when they were expected, and at no other time."""
        return alarms_as_expected([window.alarm for window in self.windows], self.case.expected)


def alarms_as_expected(alarms: Sequence[bool], expected: DriftExpected) -> bool:
    """Say whether alarms (one entry per window) are what a case asks for.

    Examples:
        >>> expected = DriftExpected(no_alarm_before_window=1, alarm_no_later_than_window=2)
        >>> alarms_as_expected([False, False, True], expected)
        True
        >>> alarms_as_expected([True, False, True], expected)
        False
    """
    if any(alarms) and expected.no_alarm_in_any_window:
        return False
    if any(alarms[: expected.no_alarm_before_window]):
        return False
    latest = expected.alarm_no_later_than_window
    return latest is None or any(alarms[: latest + 1])


def prepare_drift_case(
    case: Case, data: DataFolder, work: Path, *, seed: int = 0
) -> PreparedDriftCase:
    """Gather a case's rows, fit its encoder and its clusters, and place the rows.

    Nothing that is fitted has seen a row of the reference or of a window, nor treats the two
    differently: the encoder takes parallel rows that translate none of them, each language's mean
    is that of the encoder's own rows, and the clusters stand on rows of other languages.

    Args:
        case: A drift case.
        data: The data folder.
        work: Folder for the encoder.
        seed: Of encoder and clusters.

    Raises:
        DataError: rows are missing, or too few parallel rows or rows of other languages are free.
    """
    target = known_language(case.target_language)
    reference = data.find(case.files, case.reference_ids, "reference_ids")
    windows = [
        data.find(case.files, ids, f"ids of window {number}")
        for number, ids in enumerate(case.windows)
    ]
    own = [*reference, *(row for window in windows for row in window)]
    others = [row for name in case.files for row in data.rows(name) if row.language != target]
    parallel, told = encoder_rows(
        data,
        case.files,
        used={row.parallel_id for row in own} - {""},
        languages={row.language for row in others} | {target},
    )
    folder = fit_ngram_encoder(parallel, work / "encoder", seed=seed)
    vectors = _Vectors(load_encoder(str(folder), device="cpu"), parallel, reference)
    space = _fit_clusters(case, target, others, vectors, seed)
    placed = [vectors.sample(rows, target, space) for rows in (reference, *windows)]
    n_fitted = len(space.clusters.labels)
    return PreparedDriftCase(case, placed[0], placed[1:], space.n_clusters, n_fitted, told)


def check_drift_case(prepared: PreparedDriftCase, *, seed: int = 0) -> DriftOutcome:
    """Check every window of a case against its reference, one after the other."""
    case = prepared.case
    config = DriftConfig(
        alpha=case.drift.alpha,
        unit="prompt",
        min_prompts=case.drift.min_prompts,
        consecutive=1 if case.drift.decision == "single window" else 2,
        cooldown=0,
    )
    found: list[CheckedWindow] = []
    checks: list[Check] = []
    for number, window in enumerate(prepared.windows):
        report = detect_drift(
            prepared.reference,
            window,
            prepared.n_clusters,
            config,
            seed=derive_seed(seed, case.name, str(number)),
        )
        # Windows of a case have an order but no dates.
        start = datetime(2000, 1, 1, tzinfo=UTC) + timedelta(days=number)
        checks.append(Check(start, report.status, report.p_value, report.level))
        found.append(CheckedWindow(report, decide_drift(checks, config).drift_detected))
    return DriftOutcome(case, found)


class _Vectors:
    """Centred vectors of rows of any language."""

    def __init__(self, encoder: Any, parallel: dict[str, dict[str, str]], own: list[Row]) -> None:
        """Measure the languages' means on translations of the same items.

        A language without such rows, as a target may be, has the mean of `own`, its reference.
        """
        self._encoder = encoder
        pairs = [pair for texts in parallel.values() for pair in texts.items()]
        fitted = {language for language, _ in pairs}
        pairs += [(row.language, row.text) for row in own if row.language not in fitted]
        languages, texts = zip(*pairs, strict=True)
        sums = sum_by_language(encode_texts(encoder, list(texts)), np.array(languages))
        self.means = language_means([sums])

    def centred(self, rows: Sequence[Row]) -> FloatArray:
        vectors = encode_texts(self._encoder, [row.text for row in rows])
        languages = np.array([row.language for row in rows])
        for language in np.unique(languages).tolist():
            own = languages == language
            vectors[own] = take_off(vectors[own], self.means[language])
        return vectors

    def sample(self, rows: Sequence[Row], target: str, space: Space) -> Sample:
        if not rows:
            return Sample(np.zeros(0, np.int32), np.zeros(0, np.bool_))
        vectors = encode_texts(self._encoder, [row.text for row in rows])
        ids, distances = locate(vectors, space.clusters.centroids, self.means[target])
        return Sample(ids, distances > space.radii[ids])


def _fit_clusters(
    case: Case, target: str, others: Sequence[Row], vectors: _Vectors, seed: int
) -> Space:
    """Fit the clusters on rows of other languages, translations of the case's rows included."""
    config = ClusteringConfig(n_clusters=(case.drift.n_clusters,), fit_on="coverage+pool")
    placed = [row for row in others if row.language in vectors.means]
    if len(placed) < case.drift.n_clusters:
        raise DataError(
            f"{case.name}: {', '.join(case.files)} hold {len(placed)} rows of other languages than "
            f"{target}, too few for {case.drift.n_clusters} clusters. Name a file with more.",
            code="E51",
        )
    keys = example_keys(row.id for row in placed)
    everyone = np.ones(len(placed), dtype=np.bool_)
    chosen = sample_rows(target, everyone, keys, config, seed=seed)
    fit = vectors.centred([placed[row] for row in chosen])
    nothing = fit[:0]
    return fit_space(target, fit[:1], nothing, fit, config, seed=seed)

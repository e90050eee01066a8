"""A made-up run of realistic shape: six languages, one of which fails, and a study."""

from __future__ import annotations

import numpy as np
import pytest

from compass_core.report.continual_data import ContinualReport
from compass_core.report.data import (
    ArmResult,
    ClusterRow,
    Comparison,
    LanguageReport,
    MapPoint,
    RunReport,
    StudyCell,
    StudyReport,
)
from compass_core.report.monitoring_data import MonitoringReport
from tests.compass_core.report.samples import continual_report, monitoring_report

ARMS = ("zero-shot", "target-only", "random", "similar", "all-data", "compass")
LANGUAGES = (
    ("swh_Latn", "Swahili", "Latin", "nchi, mji, jimbo"),
    ("arb_Arab", "Arabic", "Arabic", "دولة، مدينة، إقليم"),
    ("hin_Deva", "Hindi", "Devanagari", "देश, शहर, राज्य"),
    ("cmn_Hans", "Chinese", "Simplified Han", "国家、城市、地区"),
    ("tur_Latn", "Turkish", "Latin", "ülke, şehir, bölge"),
    ("amh_Ethi", "Amharic", "Ethiopic", "ሀገር፣ ከተማ፣ ክልል"),
)
SOURCES = tuple(
    f"{iso3}_{script}"
    for script, codes in (
        ("Latn", ("eng", "deu", "fra", "spa", "pol", "vie", "por", "ita", "nld", "ind", "zul")),
        ("Cyrl", ("rus", "ukr")),
        ("Beng", ("ben",)),
        ("Hang", ("kor",)),
        ("Jpan", ("jpn",)),
        ("Hebr", ("heb",)),
        ("Grek", ("ell",)),
    )
    for iso3 in codes
)
TOPICS = ("territory", "currency", "month", "weekday", "unit", "script", "city", "language")


def _arms(rng: np.random.Generator) -> list[ArmResult]:
    centres = dict(zip(ARMS, (0.38, 0.31, 0.41, 0.43, 0.47, 0.55), strict=True))
    results = []
    for arm, centre in centres.items():
        accuracy = float(np.clip(centre + rng.normal(0, 0.03), 0, 1))
        results.append(
            ArmResult(
                arm=arm,
                accuracy=accuracy,
                low=accuracy - 0.042,
                high=accuracy + 0.041,
                missing=float(np.clip(accuracy + rng.normal(0.02, 0.05), 0, 1)),
                covered=float(np.clip(accuracy - rng.normal(0.02, 0.05), 0, 1)),
                n_items=540,
                steps=0 if arm == "zero-shot" else 300,
                n_selected={"random": 400, "similar": 400, "compass": 400, "all-data": 20_658}.get(
                    arm, 0
                ),
            )
        )
    return results


def _clusters(rng: np.random.Generator, words: str, n_clusters: int) -> list[ClusterRow]:
    usage = rng.dirichlet(np.full(n_clusters, 0.6))
    coverage = rng.dirichlet(np.full(n_clusters, 0.4))
    gap = np.maximum(0, usage - coverage)
    allocation = np.floor(400 * gap / gap.sum()).astype(int)
    rows = []
    for cluster in range(n_clusters):
        before = float(rng.uniform(0.1, 0.6))
        n_items = int(rng.integers(0, 30))
        after = float(np.clip(before + rng.normal(0.12, 0.15), 0, 1))
        rows.append(
            ClusterRow(
                cluster=cluster,
                label=f"{TOPICS[cluster % len(TOPICS)]}, {words}",
                usage_share=float(usage[cluster]),
                coverage_share=float(coverage[cluster]),
                gap=float(gap[cluster]),
                capacity=int(allocation[cluster] + rng.integers(0, 400)),
                allocation=int(allocation[cluster]),
                accuracy_before=before if n_items else None,
                accuracy_after=after if n_items else None,
                n_items=n_items,
            )
        )
    return rows


def _points(rng: np.random.Generator, clusters: list[ClusterRow]) -> list[MapPoint]:
    centres = rng.normal(0, 4, size=(len(clusters), 2))
    shares = {
        "usage": [row.usage_share for row in clusters],
        "coverage": [row.coverage_share for row in clusters],
        "selected": [row.allocation for row in clusters],
        "pool": [row.capacity for row in clusters],
    }
    points = []
    for role, weights in shares.items():
        p = np.asarray(weights, dtype=float)
        for cluster in rng.choice(len(clusters), size=600, p=p / p.sum()):
            x, y = centres[cluster] + rng.normal(0, 0.45, size=2)
            points.append(MapPoint(float(x), float(y), role, int(cluster)))
    return points


def _language(index: int) -> LanguageReport:
    rng = np.random.default_rng(index)
    code, name, script, words = LANGUAGES[index]
    if code == "amh_Ethi":
        return LanguageReport(
            language=code,
            name=name,
            script=script,
            status="failed",
            error="E16 coverage.jsonl line 12: column 'prompt' is needed, found 'question'. "
            "Map it with data.coverage.columns.prompt=question.",
        )
    clusters = _clusters(rng, words, 48)
    sources = {
        source: {row.cluster: int(rng.poisson(row.allocation / len(SOURCES))) for row in clusters}
        for source in SOURCES
    }
    steps = np.arange(0, 301, 5)
    history = {
        arm: [
            (float(step), float(1.1 + 2 * np.exp(-step / (60 + 15 * i)) + rng.normal(0, 0.05)))
            for step in steps
        ]
        for i, arm in enumerate(ARMS[1:])
    }
    promoted = index != 2
    reasons = [
        "146 items better, 62 worse than the champion: p < .001 (one-sided exact sign test)",
        "no significant loss on covered topics (p = .61)",
    ]
    if not promoted:
        reasons = ["58 items better, 55 worse than the champion: p = .43, .05 is needed"]
    return LanguageReport(
        language=code,
        name=name,
        script=script,
        status="promoted" if promoted else "kept",
        arms=_arms(rng),
        clusters=clusters,
        points=_points(rng, clusters),
        source_counts=sources,
        health={
            "n_clusters": 48.0,
            "silhouette": 0.143,
            "nmi_language": 0.031,
            "median_mixing": 0.91,
            "js_before": 0.431,
            "js_after": 0.164,
        },
        health_warnings=[] if promoted else ["12 of 48 clusters hold mostly one language."],
        verdict_reasons=reasons,
        history=history,
        trivial={"majority": 0.142, "string_overlap": 0.263},
        selection_curve=[
            {"k": float(k), "silhouette": s}
            for k, s in zip(
                (8, 16, 24, 32, 48, 64), (0.08, 0.1, 0.118, 0.131, 0.143, 0.139), strict=True
            )
        ],
        chosen_k=48,
        timings={
            "ingest": 1.2,
            "embed": 8.4,
            "cluster": 3.1,
            "adapter-train": 74.9,
            "evaluate": 12.0,
        },
        links={
            "MLflow run": "http://127.0.0.1:5000/#/experiments/1",
            "Manifest": "../../store/sample",
        },
        fingerprints={"embed": "0f" * 16, "cluster": "1e" * 16, "adapter-train": "2d" * 16},
    )


def _study() -> StudyReport:
    rng = np.random.default_rng(99)
    languages = [code for code, *_ in LANGUAGES] + ["vie_Latn", "rus_Cyrl"]
    centres = dict(zip(ARMS, (0.38, 0.31, 0.41, 0.43, 0.47, 0.52), strict=True))
    cells = []
    for language in languages:
        level = rng.normal(0, 0.05)
        for seed in (0, 1, 2):
            for arm in ARMS:
                values = [centres[arm] + level + rng.normal(0, 0.02) + d for d in (0, 0.04, -0.03)]
                cells.append(StudyCell(language, seed, arm, *map(float, values)))
    comparisons = [
        Comparison(
            f"compass - {arm}", metric, gain, gain - 0.03, gain + 0.03, p, min(1, 8 * p), d, 8
        )
        for metric, factor in (("accuracy", 1.0), ("missing", 1.4))
        for arm, gain, p, d in (
            ("zero-shot", 0.14 * factor, 0.0004, 2.1),
            ("target-only", 0.21 * factor, 0.0002, 2.9),
            ("random", 0.11 * factor, 0.0039, 1.6),
            ("similar", 0.09 * factor, 0.0078, 1.2),
            ("all-data", 0.05 * factor - 0.04, 0.31, 0.3),
        )
    ]
    return StudyReport(
        languages=languages, seeds=[0, 1, 2], arms=list(ARMS), cells=cells, comparisons=comparisons
    )


@pytest.fixture
def sample_run() -> RunReport:
    """A whole run with a study; the numbers are made up."""
    return RunReport(
        run_id="20260102-1030-sample",
        project="starter",
        title="Sample page with made-up numbers",
        started="2026-01-02T10:30:00+00:00",
        finished="2026-01-02T10:35:41+00:00",
        config_summary={
            "budget": "400",
            "rule": "waterfill",
            "adapter": "lora, r=8",
            "base": "starter",
        },
        notes=[
            "Made-up numbers, to look at the page.",
            "A demonstration corpus from Unicode CLDR: not evidence about Global-MMLU.",
        ],
        languages=[_language(index) for index in range(len(LANGUAGES))],
        study=_study(),
        versions={"compass": "0.1.0", "torch": "2.13.0"},
        links={"Prefect UI": "http://127.0.0.1:4200", "MLflow UI": "http://127.0.0.1:5000"},
    )


@pytest.fixture
def sample_monitoring() -> MonitoringReport:
    """Usage over time of 42 languages; the numbers are made up."""
    return monitoring_report()


@pytest.fixture
def sample_continual() -> ContinualReport:
    """A continual study of three languages; the numbers are made up."""
    return continual_report()

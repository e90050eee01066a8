"""What the report says about one language, read back from its artefacts."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.config import Recipe
from compass_core.evaluation.groups import ArmScore, score_arm
from compass_core.evaluation.trivial import majority, string_overlap
from compass_core.languages import language_name, script
from compass_core.records import ArtifactRef, table_to_examples
from compass_core.report.data import ArmResult, ClusterRow, LanguageReport, MapPoint
from compass_core.seeding import derive_rng
from compass_core.storage import Draft, read_array, read_json, read_table, write_json
from tasks.caching import part
from tasks.evaluation import covered_mask
from tasks.settings import open_store

Outcome = Mapping[str, Any]
ZERO_SHOT = "zero-shot"
_NO_SCORE = {"n_clusters", "n_iterations", "seconds", "min_cluster_size"}
"""What a candidate's entry holds besides its scores."""
_KEPT_SCORES, _KEPT_MASKS = 4_096, 128
"""How many are kept, of artefacts that never change; a mask has a byte per test item."""


def failed_report(outcome: Outcome) -> LanguageReport:
    """Return the report of a language that failed."""
    code = outcome["language"]
    return LanguageReport(
        language=code,
        name=language_name(code),
        script=script(code),
        status="failed",
        error=outcome["error"],
    )


def language_report(outcome: Outcome, recipe: Recipe, *, with_map: bool = True) -> LanguageReport:
    """Return everything the report shows about one language; tables need no points of the map."""
    code = outcome["language"]
    refs = _refs(outcome["artifacts"])
    facts = read_json(_folder(refs["cluster"]) / "space.json")
    main = recipe.selection.strategy
    selection = _ref(outcome["arms"][main]["sample"])
    arms = scored_arms(outcome, recipe) if "locate" in refs else []
    return LanguageReport(
        language=code,
        name=language_name(code),
        script=script(code),
        status=outcome["status"],
        arms=arms,
        clusters=_clusters(outcome, refs, selection, main),
        points=_points(refs) if with_map else [],
        source_counts=_source_counts(selection),
        health=_health(facts, refs, selection),
        health_warnings=_warnings(facts, refs, selection),
        verdict_reasons=list(outcome.get("verdict", {}).get("reasons", [])),
        history=_history(outcome),
        trivial=_trivial(refs, selection) if arms else {},
        selection_curve=[_tried(row) for row in facts["curve"]],
        chosen_k=len(facts["labels"]),
        chosen_by=_chosen_by(facts, recipe),
        timings=dict(outcome["timings"]),
        fingerprints={name: ref.fingerprint for name, ref in refs.items()},
    )


def _warnings(
    facts: Mapping[str, Any], refs: Mapping[str, ArtifactRef], selection: ArtifactRef
) -> list[str]:
    """Return what looked wrong with corpora, clusters and selection."""
    checked: list[str] = read_json(_folder(refs["check"]) / "notes.json")
    chosen = open_store().manifest(selection)["provenance"]["notes"]
    return [*facts["warnings"], *checked, *chosen]


def _health(
    facts: Mapping[str, Any], refs: Mapping[str, ArtifactRef], selection: ArtifactRef
) -> dict[str, Any]:
    """Return the figures about the clusters, and how near the selection brings the data."""
    made = open_store().manifest(selection)["provenance"]
    counts = {f"n_{role}": refs[role].rows for role in ("usage", "coverage", "pool")}
    return {"n_clusters": len(facts["labels"]), **made["match"], **facts["health"], **counts}


def _chosen_by(facts: Mapping[str, Any], recipe: Recipe) -> str:
    """Return the score that decided: without enough held-out usage it is the silhouette."""
    if facts["method"] == "hdbscan":
        return "dbcv"
    asked = recipe.clustering.choose_by
    return asked if asked in facts["chosen"] else "silhouette"


def _tried(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return one point of the curve that the number of clusters was chosen from."""
    values = {name: value for name, value in row.items() if name not in _NO_SCORE}
    return {"k": row["n_clusters"], **values}


def scored_arms(outcome: Outcome, recipe: Recipe) -> list[ArmResult]:
    """Return every scored arm with its interval and its accuracy on missing and covered topics."""
    refs = _refs(outcome["artifacts"])
    groups = (refs["test"], refs["coverage"], refs["cluster"], refs["locate"])
    resampling = (recipe.evaluation.confidence, recipe.evaluation.n_bootstrap, recipe.seed)
    results = []
    for name, arm in outcome["arms"].items():
        if "evaluate" not in arm:
            continue
        found = _arm_score(_ref(arm["evaluate"]), groups, resampling, outcome["language"])
        results.append(
            ArmResult(
                arm=name,
                accuracy=found.accuracy,
                low=found.low,
                high=found.high,
                missing=found.missing,
                covered=found.covered,
                n_items=found.n_items,
                steps=arm["adapter"]["rows"] if "adapter" in arm else 0,
                n_selected=arm["sample"]["rows"] if "sample" in arm else 0,
            )
        )
    return results


@functools.lru_cache(_KEPT_SCORES)
def _arm_score(
    evaluation: ArtifactRef,
    groups: tuple[ArtifactRef, ArtifactRef, ArtifactRef, ArtifactRef],
    resampling: tuple[float, int, int],
    language: str,
) -> ArmScore:
    """Summarise one evaluation, once for the registry, the interface and the report.

    Args:
        evaluation: The scored items.
        groups: Test set, coverage, space and places of the test items.
        resampling: Confidence, draws and seed of the interval.
        language: Canonical code.
    """
    confidence, n_bootstrap, seed = resampling
    return score_arm(
        _correct(evaluation),
        _covered(*groups),
        confidence=confidence,
        n_bootstrap=n_bootstrap,
        rng=derive_rng(seed, "bootstrap", language),
    )


@functools.lru_cache(_KEPT_MASKS)
def _covered(
    test: ArtifactRef, coverage: ArtifactRef, space: ArtifactRef, locate: ArtifactRef
) -> NDArray[np.bool_]:
    groups = {"test": test, "coverage": coverage, "space": space, "locate": locate}
    return _unchangeable(covered_mask(groups))


@functools.lru_cache(_KEPT_MASKS)
def _correct(evaluation: ArtifactRef) -> NDArray[np.bool_]:
    items = read_table(_folder(evaluation) / "items.parquet", ["correct"])
    return _unchangeable(np.asarray(items["correct"].to_pylist(), dtype=np.bool_))


def _unchangeable(array: NDArray[np.bool_]) -> NDArray[np.bool_]:
    array.setflags(write=False)
    return array


def _clusters(
    outcome: Outcome, refs: Mapping[str, ArtifactRef], selection: ArtifactRef, main: str
) -> list[ClusterRow]:
    rows = read_table(_folder(selection) / "clusters.parquet").to_pylist()
    counts, before, after = _cluster_accuracy(outcome, refs, main, len(rows))
    return [
        ClusterRow(
            cluster=row["cluster"],
            label=row["label"],
            usage_share=row["usage_share"],
            coverage_share=row["coverage_share"],
            gap=row["gap"],
            capacity=row["capacity"],
            allocation=row["selected"],
            accuracy_before=before[row["cluster"]],
            accuracy_after=after[row["cluster"]],
            n_items=counts[row["cluster"]],
        )
        for row in rows
    ]


def _cluster_accuracy(
    outcome: Outcome, refs: Mapping[str, ArtifactRef], main: str, n_clusters: int
) -> tuple[list[int], list[float | None], list[float | None]]:
    if "locate" not in refs:
        return [0] * n_clusters, [None] * n_clusters, [None] * n_clusters
    ids = read_array(_folder(refs["locate"]) / "cluster_ids.npy")
    counts = np.bincount(ids, minlength=n_clusters)
    accuracies = []
    for arm in (ZERO_SHOT, main):
        right = _correct(_ref(outcome["arms"][arm]["evaluate"]))
        hits = np.bincount(ids, weights=right, minlength=n_clusters)
        accuracies.append([float(h / n) if n else None for h, n in zip(hits, counts, strict=True)])
    return counts.tolist(), accuracies[0], accuracies[1]


def _points(refs: Mapping[str, ArtifactRef]) -> list[MapPoint]:
    if "map" not in refs:
        return []
    names = [field.name for field in fields(MapPoint)]
    table = read_table(_folder(refs["map"]) / "map.parquet", names)
    return [MapPoint(*row) for row in zip(*(table[n].to_pylist() for n in names), strict=True)]


def _source_counts(selection: ArtifactRef) -> dict[str, dict[int, int]]:
    rows = read_table(_folder(selection) / "selected.parquet", ["language", "cluster"])
    counts: dict[str, dict[int, int]] = {}
    for language, cluster in zip(
        rows["language"].to_pylist(), rows["cluster"].to_pylist(), strict=True
    ):
        of_language = counts.setdefault(language, {})
        of_language[cluster] = of_language.get(cluster, 0) + 1
    return counts


def _history(outcome: Outcome) -> dict[str, list[tuple[float, float]]]:
    history = {}
    for name, arm in outcome["arms"].items():
        if "adapter" in arm:
            rows = read_history(_ref(arm["adapter"]))
            history[name] = [(float(row["step"]), float(row["loss"])) for row in rows]
    return history


def read_history(adapter: ArtifactRef) -> list[dict[str, Any]]:
    """Return the training history of an adapter, one row per logged step."""
    text = (_folder(adapter) / "history.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line]


@part("trivial", 1, libraries=("scikit-learn",))
def trivial_scores(
    draft: Draft, test: ArtifactRef, coverage: ArtifactRef, selection: ArtifactRef
) -> None:
    """Score what needs no model, the most frequent answer and the most similar string."""
    items = table_to_examples(read_table(_folder(test) / "rows.parquet"))
    scores = {}
    if items and items[0].choices:
        known = [read_table(_folder(rows) / "rows.parquet") for rows in (coverage, selection)]
        examples = table_to_examples(pa.concat_tables(known))
        scores = {
            "majority": float(np.mean(majority(items, examples))),
            "string_overlap": float(np.mean(string_overlap(items, examples))),
        }
    write_json(draft.folder / "scores.json", scores)


def _trivial(refs: Mapping[str, ArtifactRef], selection: ArtifactRef) -> dict[str, float | None]:
    made = trivial_scores(refs["test"], refs["coverage"], selection)
    scores: dict[str, float | None] = read_json(_folder(made) / "scores.json")
    return scores


def _folder(ref: ArtifactRef) -> Any:
    return open_store().folder(ref)


def _ref(values: Mapping[str, Any]) -> ArtifactRef:
    return ArtifactRef.from_dict(values)


def _refs(values: Mapping[str, Mapping[str, Any]]) -> dict[str, ArtifactRef]:
    return {name: _ref(ref) for name, ref in values.items()}

"""Why these examples: the largest gaps of one language, and what was taken for them."""

from __future__ import annotations

from typing import Any

from compass_core.errors import DataError
from compass_core.languages import language_name
from compass_core.records import ArtifactRef
from compass_core.storage import read_json, read_table
from tasks.manifests import catalog
from tasks.reporting import read_run
from tasks.settings import open_store

_HEALTH = ("nmi_language", "nmi_topic", "median_mixing", "usage_outside", "retrieval_at_1")
_TEXT = 120
_EXAMPLES = 2
_LOOKED_AT = 1_000
"""Selected examples of a cluster among which the nearest are shown."""


def explain_selection(language: str, run: str, n_clusters: int) -> dict[str, Any]:
    """Return why a selection is what it is, as plain JSON values.

    Args:
        language: Canonical code.
        run: Run id, or ``last``.
        n_clusters: Clusters to tell about, widest gap first.

    Raises:
        DataError: nothing was selected for the language in that run.
    """
    index = catalog()
    summary = index.selection_summary(language, run)
    refs = _artifacts(summary["run_id"], language)
    store = open_store()
    space = read_json(store.folder(refs["cluster"]) / "space.json")
    clusters = index.by_cluster(language, run).to_pylist()
    made = summary["provenance"]
    return {
        "language": language,
        "name": language_name(language),
        "run_id": summary["run_id"],
        "strategy": summary["strategy"],
        "budget": summary["budget"],
        "n_selected": summary["n_examples"],
        "n_usage": refs["usage"].rows,
        "n_coverage": refs["coverage"].rows,
        "n_pool": refs["pool"].rows,
        "n_clusters": len(clusters),
        "n_gap_clusters": summary["n_gap_clusters"],
        "chosen": space["chosen"],
        "match": made["match"],
        "health": {name: space["health"].get(name) for name in _HEALTH},
        "warnings": space["warnings"],
        "exclusions": {name: count for name, count in made["exclusions"].items() if count},
        "excluded_ids": str(store.folder(refs["gap-score"]) / "excluded.parquet"),
        "notes": made["notes"],
        "details": made["details"],
        "sources": {
            language_name(row["source_language"]): row["n_examples"]
            for row in index.by_source_language(language, run).to_pylist()
        },
        "clusters": [
            _cluster(row, space, index.examples(language, run, _LOOKED_AT, cluster=row["cluster"]))
            for row in clusters[:n_clusters]
            if row["gap"] > 0
        ],
    }


def excluded_rows(language: str, run: str, limit: int) -> tuple[int, list[dict[str, Any]]]:
    """Return how many pool rows could not be selected, and the first `limit` with their reasons."""
    summary = catalog().selection_summary(language, run)
    ref = _artifacts(summary["run_id"], language)["gap-score"]
    path = open_store().folder(ref) / "excluded.parquet"
    rows = read_table(path, ["id", "reason", "other_id"])
    return rows.num_rows, rows.slice(0, limit).to_pylist()


def _artifacts(run_id: str, language: str) -> dict[str, ArtifactRef]:
    outcome = read_run(run_id)["languages"].get(language, {})
    refs = {n: ArtifactRef.from_dict(r) for n, r in outcome.get("artifacts", {}).items()}
    if "gap-score" not in refs:
        raise DataError(
            f"Run {run_id} selected nothing for {language_name(language)} ({language}): "
            f"{outcome.get('error', 'the language is not in it')}",
            code="E51",
        )
    return refs


def _cluster(row: dict[str, Any], space: dict[str, Any], examples: Any) -> dict[str, Any]:
    names = ("cluster", "label", "usage_share", "coverage_share", "gap", "capacity", "selected")
    told = {name: row[name] for name in names}
    asked = space["examples"]
    # One of each language, the nearest first: what stands for the cluster, not for one language.
    by_language: dict[str, dict[str, Any]] = {}
    for example in sorted(examples.to_pylist(), key=lambda example: example["distance"]):
        by_language.setdefault(example["source_language"], example)
    nearest = list(by_language.values())[:_EXAMPLES]
    return told | {
        "usage_count": row["usage_count"],
        "coverage_count": row["coverage_count"],
        "sources": _named(row["sources"], row["selected"]),
        "usage_examples": asked[row["cluster"]],
        "selected_examples": [
            {
                "id": example["id"],
                "language": language_name(example["source_language"]),
                "text": _short(example["prompt"] or example["response"]),
                "reason": example["reason"],
            }
            for example in nearest
        ],
    }


def _named(sources: str, selected: int) -> str:
    """Return ``"yor_Latn 2, ben_Beng 1"`` with the languages' names, and how many are others'."""
    parts = [part.split(" ") for part in sources.split(", ") if part]
    told = ", ".join(f"{language_name(code)} {count}" for code, count in parts)
    others = selected - sum(int(count) for _, count in parts)
    return f"{told}, others {others}" if others else told


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT else f"{line[: _TEXT - 1]}…"

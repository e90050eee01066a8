"""``compass explain``: why these examples, in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from compass_core.languages import canonical_language
from flows.terminal import OUT


def explain(language: str, run: str, *, clusters: int, as_json: bool) -> None:
    """Print why the examples of one language were selected."""
    from tasks.explaining import explain_selection

    found = explain_selection(canonical_language(language), run or "last", clusters)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        return
    for line in _lines(found):
        OUT.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{found['name']} ({found['language']}), run {found['run_id']}",
        "",
        f"{found['n_selected']:,} examples were selected by {found['strategy']} "
        f"(budget {found['budget']:,}) out of a pool of {found['n_pool']:,}.",
        f"{found['n_usage']:,} usage prompts and {found['n_coverage']:,} examples of coverage fall "
        f"into {found['n_clusters']} clusters{_choice(found['chosen'])}; "
        f"{found['n_gap_clusters']} have a gap.",
        _match(found["match"]),
        "",
        "The widest gaps" if found["clusters"] else "No cluster has a gap.",
    ]
    for place, cluster in enumerate(found["clusters"], start=1):
        lines += _cluster(place, cluster)
    lines += ["", "From where: " + _counts(found["sources"])]
    if found["exclusions"]:
        lines += [
            "Not taken, because not allowed: " + _counts(found["exclusions"]),
            f"  row by row: {found['excluded_ids']}",
        ]
    lines += ["Can the clusters be trusted? " + _health(found["health"])]
    lines += [f"  {warning}" for warning in found["warnings"]]
    lines += [f"Note: {note}" for note in found["notes"]]
    return lines


def _choice(chosen: Mapping[str, Any]) -> str:
    scores = {n: v for n, v in chosen.items() if n in ("silhouette", "likelihood", "js", "dbcv")}
    told = ", ".join(f"{name} {value:.3g}" for name, value in scores.items())
    return f" (chosen: {told})" if told else ""


def _match(match: Mapping[str, float]) -> str:
    return (
        f"Distance from usage to training data (Jensen-Shannon, bits): {match['js_before']:.3f} "
        f"before, {match['js_after']:.3f} after; a random draw of this size: "
        f"{match['js_random']:.3f}."
    )


def _cluster(place: int, cluster: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        f"{place:>2}. {cluster['label']}   (cluster {cluster['cluster']})",
        f"    {cluster['usage_share']:.1%} of usage ({cluster['usage_count']} prompts), "
        f"{cluster['coverage_share']:.1%} of coverage ({cluster['coverage_count']} examples): "
        f"gap {100 * cluster['gap']:.1f} points",
        f"    taken {cluster['selected']} of {cluster['capacity']:,} within reach"
        + (f": {cluster['sources']}" if cluster["sources"] else ""),
    ]
    lines += [f"    asked   {text}" for text in cluster["usage_examples"]]
    lines += [
        f"    taken   {example['text']}   [{example['language']}, {example['id']}]"
        for example in cluster["selected_examples"]
    ]
    return lines


def _counts(counts: Mapping[str, int], shown: int = 8) -> str:
    listed = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    told = ", ".join(f"{name} {count:,}" for name, count in listed[:shown])
    return told + (f" and {len(listed) - shown} more" if len(listed) > shown else "")


def _health(health: Mapping[str, float | None]) -> str:
    meanings = {
        "nmi_language": "NMI with language {:.2f} (0 is best)",
        "nmi_topic": "with topic {:.2f}",
        "median_mixing": "language mix {:.2f} of what chance gives",
        "retrieval_at_1": "{:.0%} of translations found",
        "usage_outside": "{:.0%} of usage beyond every radius",
    }
    told = [
        text.format(value)
        for name, text in meanings.items()
        if (value := health.get(name)) is not None
    ]
    return ", ".join(told) + "."

"""What each figure about the clusters means, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compass_core.report.parts import readable_name

HEALTH_TEXT: dict[str, tuple[str, str]] = {
    "n_clusters": ("Clusters", "How finely the semantic space is cut."),
    "silhouette": (
        "Silhouette",
        "How well clusters are separated, −1 to 1. Text rarely gets above .2.",
    ),
    "nmi_language": (
        "NMI with language",
        "0: clusters ignore the language, as they should. Above .3: they follow it, "
        "and a “semantic gap” would be a language gap.",
    ),
    "nmi_topic": (
        "NMI with topic",
        "1: clusters are the topics, 0: they have nothing to do with them.",
    ),
    "nmi_language_raw": ("The same, uncorrected for chance", "Many small clusters raise it."),
    "median_mixing": (
        "Language mix (median cluster)",
        "1: a cluster is as multilingual as chance would make it, 0: one language only. "
        "Below .5 be careful.",
    ),
    "usage_outside": (
        "Usage far from every cluster",
        "Share of what users ask that lies beyond the relevance radius of its cluster.",
    ),
    "retrieval_at_1": (
        "Translations found",
        "Share of texts whose nearest text in another language is their translation. The encoder "
        "sees meaning when it is high.",
    ),
    "matched_minus_random": (
        "Similarity of translations over that of strangers",
        "Mean cosine of translations minus that of other pairs; 0 means the encoder is blind.",
    ),
    "n_candidates": ("Candidates per translation", "More make finding it harder."),
    "n_pairs": ("Language pairs compared", "Those with the target language first."),
    "n_languages": ("Languages in the pool", "Where the selection can come from."),
    "n_examples": ("Pool examples", "What could be selected."),
    "js_before": (
        "Distance usage–coverage before",
        "Jensen–Shannon divergence in bits, 0 (same topics) to 1 (no topic in common).",
    ),
    "js_after": (
        "Distance usage–coverage after",
        "The same with the selection added. It should be clearly smaller.",
    ),
    "js_random": ("The same with a random selection", "What the budget buys without looking."),
    "n_usage": ("Usage examples", "Fewer examples make noisier shares."),
    "n_coverage": ("Coverage examples", "Training data the language already has."),
    "n_pool": ("Pool examples", "What could be selected."),
}


def health_rows(health: Mapping[str, Any]) -> Iterator[tuple[str, float | None, str]]:
    """Yield title, value and meaning of every single figure; lists per cluster are left out."""
    order = {name: place for place, name in enumerate(HEALTH_TEXT)}
    for name, value in sorted(health.items(), key=lambda item: order.get(item[0], len(order))):
        if isinstance(value, (int, float)) or value is None:
            title, meaning = HEALTH_TEXT.get(name, (readable_name(name), ""))
            yield title, value, meaning

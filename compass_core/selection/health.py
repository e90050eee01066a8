"""Is the space about meaning? Language entropy per cluster, NMI, the script guard, what it misses.

Encoders can cluster by writing system; "semantic gap" then silently becomes "language gap". The
guard looks at the pool after assignment. Both its figures are corrected for chance: with a few
examples per cluster, entropy is bound to be low and mutual information to be high even where
language and cluster have nothing to do with each other, so each is compared with what shuffled
languages give on the same counts. Uncorrected figures are reported beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError, ScriptGuardError

GuardMode = Literal["refuse", "warn", "off"]
Floats = NDArray[np.float64]

WARN_ENTROPY = 0.5
REFUSE_ENTROPY = 0.2
REFUSE_NMI = 0.3
WARN_RETRIEVAL = 0.3
WARN_USAGE_OUTSIDE = 0.25
MIN_CLUSTER_ROWS = 5
"""Clusters with fewer pool examples say nothing about language mixing and are left out."""

_SHUFFLE_ROWS = 200_000
_SHUFFLES = 8


@dataclass(frozen=True)
class Health:
    """Whether clusters follow meaning or language.

    Attributes:
        language_entropy: Per cluster, H_k / H_pool: the entropy of its languages over that of the
            whole pool; 1 is a perfect mix, 0 one language. NaN where a cluster is too small.
        mixing: Per cluster, the same over the entropy that shuffled languages reach on as many
            examples; what the guard judges.
        median_mixing: Median of `mixing` over clusters, NaN for single-language pools.
        nmi_language: Chance-corrected normalised mutual information of cluster and language.
        nmi_language_raw: The same, uncorrected.
        nmi_topic: Of cluster and topic, chance-corrected; None where topics are unknown.
        n_languages: Languages in the pool.
        n_examples: Pool examples looked at.
        usage_outside: Share of usage beyond the relevance radius of its cluster; None if unknown.
        retrieval: How well translations find each other, see `selection.retrieval`; None where no
            rows are parallel.
    """

    language_entropy: tuple[float, ...]
    mixing: tuple[float, ...]
    median_mixing: float
    nmi_language: float
    nmi_language_raw: float
    nmi_topic: float | None
    n_languages: int
    n_examples: int
    usage_outside: float | None
    retrieval: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        values = {name: _plain(value) for name, value in asdict(self).items()}
        return values | (values.pop("retrieval") or {})


def cluster_health(
    cluster_ids: NDArray[np.integer[Any]],
    languages: Sequence[str] | NDArray[Any],
    *,
    topics: Sequence[str] | NDArray[Any] | None = None,
    usage_outside: NDArray[np.bool_] | None = None,
    retrieval: dict[str, float] | None = None,
    n_clusters: int | None = None,
) -> Health:
    """Measure how far clusters follow language, over the pool.

    Args:
        cluster_ids: (N,) cluster of each pool example.
        languages: (N,) its language.
        topics: (N,) its topic, as a name or a number; rows with an empty name or a negative number
            are left out of `nmi_topic`.
        usage_outside: (U,) which usage prompts lie beyond the relevance radius.
        retrieval: from `selection.retrieval.parallel_retrieval`.
        n_clusters: K; by default the largest id + 1.

    Raises:
        DataError: the arrays differ in length or the pool is empty.
    """
    if len(cluster_ids) == 0 or len(cluster_ids) != len(languages):
        raise DataError(
            f"Health needs a language for every assigned pool example; got {len(cluster_ids)} "
            f"clusters and {len(languages)} languages.",
            code="E51",
        )
    names, codes = np.unique(np.asarray(languages), return_inverse=True)
    k = n_clusters or int(cluster_ids.max()) + 1
    table = _contingency(cluster_ids, codes, k, len(names))
    entropy = _row_entropies(table)
    pool_entropy = _row_entropies(table.sum(axis=0, keepdims=True))[0]
    expected_entropy, expected_information = _by_chance(cluster_ids, codes, k, len(names))
    counts = table.sum(axis=1)
    told = (counts >= MIN_CLUSTER_ROWS) & (len(names) > 1)
    relative = np.where(told, entropy / max(pool_entropy, 1e-12), np.nan)
    # The mean of shuffles estimates an upper bound; a lucky cluster must not exceed a full mix.
    mixing = np.where(told, np.minimum(entropy / np.maximum(expected_entropy, 1e-12), 1.0), np.nan)
    raw, corrected = _normalised_information(table, expected_information)
    return Health(
        language_entropy=tuple(relative.tolist()),
        mixing=tuple(mixing.tolist()),
        median_mixing=float(np.median(mixing[told])) if told.any() else float("nan"),
        nmi_language=corrected,
        nmi_language_raw=raw,
        nmi_topic=_topic_information(cluster_ids, topics, k),
        n_languages=len(names),
        n_examples=len(cluster_ids),
        usage_outside=None if usage_outside is None else float(np.mean(usage_outside)),
        retrieval=retrieval,
    )


def check_script_guard(health: Health, mode: GuardMode = "refuse") -> list[str]:
    """Return warnings about a space that follows language, or refuse it.

    Refused: median mixing below 0.2, or corrected NMI with language above 0.3. Warned: median
    mixing below 0.5. Pools of one language are exempt, with a notice.

    Args:
        health: from `cluster_health`.
        mode: ``refuse``; ``warn`` turns refusals into warnings; ``off`` says nothing.

    Raises:
        ScriptGuardError: E61, in mode ``refuse``.
    """
    if mode == "off":
        return []
    if health.n_languages < 2:
        return ["The pool has one language: the script guard does not apply."]
    median, nmi = health.median_mixing, health.nmi_language
    measured = (
        f"the median cluster has {median:.2f} of the language mix that chance would give "
        f"(refused below {REFUSE_ENTROPY}), NMI with language is {nmi:.2f} "
        f"(refused above {REFUSE_NMI})"
    )
    if median < REFUSE_ENTROPY or nmi > REFUSE_NMI:
        message = (
            f"The clusters follow the language instead of the meaning: {measured}. Set "
            "`embedding.centre_languages=true`, use a multilingual encoder "
            "(intfloat/multilingual-e5-small, or `compass fit-encoder` on parallel rows), or "
            "accept it with `clustering.script_guard=warn`."
        )
        if mode == "refuse":
            raise ScriptGuardError(message)
        return [message]
    if median < WARN_ENTROPY:
        return [
            f"Languages hardly mix inside clusters: {measured}. "
            "Consider `embedding.centre_languages=true`."
        ]
    return []


def check_reach(
    health: Health, *, min_retrieval: float = 0.0, max_usage_outside: float = 1.0
) -> list[str]:
    """Return warnings about an encoder or clusters that miss the usage, or refuse them.

    Warned: fewer than 30 % of translations found, or more than a quarter of usage beyond every
    radius (5 % is what the default radius leaves outside by its definition).

    Args:
        health: from `cluster_health`.
        min_retrieval: refuse below this share of translations found.
        max_usage_outside: refuse above this share of usage outside.

    Raises:
        DataError: E61, one of the two limits is passed.
    """
    warnings: list[str] = []
    if health.retrieval is not None:
        found = health.retrieval["retrieval_at_1"]
        measured = (
            f"The encoder finds {found:.0%} of translations among "
            f"{health.retrieval['n_candidates']:.0f} candidates"
        )
        advice = "Use a multilingual encoder, or `compass fit-encoder` on your own parallel rows."
        if found < min_retrieval:
            raise DataError(
                f"{measured}; clustering.min_retrieval asks for {min_retrieval:.0%}. {advice}",
                code="E61",
            )
        if found < WARN_RETRIEVAL:
            warnings.append(f"{measured}: it hardly knows these texts. {advice}")
    outside = health.usage_outside
    if outside is not None:
        measured = f"{outside:.0%} of usage lies beyond the radius of every cluster"
        if outside > max_usage_outside:
            raise DataError(
                f"{measured}; clustering.max_usage_outside allows {max_usage_outside:.0%}. Raise "
                "`clustering.relevance_quantile`, use fewer clusters, or give more usage.",
                code="E61",
            )
        if outside > WARN_USAGE_OUTSIDE:
            warnings.append(
                f"{measured}: its topics are thin. Give more usage, or use fewer clusters."
            )
    return warnings


def _contingency(
    rows: NDArray[np.integer[Any]], columns: NDArray[np.integer[Any]], n_rows: int, n_columns: int
) -> NDArray[np.int64]:
    flat = rows.astype(np.int64) * n_columns + columns
    return np.bincount(flat, minlength=n_rows * n_columns).reshape(n_rows, n_columns)


def _row_entropies(table: NDArray[np.int64]) -> Floats:
    """Return the entropy of each row in nats, 0 for empty rows."""
    totals = np.maximum(table.sum(axis=1, keepdims=True), 1)
    shares = table / totals
    logs = np.log(np.where(shares > 0, shares, 1.0))
    entropies: Floats = -(shares * logs).sum(axis=1)
    return np.maximum(entropies, 0.0)


def _information(table: NDArray[np.int64]) -> float:
    """Return the mutual information of rows and columns in nats."""
    whole = table.reshape(1, -1)
    rows, columns = table.sum(axis=1)[None, :], table.sum(axis=0)[None, :]
    joint = _row_entropies(whole)[0]
    return max(0.0, float(_row_entropies(rows)[0] + _row_entropies(columns)[0] - joint))


def _by_chance(
    cluster_ids: NDArray[np.integer[Any]],
    codes: NDArray[np.integer[Any]],
    n_clusters: int,
    n_codes: int,
) -> tuple[Floats, float]:
    """Return the mean entropies (K,) and information of shuffled codes; a fixed seed, no state."""
    rng = np.random.default_rng(0)
    n_shuffles = _SHUFFLES if len(codes) <= _SHUFFLE_ROWS else 2
    entropies, information = np.zeros(n_clusters), 0.0
    for _ in range(n_shuffles):
        table = _contingency(cluster_ids, rng.permutation(codes), n_clusters, n_codes)
        entropies += _row_entropies(table) / n_shuffles
        information += _information(table) / n_shuffles
    return entropies, information


def _normalised_information(table: NDArray[np.int64], expected: float) -> tuple[float, float]:
    """Return NMI (arithmetic mean of the entropies) and the same corrected for chance."""
    rows, columns = table.sum(axis=1)[None, :], table.sum(axis=0)[None, :]
    scale = float(_row_entropies(rows)[0] + _row_entropies(columns)[0]) / 2
    information = _information(table)
    if scale <= 1e-12:
        return 0.0, 0.0
    room = scale - expected
    corrected = (information - expected) / room if room > 1e-12 else 0.0
    return information / scale, float(np.clip(corrected, 0.0, 1.0))


def _topic_information(
    cluster_ids: NDArray[np.integer[Any]],
    topics: Sequence[str] | NDArray[Any] | None,
    n_clusters: int,
) -> float | None:
    if topics is None:
        return None
    named = np.asarray(topics)
    known = named >= 0 if named.dtype.kind == "i" else named.astype(np.str_) != ""
    if not known.any():
        return None
    names, codes = np.unique(named[known], return_inverse=True)
    ids = cluster_ids[known]
    table = _contingency(ids, codes, n_clusters, len(names))
    return _normalised_information(table, _by_chance(ids, codes, n_clusters, len(names))[1])[1]


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 6)
    return value

"""Training LangRank's model from measured gains, and measuring how well it ranks.

A gain is how much data of a source language helped a target language, for example the accuracy
after training on it minus the accuracy before. Gains of one target are compared with each other
only, so each target may have its own scale.
"""

from __future__ import annotations

import csv
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError, LanguageError, bounded_list
from compass_core.languages import canonical_language
from compass_core.seeding import derive_rng
from compass_core.selection.langrank import (
    FACTS_NAME,
    FEATURES,
    FORMAT,
    GAINS_NAME,
    MODEL_NAME,
    LanguageProfile,
    feature_table,
    import_lightgbm,
)
from compass_core.selection.language_distances import (
    has_uriel,
    uriel_distances,
    uriel_similarity,
    uriel_version,
)
from compass_core.selection.similarity import lexical_similarity
from compass_core.storage import sha256_file, write_json, write_text

N_TREES = 100
MAX_RELEVANCE = 10
"""The best source of a target has this relevance, the next one less, and so on down to 0."""

MIN_SOURCES = 3
"""A target needs gains from this many sources: fewer have no order to learn."""

TOP = 3
"""Sources that count in NDCG."""

N_BOOTSTRAP = 10_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Gains:
    """Measured gains, one entry per pair, grouped by target.

    Attributes:
        targets: (P,) canonical codes.
        sources: (P,) canonical codes.
        values: (P,) gains.
    """

    targets: NDArray[np.str_]
    sources: NDArray[np.str_]
    values: Floats

    def groups(self) -> list[tuple[str, NDArray[np.int64]]]:
        """Return each target with the places of its pairs."""
        return [(str(t), np.flatnonzero(self.targets == t)) for t in np.unique(self.targets)]


def read_gains(path: Path) -> Gains:
    """Read a CSV file with the columns ``target``, ``source`` and ``gain``.

    Raises:
        DataError: the file is missing (E01) or lacks columns (E15), rows cannot be used (E15; all
            are named), or there is too little to learn from (E48).
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of gains.", code="E01")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [
                n for n in ("target", "source", "gain") if n not in (reader.fieldnames or [])
            ]
            if missing:
                raise DataError(
                    f"{path}: no column {', '.join(missing)}. A file of gains has the columns "
                    f"target, source, gain; found {', '.join(reader.fieldnames or ['nothing'])}."
                )
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not CSV in UTF-8: {error}.", code="E05") from error
    return _checked(path, rows)


def _checked(path: Path, rows: Sequence[Mapping[str, str]]) -> Gains:
    pairs: dict[tuple[str, str], float] = {}
    problems = []
    for number, row in enumerate(rows, start=2):
        try:
            pair = canonical_language(row["target"]), canonical_language(row["source"])
            gain = float(row["gain"])
        except (LanguageError, TypeError, ValueError) as error:
            problems.append(f"line {number}: {error}")
            continue
        if not math.isfinite(gain) or pair[0] == pair[1] or pair in pairs:
            problems.append(f"line {number}: the gain is no number, or the pair is there twice")
        pairs[pair] = gain
    if problems:
        raise DataError(f"{path} has rows that cannot be used:\n{bounded_list(problems)}")
    counts: dict[str, int] = {}
    for target, _ in pairs:
        counts[target] = counts.get(target, 0) + 1
    if len(counts) < 2 or min(counts.values()) < MIN_SOURCES:
        thin = ", ".join(f"{t} ({n})" for t, n in counts.items() if n < MIN_SOURCES) or "none"
        raise DataError(
            f"{path}: {len(pairs)} gains of {len(counts)} targets. Learning an order needs at "
            f"least 2 targets with gains from {MIN_SOURCES} sources each; too few: {thin}.",
            code="E48",
        )
    ordered = sorted(pairs)
    return Gains(
        np.array([t for t, _ in ordered]),
        np.array([s for _, s in ordered]),
        np.array([pairs[pair] for pair in ordered]),
    )


# --------------------------------------------------------------------------- features
class LanguageTexts(NamedTuple):
    """Texts of a language (some thousand at most) and how many rows it has."""

    texts: Sequence[str]
    n_rows: int


def fit_langrank(
    gains: Gains,
    targets: Mapping[str, LanguageTexts],
    sources: Mapping[str, LanguageTexts],
    out: Path,
    *,
    trained_on: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a model on `gains`, measure it by leaving languages out, and write it to `out`.

    Args:
        gains: measured gains.
        targets: usage and coverage of every target; the rows are those of the coverage.
        sources: the pool's rows of every source.
        out: folder to write.
        trained_on: what the gains were measured on, for people.
        seed: of the training.

    Returns:
        What ``LANGRANK.json`` says; ``ndcg_at_3`` is what `summarise` returns.

    Raises:
        ConfigError: LightGBM is not installed (E66).
        DataError: a language of the gains has no texts (E51).
        LanguageError: URIEL does not know a target (E67).
    """
    import_lightgbm()
    missing = [f"target {t}" for t in np.unique(gains.targets) if str(t) not in targets]
    missing += [f"source {s}" for s in np.unique(gains.sources) if str(s) not in sources]
    if missing:
        raise DataError(
            "The data of the configuration lacks languages of the file of gains:\n"
            f"{bounded_list(missing)}\nAdd their texts, or remove their gains.",
            code="E51",
        )
    features, orders = _pairs(gains, targets, sources)
    per_target = leave_one_language_out(features, gains, orders, seed=seed)
    quality = summarise(per_target, seed=seed)
    model = fit_ranker(features, gains, seed=seed)
    return write_model(out, model, gains, quality, trained_on=trained_on)


def _pairs(
    gains: Gains, targets: Mapping[str, LanguageTexts], sources: Mapping[str, LanguageTexts]
) -> tuple[Floats, dict[str, Floats]]:
    """Return (P, F) features and the orders that LangRank is compared with."""
    profiles = {n: LanguageProfile.of(sources[n].texts, sources[n].n_rows) for n in sources}
    features = np.full((len(gains.values), len(FEATURES)), np.nan)
    orders = {"similar": np.zeros(len(gains.values))}
    if has_uriel():
        orders["langsim"] = np.zeros(len(gains.values))
    for target, places in gains.groups():
        names = [str(source) for source in gains.sources[places]]
        own = LanguageProfile.of(targets[target].texts, targets[target].n_rows)
        distances = uriel_distances(target, names).by_language if has_uriel() else None
        chosen = {name: profiles[name] for name in names}
        features[places] = feature_table(own, chosen, distances)
        found = lexical_similarity(targets[target].texts, {n: sources[n].texts for n in names})
        orders["similar"][places] = [found[name] for name in names]
        if distances is not None:
            near = uriel_similarity(distances)
            orders["langsim"][places] = [near.get(name, 0.0) for name in names]
    return features, orders


# --------------------------------------------------------------------------- training
def relevance(gains: Floats) -> NDArray[np.int64]:
    """Return the relevance of one target's sources: 10 for the largest gain, 9, …, 0; ties equal.

    Examples:
        >>> relevance(np.array([0.1, 0.4, 0.1, -0.2])).tolist()
        [9, 10, 9, 7]
    """
    rank = (gains[None, :] > gains[:, None]).sum(axis=1)
    return np.asarray(np.maximum(MAX_RELEVANCE - rank, 0), dtype=np.int64)


def fit_ranker(features: Floats, gains: Gains, *, seed: int = 0) -> str:
    """Train LambdaRank (100 trees, 16 leaves, learning rate 0.1) and return it as text.

    Args:
        features: (P, F) of the pairs of `gains`, in their order.
        gains: what to learn from.
        seed: of LightGBM; equal seeds give equal text on one machine type.
    """
    lightgbm = import_lightgbm()
    order, labels, sizes = [], [], []
    for _, places in gains.groups():
        order.append(places)
        labels.append(relevance(gains.values[places]))
        sizes.append(len(places))
    data = lightgbm.Dataset(
        features[np.concatenate(order)],
        label=np.concatenate(labels),
        group=sizes,
        feature_name=list(FEATURES),
    )
    settings = {
        "objective": "lambdarank",
        "num_leaves": 16,
        "learning_rate": 0.1,
        "min_data_in_leaf": 5,
        "label_gain": [2**grade - 1 for grade in range(MAX_RELEVANCE + 1)],
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    return str(lightgbm.train(settings, data, num_boost_round=N_TREES).model_to_string())


def ndcg(scores: Floats, gains: Floats, top: int = TOP) -> float:
    """Return NDCG@`top` of the order that `scores` give, in [0, 1]; 1 where no order is better.

    Equal scores share their places: the mean over their orders.

    Examples:
        >>> ndcg(np.array([3.0, 2.0, 1.0]), np.array([0.3, 0.2, 0.1]))
        1.0
        >>> round(ndcg(np.zeros(3), np.array([0.3, 0.2, 0.1]), top=1), 3)
        0.583
    """
    worth = np.exp2(relevance(gains)) - 1
    discount = np.where(np.arange(len(worth)) < top, 1 / np.log2(np.arange(len(worth)) + 2), 0.0)
    ideal = float(np.sort(worth)[::-1] @ discount)
    _, group = np.unique(-scores, return_inverse=True)
    shared = np.bincount(group, worth) / np.bincount(group)
    reached = float(shared[np.sort(group)] @ discount)
    return reached / ideal if ideal > 0 else 1.0


def leave_one_language_out(
    features: Floats, gains: Gains, others: Mapping[str, Floats], *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Rank each target's sources by a model that never saw the target, as target or as source.

    Args:
        features: (P, F) of the pairs.
        gains: measured gains.
        others: name → (P,) scores of other orders to compare with.
        seed: of the training.

    Returns:
        Target → ``langrank``, ``random`` and each of `others` → NDCG@3.
    """
    lightgbm = import_lightgbm()
    found: dict[str, dict[str, float]] = {}
    for target, places in gains.groups():
        kept = np.flatnonzero((gains.targets != target) & (gains.sources != target))
        rest = Gains(gains.targets[kept], gains.sources[kept], gains.values[kept])
        model = lightgbm.Booster(model_str=fit_ranker(features[kept], rest, seed=seed))
        orders = {"langrank": np.asarray(model.predict(features[places], num_threads=1))}
        orders |= {name: scores[places] for name, scores in others.items()}
        orders["random"] = np.zeros(len(places))
        found[target] = {n: ndcg(scores, gains.values[places]) for n, scores in orders.items()}
    return found


def summarise(
    per_target: Mapping[str, Mapping[str, float]], *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return the mean over targets of each order's NDCG, and by how much the ranker leads it.

    Args:
        per_target: what `leave_one_language_out` found.
        seed: of the bootstrap over targets.

    Returns:
        ``mean``: order → NDCG@3. ``lead``: order → mean difference of the ranker to it, with its
        95 % interval. ``by_target``: target → order → NDCG@3.
    """
    names = list(next(iter(per_target.values())))
    values = np.array([[found[name] for name in names] for found in per_target.values()])
    rng = derive_rng(seed, "langrank", "bootstrap")
    drawn = values[rng.integers(0, len(values), (N_BOOTSTRAP, len(values)))].mean(axis=1)
    own = names.index("langrank")
    lead = {}
    for place, name in enumerate(names):
        low, high = np.quantile(drawn[:, own] - drawn[:, place], [0.025, 0.975])
        mean = values[:, own].mean() - values[:, place].mean()
        lead[name] = [round(float(x), 4) for x in (mean, low, high)]
    del lead["langrank"]
    return {
        "mean": {n: round(float(m), 4) for n, m in zip(names, values.mean(axis=0), strict=True)},
        "lead": lead,
        "by_target": {
            target: {name: round(value, 4) for name, value in found.items()}
            for target, found in per_target.items()
        },
    }


def write_model(
    folder: Path, model: str, gains: Gains, quality: Mapping[str, Any], *, trained_on: str
) -> dict[str, Any]:
    """Write a model's folder; what `load_ranker` needs comes last.

    Returns:
        What ``LANGRANK.json`` says.
    """
    write_text(folder / MODEL_NAME, model)
    rows = zip(gains.targets, gains.sources, gains.values, strict=True)
    lines = [f"{target},{source},{gain:.6f}" for target, source, gain in rows]
    write_text(folder / GAINS_NAME, "\n".join(["target,source,gain", *lines]) + "\n")
    facts = {
        "format": FORMAT,
        "features": list(FEATURES),
        "model_sha256": sha256_file(folder / MODEL_NAME),
        "gains_sha256": sha256_file(folder / GAINS_NAME),
        "n_pairs": len(gains.values),
        "n_targets": len(np.unique(gains.targets)),
        "trained_on": trained_on,
        "lightgbm": importlib.metadata.version("lightgbm"),
        "urielplus": uriel_version(),
        "ndcg_at_3": dict(quality),
    }
    write_json(folder / FACTS_NAME, facts)
    return facts

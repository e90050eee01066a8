"""A made-up usage log of the starter corpus, to try the monitor and the update with.

Prompts are names of the target language that no test item holds. Before the shift they come in the
mix of the usage sample; after it most of them are about the topics that the coverage lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from compass_core.config import StarterData
from compass_core.errors import InputError
from compass_core.languages import language_name
from compass_core.seeding import derive_rng
from compass_core.starter.corpus import build_language, language_rows


@dataclass(frozen=True, slots=True)
class LogPlan:
    """How many prompts to make up, and when their mix changes.

    Attributes:
        start: Time of the first prompt, with a zone.
        days: Days of usage.
        prompts_per_day: Prompts of a day; all of them different where the names suffice.
        shift_after: Days before the mix changes; `days` for no change.
        shift: Share of prompts after it that is about topics the coverage lacks, in [0, 1].
        prompts_per_user: Prompts of each made-up user.
    """

    start: datetime
    days: int = 5
    prompts_per_day: int = 200
    shift_after: int = 3
    shift: float = 0.9
    prompts_per_user: int = 1


def simulate_log(
    language: str, data: StarterData, plan: LogPlan, *, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield records with id, time (ISO 8601), language, user and prompt, in the order of time.

    Args:
        language: Canonical code of the starter's corpus.
        data: The corpus that the language was adapted with.
        plan: Sizes and shift.
        seed: Of the corpus (as it was adapted with) and of the draw.

    Raises:
        InputError: the corpus does not have the language, or the days do not suit.
    """
    if not 0 <= plan.shift_after <= plan.days or plan.start.tzinfo is None:
        raise InputError(
            f"A log of {plan.days} days cannot shift after {plan.shift_after}, and its start needs "
            "a time zone. Choose a day within the log.",
            code="E42",
        )
    split = build_language(
        language,
        seed=seed,
        n_coverage=data.n_coverage,
        n_usage=data.n_usage,
        n_test=data.n_test,
        n_missing_topics=data.n_missing_topics,
    )
    usual = Counter(row.topic for row in split.usage)
    if not set(split.missing_topics) & usual.keys() or not usual.keys() - set(split.missing_topics):
        raise InputError(
            f"The usage sample of {language_name(language)} ({language}) has no topic to shift to "
            "or from. Raise data.n_usage.",
            code="E42",
        )
    shifted = {
        t: plan.shift * (t in split.missing_topics) / len(split.missing_topics) for t in usual
    }
    rest = sum(n for topic, n in usual.items() if topic not in split.missing_topics)
    for topic, count in usual.items():
        if topic not in split.missing_topics:
            shifted[topic] = (1 - plan.shift) * count / rest
    names = _names(language)
    rng = derive_rng(seed, "usage-log", language)
    number = 0
    for day in range(plan.days):
        mix = usual if day < plan.shift_after else shifted
        total = sum(mix.values())
        counts = {topic: share / total * plan.prompts_per_day for topic, share in mix.items()}
        texts = [
            text for topic, n in sorted(counts.items()) for text in _draw(names[topic], n, rng)
        ]
        for place, index in enumerate(rng.permutation(len(texts))):
            moment = plan.start + timedelta(days=day, seconds=place * 86_400 / len(texts))
            yield {
                "id": f"{language}-{number:07d}",
                "time": moment.isoformat(timespec="seconds"),
                "language": language,
                "user": f"user-{number // plan.prompts_per_user:06d}",
                "prompt": texts[index],
            }
            number += 1


def _names(language: str) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for split in ("usage", "train"):
        for row in language_rows(language, split):
            names.setdefault(row.topic, []).append(row.prompt)
    if not names:
        raise InputError(f"The starter has no names in {language_name(language)} ({language}).")
    return names


def _draw(names: list[str], wanted: float, rng: np.random.Generator) -> list[str]:
    """Return about `wanted` names, each once before any comes again."""
    n = int(wanted + rng.random())
    orders = [rng.permutation(len(names)) for _ in range(-(-n // len(names)))]
    return [names[i] for order in orders for i in order][:n]

"""A sequence of shifts on the starter corpus: what users ask changes, topic by topic.

Usage at stage 0 is about a few topics.  Every later stage brings one topic that nobody asked about
before; the older ones fade but do not vanish.  The pairs a language has already (the coverage)
belong to stage 0, so whatever a shift needs must come from other languages.  Test slices of all
stages share no key with each other, with usage or with anything that may be trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compass_core.errors import InputError
from compass_core.languages import language_name
from compass_core.reading.overlap import normalised
from compass_core.records import Example
from compass_core.seeding import derive_rng
from compass_core.starter.corpus import TOPICS, as_item, as_prompt, by_topic, language_rows

NEW_SHARE = 0.5
"""Share of a shift's usage that is about its new topic."""

FADE = 0.8
"""What an older topic's share shrinks by with every further stage, before the older ones divide
what the new topic leaves."""

MIN_USAGE, MIN_TEST = 12, 45
"""Usage prompts and test items of a topic, below which a language is not asked about it."""

MIN_FIRST_TOPICS = 2


@dataclass(frozen=True, slots=True)
class StreamStage:
    """What is new at one stage of a stream.

    Attributes:
        topics: Topics that usage is about for the first time.
        mix: Share of every topic in usage and slice; sums to 1.
        usage: Prompts that users ask now, without answers.
        slice: Multiple-choice items in the same mix.
    """

    topics: tuple[str, ...]
    mix: Mapping[str, float]
    usage: list[Example]
    slice: list[Example]


@dataclass(frozen=True, slots=True)
class StarterStream:
    """One target language's sequence of shifts.

    Attributes:
        coverage: Training pairs the language has at the start; about stage 0's topics, without
            those of `missing_topics`.
        missing_topics: Stage 0's planted gap.
        stages: Stage 0, then one stage per shift.
    """

    coverage: list[Example]
    missing_topics: tuple[str, ...]
    stages: tuple[StreamStage, ...]


def build_stream(
    language: str,
    *,
    seed: int,
    n_shifts: int,
    n_coverage: int,
    n_usage: int,
    n_test: int,
    n_missing_topics: int = 1,
) -> StarterStream:
    """Cut one language's rows into a first stage and `n_shifts` shifts of usage.

    The language's larger topics come in an order drawn from the seed: the last `n_shifts` arrive
    one by one, all others are there from the start.  Where a topic has too few names for what the
    mix asks of it, the sets are smaller.

    Args:
        language: Canonical code out of `STARTER_LANGUAGES`.
        seed: Chooses the order of the topics and the rows.
        n_shifts: Shifts after stage 0.
        n_coverage: Existing training pairs wanted.
        n_usage: Usage prompts wanted of each stage.
        n_test: Test items wanted of each slice.
        n_missing_topics: Topics of stage 0 that the coverage lacks.

    Raises:
        InputError: the language has too few topics for so many shifts, or nothing would be covered.
    """
    rows = {split: by_topic(language_rows(language, split)) for split in ("train", "usage", "test")}
    order = _topic_order(language, seed, rows)
    n_first = len(order) - n_shifts
    _check_topics(language, len(order), n_shifts, n_missing_topics)
    first = order[:n_first]
    missing = tuple(sorted(first[n_first - n_missing_topics :]))
    mixes = [_mix(first, order[n_first : n_first + shift]) for shift in range(n_shifts + 1)]
    slices = _slices(language, seed, rows["test"], mixes, n_test)
    tested = {normalised(row.prompt) for items in slices for row in items}
    stages = tuple(
        StreamStage(
            topics=(order[n_first + stage - 1],) if stage else tuple(sorted(first)),
            mix=mix,
            usage=_usage(language, seed, stage, rows["usage"], mix, n_usage, tested),
            slice=[as_item(row) for row in slices[stage]],
        )
        for stage, mix in enumerate(mixes)
    )
    covered = [topic for topic in first if topic not in missing]
    coverage = _coverage(language, seed, rows["train"], covered, n_coverage, tested)
    return StarterStream(coverage, missing, stages)


def _topic_order(
    language: str, seed: int, rows: Mapping[str, Mapping[str, Sequence[Example]]]
) -> list[str]:
    """Return the topics that are large enough, in the order in which users come to them."""
    large = [
        topic
        for topic in TOPICS
        if len(rows["usage"].get(topic, ())) >= MIN_USAGE
        and len(rows["test"].get(topic, ())) >= MIN_TEST
    ]
    order = derive_rng(seed, "stream-topics", language).permutation(len(large))
    return [large[index] for index in order]


def _check_topics(language: str, n_topics: int, n_shifts: int, n_missing: int) -> None:
    n_first = n_topics - n_shifts
    if n_first < max(MIN_FIRST_TOPICS, n_missing + 1):
        most = n_topics - max(MIN_FIRST_TOPICS, n_missing + 1)
        raise InputError(
            f"{language_name(language)} ({language}) cannot have {n_shifts} shifts: {n_topics} of "
            f"its topics are large enough, and stage 0 needs {max(MIN_FIRST_TOPICS, n_missing + 1)}"
            f" ({n_missing} of them missing from the coverage). Lower n_shifts to {most} at most, "
            "or take another language."
        )


def _mix(first: Sequence[str], arrived: Sequence[str]) -> dict[str, float]:
    """Return the share of each topic once `arrived` have come after `first`."""
    if not arrived:
        return dict.fromkeys(sorted(first), 1.0 / len(first))
    *older, newest = arrived
    ages = dict.fromkeys(first, len(arrived))
    ages |= {topic: len(arrived) - 1 - place for place, topic in enumerate(older)}
    weights = {topic: FADE**age for topic, age in sorted(ages.items())}
    total = sum(weights.values())
    shares = {topic: (1 - NEW_SHARE) * weight / total for topic, weight in weights.items()}
    return {newest: NEW_SHARE} | shares


def _slices(
    language: str,
    seed: int,
    test: Mapping[str, Sequence[Example]],
    mixes: Sequence[Mapping[str, float]],
    n_test: int,
) -> list[list[Example]]:
    """Deal the test rows of every topic to the stages that ask about it, each row once."""
    rng = derive_rng(seed, "stream-test", language)
    left = {
        topic: [test[topic][index] for index in rng.permutation(len(test[topic]))]
        for topic in sorted(mixes[-1])
    }
    slices: list[list[Example]] = []
    for mix in mixes:
        items: list[Example] = []
        for topic, share in sorted(mix.items()):
            n_wanted = round(share * n_test)
            items += left[topic][:n_wanted]
            left[topic] = left[topic][n_wanted:]
        slices.append(items)
    return slices


def _usage(
    language: str,
    seed: int,
    stage: int,
    usage: Mapping[str, Sequence[Example]],
    mix: Mapping[str, float],
    n_usage: int,
    tested: set[str],
) -> list[Example]:
    """Draw one stage's prompts; a prompt may come again at a later stage, as prompts do."""
    rng = derive_rng(seed, "stream-usage", language, str(stage))
    drawn: list[Example] = []
    for topic, share in sorted(mix.items()):
        order = rng.permutation(len(usage[topic]))[: round(share * n_usage)]
        drawn += [usage[topic][index] for index in order]
    return [as_prompt(row) for row in drawn if normalised(row.prompt) not in tested]


def _coverage(
    language: str,
    seed: int,
    train: Mapping[str, Sequence[Example]],
    topics: Sequence[str],
    n_coverage: int,
    tested: set[str],
) -> list[Example]:
    rng = derive_rng(seed, "stream-coverage", language)
    drawn: list[Example] = []
    for topic in sorted(topics):
        order = rng.permutation(len(train[topic]))[: round(n_coverage / len(topics))]
        drawn += [train[topic][index] for index in order]
    shuffled = [drawn[index] for index in rng.permutation(len(drawn))]
    return [row for row in shuffled if normalised(row.prompt) not in tested]

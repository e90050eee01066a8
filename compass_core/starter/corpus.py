"""Starter corpus: names of the Unicode CLDR, and the skill of saying which kind of thing a name is.

Everything is read from the `babel` package at run time; nothing is copied into the repository and
no sentence is ours.  A prompt is ``NAME ∈ ?`` with a name in its language, and the response is the
kind of thing as CLDR itself calls it in its data (``territory``, ``currency``, …), the same symbol
in every language.  What it costs: the corpus has one skill (entity typing over nine kinds), so it
shows that selection works, not that a model is useful.  Labels in each language's own words were
tried: a tiny model cannot learn the target language's word for a kind from other languages' rows,
so no selection helps (accuracy on missing topics .24 directed, .22 random, .19 target-only).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from babel import Locale
from babel.core import get_global

from compass_core.errors import InputError
from compass_core.reading.overlap import normalised
from compass_core.records import Example
from compass_core.seeding import derive_rng

SOURCE = "unicode-cldr"
LICENCE = "Unicode-3.0"
PROMPT_SUFFIX = " ∈ ?"
"""Asks "element of what?"; the only text around a name."""

N_CHOICES = 4
"""Answer options of a test item."""

MAX_KEYS_PER_TOPIC = 260
"""Keys kept of a topic (lowest hashes), so that no topic drowns the others."""

TRAIN_SHARE, USAGE_SHARE = 0.40, 0.15
"""Shares of keys that may be trained on, and that users ask; the rest is tested."""

MAX_NAME_CHARACTERS = 60

TOPICS = (
    "territory",
    "language",
    "script",
    "currency",
    "city",
    "zone",
    "unit",
    "date",
    "duration",
)

_LOCALES = {
    # Latin script
    "eng_Latn": "en",
    "deu_Latn": "de",
    "nld_Latn": "nl",
    "swe_Latn": "sv",
    "dan_Latn": "da",
    "isl_Latn": "is",
    "fra_Latn": "fr",
    "spa_Latn": "es",
    "por_Latn": "pt",
    "ita_Latn": "it",
    "ron_Latn": "ro",
    "pol_Latn": "pl",
    "ces_Latn": "cs",
    "slv_Latn": "sl",
    "lit_Latn": "lt",
    "fin_Latn": "fi",
    "hun_Latn": "hu",
    "eus_Latn": "eu",
    "cym_Latn": "cy",
    "gle_Latn": "ga",
    "tur_Latn": "tr",
    "vie_Latn": "vi",
    "ind_Latn": "id",
    "zsm_Latn": "ms",
    "swh_Latn": "sw",
    "zul_Latn": "zu",
    "afr_Latn": "af",
    "som_Latn": "so",
    "hau_Latn": "ha",
    "yor_Latn": "yo",
    # Cyrillic
    "rus_Cyrl": "ru",
    "ukr_Cyrl": "uk",
    "bel_Cyrl": "be",
    "bul_Cyrl": "bg",
    "srp_Cyrl": "sr",
    "mkd_Cyrl": "mk",
    "kaz_Cyrl": "kk",
    "kir_Cyrl": "ky",
    # Arabic
    "arb_Arab": "ar",
    "pes_Arab": "fa",
    "urd_Arab": "ur",
    "snd_Arab": "sd",
    # Devanagari
    "hin_Deva": "hi",
    "mar_Deva": "mr",
    "npi_Deva": "ne",
    # Bengali
    "ben_Beng": "bn",
    "asm_Beng": "as",
    # Han
    "cmn_Hans": "zh",
    "cmn_Hant": "zh_Hant",
    # one language each
    "ell_Grek": "el",
    "heb_Hebr": "he",
    "amh_Ethi": "am",
    "tam_Taml": "ta",
    "tha_Thai": "th",
}

STARTER_LANGUAGES = tuple(_LOCALES)
"""Every language of the corpus, canonical ISO 639-3 + script."""

TARGET_LANGUAGES = (
    "swh_Latn",
    "tur_Latn",
    "zul_Latn",
    "ukr_Cyrl",
    "kaz_Cyrl",
    "mar_Deva",
    "npi_Deva",
    "urd_Arab",
    "pes_Arab",
    "asm_Beng",
)
"""Languages studied: the base model has seen their script and names, not the task in them."""

DEMO_LANGUAGES = ("swh_Latn", "tur_Latn", "ukr_Cyrl", "mar_Deva", "urd_Arab", "asm_Beng")

_DATE_FIELDS = ("year", "quarter", "month", "week", "day", "hour", "minute")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class StarterSplit:
    """One target language's three sets; their keys are disjoint.

    Attributes:
        coverage: Existing training pairs; holds no row of `missing_topics`.
        usage: Prompts users ask, without answers, over all topics.
        test: Multiple-choice items in the same topic mix as `usage`.
        missing_topics: The planted gaps.
    """

    coverage: list[Example]
    usage: list[Example]
    test: list[Example]
    missing_topics: tuple[str, ...]


def key_split(parallel_id: str) -> str:
    """Return "train", "usage" or "test": the same for every translation of one item."""
    position = _hash(f"split:{parallel_id}") / 2**64
    if position < TRAIN_SHARE:
        return "train"
    return "usage" if position < TRAIN_SHARE + USAGE_SHARE else "test"


def build_pool(languages: Sequence[str] | None = None) -> list[Example]:
    """Return the training pairs of `languages` (default: all), train keys only.

    Args:
        languages: Canonical codes; order decides the order of rows.
    """
    codes = STARTER_LANGUAGES if languages is None else languages
    return [row for code in codes for row in language_rows(code, "train")]


def build_language(
    language: str,
    *,
    seed: int,
    n_coverage: int,
    n_usage: int,
    n_test: int,
    n_missing_topics: int,
) -> StarterSplit:
    """Cut coverage, usage and test for one target language, with planted topic gaps.

    Usage and test share one topic mix, as even as the language's names allow; where a language has
    too few names the sets are smaller than asked, and rows that read like a test item are left
    out.  The test set depends on `seed` only through which items are left out when there are more
    than `n_test`.

    Args:
        language: Canonical code out of `STARTER_LANGUAGES`.
        seed: Chooses the missing topics and the rows.
        n_coverage: Existing training pairs wanted.
        n_usage: Usage prompts wanted.
        n_test: Test items wanted.
        n_missing_topics: Topics removed from the coverage.

    Raises:
        InputError: Fewer topics than `n_missing_topics` + 1 are left in this language.
    """
    usage = by_topic(language_rows(language, "usage"))
    test = by_topic(language_rows(language, "test"))
    train = by_topic(language_rows(language, "train"))
    topics = [topic for topic in TOPICS if topic in usage and topic in test and topic in train]
    shares = _common_mix(topics, (usage, n_usage), (test, n_test))
    missing = _choose_missing(language, seed, topics, shares, n_missing_topics)
    covered = [topic for topic in topics if topic not in missing]
    coverage_mix = _common_mix(covered, (train, n_coverage))
    rng = derive_rng(seed, "starter", language)
    known, asked, items = (
        _draw(train, coverage_mix, n_coverage, rng),
        _draw(usage, shares, n_usage, rng),
        _draw(test, shares, n_test, rng),
    )
    # Two keys may have names that differ in punctuation alone (a script and its language).
    tested = {normalised(row.prompt) for row in items}
    return StarterSplit(
        coverage=[row for row in known if normalised(row.prompt) not in tested],
        usage=[as_prompt(row) for row in asked if normalised(row.prompt) not in tested],
        test=[as_item(row) for row in items],
        missing_topics=missing,
    )


def names(language: str) -> dict[str, str]:
    """Return parallel id → name in `language`, in the order of `TOPICS` and then of keys.

    Left out are names equal to the English ones (CLDR's fallback), names of more than one thing
    (a city-state, a script called like its language) and names longer than 60 characters.
    """
    return dict(_names(language))


def parallel_names(languages: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
    """Return parallel id → language → prompt for every key that may be trained on.

    These are the train keys and the surplus keys beyond `MAX_KEYS_PER_TOPIC`, which no corpus uses;
    the encoder is fitted on them.
    """
    reserved = {key for key in _kept_keys() if key_split(key) != "train"}
    return _parallel(languages, reserved, wanted=False)


def held_out_names(languages: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
    """Return parallel id → language → prompt for usage and test keys; measurement only."""
    reserved = {key for key in _kept_keys() if key_split(key) != "train"}
    return _parallel(languages, reserved, wanted=True)


def _parallel(
    languages: Sequence[str] | None, keys: set[str], *, wanted: bool
) -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    for language in STARTER_LANGUAGES if languages is None else languages:
        for key, name in _distinct_names(language).items():
            if (key in keys) == wanted:
                table.setdefault(key, {})[language] = name + PROMPT_SUFFIX
    return dict(sorted(table.items()))


def language_rows(language: str, split: str) -> list[Example]:
    """Return all instruction/response rows of one language and one split of the keys."""
    return [row for row in _language_rows(language) if key_split(row.parallel_id) == split]


@cache
def _language_rows(language: str) -> tuple[Example, ...]:
    return tuple(
        Example(
            id=f"{language}:{parallel_id}",
            language=language,
            prompt=name + PROMPT_SUFFIX,
            response=topic,
            topic=topic,
            parallel_id=parallel_id,
            source=SOURCE,
            licence=LICENCE,
        )
        for parallel_id, name in _names(language)
        for topic in [parallel_id.split(":")[1]]
    )


@cache
def _names(language: str) -> tuple[tuple[str, str], ...]:
    distinct = _distinct_names(language)
    return tuple((key, distinct[key]) for key in _kept_keys() if key in distinct)


@cache
def _distinct_names(language: str) -> Mapping[str, str]:
    own, english = _raw_names(language), _raw_names("eng_Latn")
    counts = Counter(name.casefold() for name in own.values())
    return {
        key: name
        for key, name in own.items()
        if counts[name.casefold()] == 1
        and name.casefold() not in TOPICS
        and len(name) <= MAX_NAME_CHARACTERS
        and (language == "eng_Latn" or name != english.get(key))
    }


@lru_cache(maxsize=1)
def _kept_keys() -> tuple[str, ...]:
    """Keys of the corpus: those English has, at most `MAX_KEYS_PER_TOPIC` of a topic."""
    by_topic: dict[str, list[str]] = {topic: [] for topic in TOPICS}
    for key in _raw_names("eng_Latn"):
        by_topic[key.split(":")[1]].append(key)
    kept = []
    for topic in TOPICS:
        ranked = sorted(by_topic[topic], key=lambda key: _hash(f"keep:{key}"))
        kept += sorted(ranked[:MAX_KEYS_PER_TOPIC])
    return tuple(kept)


@cache
def _raw_names(language: str) -> Mapping[str, str]:
    locale = _locale(language)
    sources: tuple[tuple[str, Callable[[Locale], Iterator[tuple[str, str]]]], ...] = (
        ("territory", _territories),
        ("language", _languages),
        ("script", _scripts),
        ("currency", _currencies),
        ("city", _cities),
        ("zone", _zones),
        ("unit", _units),
        ("date", _dates),
        ("duration", _durations),
    )
    found = {}
    for topic, read in sources:
        for key, text in read(locale):
            name = _clean(text)
            if any(character.isalpha() for character in name):
                found[f"cldr:{topic}:{key}"] = name
    return found


def _territories(locale: Locale) -> Iterator[tuple[str, str]]:
    return ((key, text) for key, text in _texts(locale, "territories") if key != "ZZ")


def _languages(locale: Locale) -> Iterator[tuple[str, str]]:
    special = {"und", "mul", "mis", "zxx"}
    return ((key, text) for key, text in _texts(locale, "languages") if key not in special)


def _scripts(locale: Locale) -> Iterator[tuple[str, str]]:
    special = {"Zzzz", "Zxxx", "Zyyy", "Zinh"}
    return ((key, text) for key, text in _texts(locale, "scripts") if key not in special)


def _currencies(locale: Locale) -> Iterator[tuple[str, str]]:
    return ((key, text) for key, text in _texts(locale, "currency_names") if key != "XXX")


def _texts(locale: Locale, field: str) -> Iterator[tuple[str, str]]:
    return ((key, text) for key, text in _data(locale)[field].items() if isinstance(text, str))


def _cities(locale: Locale) -> Iterator[tuple[str, str]]:
    """Yield time zones' exemplar cities; CLDR's fallback is the last part of the zone's id."""
    zones = _data(locale)["time_zones"]
    for key in sorted(get_global("zone_territories")):
        area, _, place = key.rpartition("/")
        if area and area != "Etc":
            city = zones.get(key, {}).get("city") or place.replace("_", " ")
            yield key.replace("/", "."), city


def _zones(locale: Locale) -> Iterator[tuple[str, str]]:
    for key, entry in _data(locale)["meta_zones"].items():
        for form in ("standard", "daylight"):
            text = entry.get("long", {}).get(form)
            if text:
                yield f"{key}.{form}", text


def _units(locale: Locale) -> Iterator[tuple[str, str]]:
    """Yield measures such as "7 kilometers"; durations belong to the topic of that name."""
    data = _data(locale)
    for key in data["unit_patterns"]:
        pattern = _unit_pattern(data, key)
        if not key.startswith("duration-") and "{0}" in pattern:
            yield key, pattern.replace("{0}", str(2 + _hash(f"count:{key}") % 39))


def _unit_pattern(data: Mapping[str, Any], key: str) -> str:
    """Return the long (or else short) pattern of a unit, empty where the locale has none.

    Read from the data itself because `babel.units.format_unit` prints the raw id of the unit
    where the long pattern is an alias of the short one.
    """
    forms = data["unit_patterns"].get(key, {})
    for length in ("long", "short"):
        pattern = forms.get(length, {}).get("other")
        if pattern:
            return str(pattern)
    return ""


def _dates(locale: Locale) -> Iterator[tuple[str, str]]:
    """Yield days of the year such as "3 March".

    Only the `format` names are read: babel's `stand-alone` ones are an alias that shows the names
    of whichever locale was loaded first.
    """
    data = _data(locale)
    skeleton = data["datetime_skeletons"].get("MMMMd") or data["datetime_skeletons"].get("MMMd")
    months = data["months"]["format"]["wide"]
    if skeleton is None or set(months) != set(range(1, 13)):
        return
    pattern = re.sub(r"L+|M+", "\0", skeleton.pattern)
    for month in range(1, 13):
        for day in range(1, 29, 2):
            text = re.sub(r"d+", str(day), pattern, count=1).replace("'", "")
            yield f"{month:02d}-{day:02d}", text.replace("\0", str(months[month]))


def _durations(locale: Locale) -> Iterator[tuple[str, str]]:
    """Yield relative times such as "in 3 days"."""
    data = _data(locale)
    for field in _DATE_FIELDS:
        for direction in ("future", "past"):
            patterns = data["date_fields"].get(field, {}).get(direction, {})
            for count in range(2, 21):
                pattern = patterns.get(locale.plural_form(count), patterns.get("other"))
                if pattern:
                    yield f"{field}.{direction}.{count}", pattern.replace("{0}", str(count))


def _common_mix(
    topics: Sequence[str], *sets: tuple[Mapping[str, Sequence[Example]], int]
) -> dict[str, float]:
    """Return the most even topic shares that every set can serve at its size.

    Args:
        topics: Topics to share among.
        sets: Rows by topic and the number of rows wanted of each set.

    Returns:
        Share of each topic; sums to 1, or to less where the rows do not suffice.
    """
    caps = {topic: min(len(rows[topic]) / n_rows for rows, n_rows in sets) for topic in topics}
    shares: dict[str, float] = {}
    left = 1.0
    # Smallest first: what a thin topic cannot take is spread over the richer ones.
    for position, topic in enumerate(sorted(topics, key=lambda name: (caps[name], name))):
        shares[topic] = min(caps[topic], left / (len(topics) - position))
        left -= shares[topic]
    return shares


def _choose_missing(
    language: str, seed: int, topics: Sequence[str], shares: Mapping[str, float], n_missing: int
) -> tuple[str, ...]:
    """Draw the planted gaps among topics with at least half an even share of the test."""
    eligible = [topic for topic in topics if shares[topic] >= 0.5 / len(topics)]
    if n_missing > len(eligible) or n_missing >= len(topics):
        raise InputError(
            f"Cannot remove {n_missing} topics from {language}: it has {len(topics)} topics, "
            f"{len(eligible)} of them large enough. Lower n_missing_topics."
        )
    rng = derive_rng(seed, "starter-missing", language)
    drawn = rng.choice(len(eligible), size=n_missing, replace=False)
    return tuple(sorted(eligible[index] for index in drawn))


def _draw(
    rows: Mapping[str, Sequence[Example]],
    shares: Mapping[str, float],
    n_rows: int,
    rng: np.random.Generator,
) -> list[Example]:
    """Draw about `shares` × `n_rows` rows of each topic, in seeded random order."""
    drawn: list[Example] = []
    for topic, share in sorted(shares.items()):
        order = rng.permutation(len(rows[topic]))[: int(share * n_rows + 0.5)]
        drawn += [rows[topic][index] for index in order]
    return [drawn[index] for index in rng.permutation(len(drawn))]


def by_topic(rows: Sequence[Example]) -> dict[str, list[Example]]:
    """Return `rows` by their topic, in order."""
    grouped: dict[str, list[Example]] = {}
    for row in rows:
        grouped.setdefault(row.topic, []).append(row)
    return grouped


def as_prompt(row: Example) -> Example:
    """Return what a user would ask: `row` without its answer."""
    return Example(
        id=row.id,
        language=row.language,
        prompt=row.prompt,
        topic=row.topic,
        parallel_id=row.parallel_id,
        source=row.source,
        licence=row.licence,
    )


def as_item(row: Example) -> Example:
    """Turn a pair into a multiple-choice item; options depend on the row alone, not on a seed."""
    others = sorted(
        set(TOPICS) - {row.response},
        key=lambda label: _hash(f"option:{row.id}:{label}"),
    )
    choices = sorted(
        [row.response, *others[: N_CHOICES - 1]],
        key=lambda label: _hash(f"order:{row.id}:{label}"),
    )
    return Example(
        id=row.id,
        language=row.language,
        prompt=row.prompt,
        response=row.response,
        choices=tuple(choices),
        answer_index=choices.index(row.response),
        topic=row.topic,
        parallel_id=row.parallel_id,
        source=row.source,
        licence=row.licence,
    )


def _locale(language: str) -> Locale:
    if language not in _LOCALES:
        raise InputError(
            f"{language!r} is not a language of the starter corpus. "
            f"It has: {', '.join(STARTER_LANGUAGES)}."
        )
    return Locale.parse(_LOCALES[language])


def _data(locale: Locale) -> Mapping[str, Any]:
    """CLDR data of one locale as babel keeps it; its public functions hide missing entries."""
    data: Mapping[str, Any] = locale._data
    return data


def _clean(text: str) -> str:
    """Return `text` in NFC with plain single spaces and without invisible format characters."""
    visible = "".join(character for character in text if unicodedata.category(character) != "Cf")
    return _SPACES.sub(" ", unicodedata.normalize("NFC", visible)).strip()


def _hash(text: str) -> int:
    """64-bit hash that is the same in every process (Python's own is salted)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

"""How alike languages look in their texts: the default order of the `similar` baseline.

This is a measure on the data at hand, not URIEL and not a genealogy: half of it is how far the
languages share writing systems, half how far they share character trigrams. It needs no download
and works for any language, and it says nothing about grammar.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

from compass_core.selection.words import normalise, trigrams

_MAX_TEXTS = 1_000
_MAX_CHARACTERS = 500


def lexical_similarity(
    target_texts: Iterable[str], texts_by_language: Mapping[str, Iterable[str]]
) -> dict[str, float]:
    """Return the similarity of each language's texts to the target's, in [0, 1].

    The mean of two parts: the overlap of their letters' scripts (Σ min of the shares), and the
    cosine between their trigram profiles (square roots of shares, so that a few frequent trigrams
    do not decide). 1 for equal texts, 0 where not even a script is shared.

    Args:
        target_texts: texts of the target language; the first 1,000 are read.
        texts_by_language: texts of each other language; the first 1,000 of each are read.
    """
    target = _Profile(target_texts)
    return {name: target.similarity(_Profile(texts)) for name, texts in texts_by_language.items()}


class _Profile:
    """Script shares and trigram profile of a language's texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        scripts: Counter[str] = Counter()
        grams: Counter[str] = Counter()
        for position, text in enumerate(texts):
            if position == _MAX_TEXTS:
                break
            beginning = text[:_MAX_CHARACTERS]
            grams.update(trigrams(beginning))
            letters = Counter(normalise(beginning))
            for letter, count in letters.items():
                if letter.isalpha():
                    scripts[_script(letter)] += count
        self.scripts = _shares(scripts)
        self.grams = {gram: math.sqrt(share) for gram, share in _shares(grams).items()}

    def similarity(self, other: _Profile) -> float:
        shared = sum(min(v, other.scripts.get(k, 0.0)) for k, v in self.scripts.items())
        cosine = sum(v * other.grams.get(k, 0.0) for k, v in self.grams.items())
        return min(1.0, (shared + cosine) / 2)


def _shares(counts: Counter[str]) -> dict[str, float]:
    total = sum(counts.values())
    return {key: count / total for key, count in counts.items()}


@lru_cache(maxsize=65_536)
def _script(letter: str) -> str:
    """Return the first word of the letter's Unicode name, which names its script."""
    name = unicodedata.name(letter, "UNKNOWN").split(" ")[0].split("-")[0]
    return "HAN" if name == "CJK" else name

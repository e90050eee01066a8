"""Words and character n-grams of any script, for labels and profiles.

Regular expressions split Indic and Thai words at their vowel signs; here combining marks belong to
the word. Scripts written without spaces have no words to split at: they give character n-grams.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

_UNSPACED = (
    r"\u0e00-\u0eff"  # Thai, Lao
    r"\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana, Han
    r"\U00020000-\U0003134f"
)


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    marks = "".join(
        chr(code)
        for code in range(0x300, 0x10000)
        if unicodedata.category(chr(code)).startswith("M")
    )
    word = re.compile(f"[^\\W_{_UNSPACED}](?:[^\\W_{_UNSPACED}]|[{re.escape(marks)}'’])*")
    return word, re.compile(f"[{_UNSPACED}]+")


def normalise(text: str) -> str:
    """Return `text` in NFKC, case-folded, with every run of white space made one space.

    Examples:
        >>> normalise("  Ｈello   WORLD ")
        'hello world'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def terms(text: str) -> Iterator[str]:
    """Yield the words of `text`, and bigrams and trigrams of its unspaced runs, normalised.

    Examples:
        >>> list(terms("Cats, 東京都"))
        ['cats', '東京', '京都', '東京都']
    """
    words, runs = _patterns()
    text = normalise(text)
    for match in words.finditer(text):
        if len(match.group()) > 1:
            yield match.group()
    for match in runs.finditer(text):
        run = match.group()
        for size in (2, 3):
            for start in range(len(run) - size + 1):
                piece = run[start : start + size]
                if unicodedata.category(piece[0])[0] != "M":
                    yield piece


def trigrams(text: str) -> Iterator[str]:
    """Yield the character trigrams of `text`, normalised and padded with spaces.

    Examples:
        >>> list(trigrams("ab"))
        [' ab', 'ab ']
    """
    padded = f" {normalise(text)} "
    for start in range(len(padded) - 2):
        yield padded[start : start + 3]

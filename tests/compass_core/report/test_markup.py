"""Text from data on a page: one line, nothing that moves the cursor, and not too much of it."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from compass_core.report.markup import clean

TEXTS = st.text(st.characters(codec=None) | st.sampled_from("a \t\n\x00\u2028\ud800\u200f\xa0"))


def slow_clean(text, limit):
    """Look at every character, whatever the text."""
    words = [""]
    for char in text[: 4 * limit]:
        kind = unicodedata.category(char)
        if kind == "Cs":
            continue
        if kind in ("Cc", "Zl", "Zp") or char.isspace():
            words.append("")
        else:
            words[-1] += char
    kept = " ".join(word for word in words if word)
    return kept if len(kept) <= limit else kept[: limit - 1].rstrip() + "…"


def test_control_characters_and_runs_of_space_become_one_space():
    assert clean(" a\t\tb\x00c\u2028d  ") == "a b c d"
    assert clean("habari\ud800") == "habari"
    assert clean("مرحبا\u200f") == "مرحبا\u200f", "marks of direction stay: the page isolates them"


def test_long_text_is_cut_to_the_limit():
    assert clean("abcdef", 5) == "abcd…"
    assert clean("abc  def", 5) == "abc…"


@given(TEXTS, st.integers(1, 12))
def test_the_quick_way_gives_what_the_slow_one_gives(text, limit):
    assert clean(text, limit) == slow_clean(text, limit)

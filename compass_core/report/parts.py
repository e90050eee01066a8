"""Small pieces that several parts of a report share: names, badges, lists, legends."""

from __future__ import annotations

from collections.abc import Iterable

from compass_core.errors import CompassError
from compass_core.report.data import ClusterRow
from compass_core.report.markup import Html, tag, user_text

STATUS_TEXT = {
    "promoted": "✓ Promoted",
    "kept": "● Kept the champion",
    "failed": "✕ Failed",
    "selected": "○ Selection only",
    "scored": "○ Compared",
}

TRIVIAL_TEXT = {
    "majority": "Always the most frequent answer",
    "string_overlap": "The answer that shares most characters with the question",
    "overlap": "The answer that shares most characters with the question",
    "chance": "Guessing",
}


def anchor(language: str) -> str:
    """Return the anchor of a language's section."""
    return "language-" + "".join(char if char.isalnum() else "-" for char in language)


def badge(status: str) -> Html:
    """Return the outcome as a small label with a sign of its own, not only a colour."""
    return tag("span", STATUS_TEXT.get(status, status), class_=f"badge {status}")


def readable_name(key: str) -> str:
    """Return a technical name as words."""
    return key.replace("_", " ").replace("-", " ").strip().capitalize()


def source_name(code: str) -> str:
    """Return the name of a source language, its code where it is not one we know."""
    from compass_core.languages import language_name

    try:
        return language_name(code)
    except (CompassError, ValueError):
        return code


def bullet_list(items: Iterable[str], class_: str = "") -> Html:
    """Return sentences from the run as a list."""
    return tag("ul", *(tag("li", user_text(item)) for item in items), class_=class_ or None)


def scrolling(content: Html, title: str) -> Html:
    """Return content that scrolls by itself where the screen is narrower than it."""
    return tag("div", content, class_="scroll", tabindex="0", role="region", aria_label=title)


def key(*entries: tuple[str, str]) -> Html:
    """Return a legend: (class of the mark, its meaning)."""
    return tag(
        "p",
        *(
            tag("span", tag("i", class_=f"mark {mark}", aria_hidden="true"), " ", text)
            for mark, text in entries
        ),
        class_="key",
    )


def by_gap(clusters: Iterable[ClusterRow]) -> list[ClusterRow]:
    """Return clusters by falling gap, then by what was taken, then by number."""
    return sorted(clusters, key=lambda row: (-row.gap, -row.allocation, row.cluster))

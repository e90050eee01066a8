"""HTML that cannot be broken by the data in it.

``tag("td", label)`` escapes its children and attributes; only `Html`, which `tag` itself makes,
goes in unescaped. So nothing from a corpus reaches the page as markup, and nobody has to
remember it.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from urllib.parse import urlsplit

MAX_TEXT = 300
"""Characters of one text from the data; more is cut, so that one bad label cannot fill a page."""

_SAFE_SCHEMES = frozenset({"", "http", "https", "file"})
_VOID = frozenset({"meta", "br", "hr", "col"})
_CHILDLESS = frozenset({"line", "circle", "rect", "path", "use"})
_NO_VALUE = "–"


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | None
"""A child of an element: `Html` goes in as it is, other text is escaped, ``None`` is left out."""


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text` on one line without control characters and lone surrogates, cut to `limit`."""
    kept = text[: 4 * limit]
    if not kept.isprintable():  # most texts are
        kept = "".join(
            " " if unicodedata.category(char) in {"Cc", "Zl", "Zp"} else char
            for char in kept
            if unicodedata.category(char) != "Cs"
        )
    kept = " ".join(kept.split())
    return kept if len(kept) <= limit else kept[: limit - 1].rstrip() + "…"


def escape(text: Child) -> Html:
    """Return `text` safe inside an element or a quoted attribute."""
    if text is None:
        return Html("")
    if isinstance(text, Html):
        return text
    return Html(html.escape(text, quote=True))


def join(parts: Iterable[Child], separator: str = "") -> Html:
    """Return `parts` one after the other as one piece of markup."""
    return Html(escape(separator).join(escape(part) for part in parts))


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """Return one element.

    Attribute names are written as Python allows: ``class_`` is class, ``aria_label`` is aria-label.
    ``None`` and ``False`` leave an attribute out, ``True`` writes it without a value.

    Examples:
        >>> print(tag("td", "a < b", class_="label"))
        <td class="label">a &lt; b</td>
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key_text = key.rstrip("_").replace("_", "-")
        text = compact(value) if isinstance(value, (int, float)) else value
        words.append(key_text if value is True else f'{key_text}="{html.escape(text, quote=True)}"')
    if name in _CHILDLESS:
        return Html(f"<{' '.join(words)}/>")
    opening = f"<{' '.join(words)}>"
    return Html(opening) if name in _VOID else Html(f"{opening}{join(children)}</{name}>")


def compact(value: float) -> str:
    """Return a number for an attribute: at most two decimals, never in scientific notation."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def user_text(text: str, limit: int = MAX_TEXT) -> Html:
    """Return text from the data, isolated so that its writing direction stays its own."""
    return tag("bdi", clean(text, limit), dir="auto")


def link(text: str, url: str) -> Html:
    """Return a link, or plain text where the address is not one a report should lead to."""
    address = clean(url, 2_000)
    try:
        safe = urlsplit(address).scheme.lower() in _SAFE_SCHEMES
    except ValueError:
        safe = False
    if not address or not safe:
        return join([user_text(text), " ", tag("code", address)])
    return tag("a", user_text(text), href=address, rel="noreferrer")


def table(
    header: Sequence[Child], rows: Iterable[Sequence[Child]], *, caption: str, class_: str = ""
) -> Html:
    """Return a table whose first column names its rows; narrow screens show a row as a card."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    names = [_plain_text(cell) for cell in header]
    body = [
        tag(
            "tr",
            *(
                tag("th", cell, scope="row")
                if column == 0
                else tag("td", cell, data_label=names[column])
                for column, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", head),
        tag("tbody", *body),
        class_=f"data {class_}".strip(),
    )


def _plain_text(cell: Child) -> str:
    """Return the text of a header cell without its markup."""
    if not isinstance(cell, Html):
        return cell or ""
    inside, kept = False, []
    for char in cell:
        inside = True if char == "<" else inside
        if not inside:
            kept.append(char)
        inside = False if char == ">" else inside
    return html.unescape("".join(kept))


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage, a dash where it was not measured.

    Examples:
        >>> percent(0.5614), percent(None)
        ('56.1%', '–')
    """
    return _NO_VALUE if _unknown(value) else f"{100 * (value or 0.0):.{digits}f}%"


def points(value: float | None) -> str:
    """Return a difference of fractions in percentage points, with its sign.

    Examples:
        >>> points(0.0312), points(-0.2)
        ('+3.1', '−20.0')
    """
    if _unknown(value):
        return _NO_VALUE
    rounded = round(100 * (value or 0.0), 1)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def interval(low: float | None, high: float | None) -> str:
    """Return both ends of an interval in percent, on one line.

    Examples:
        >>> interval(0.5, 0.613), interval(None, 0.6)
        ('50.0–61.3', '–')
    """
    if _unknown(low) or _unknown(high):
        return _NO_VALUE
    return f"{percent(low)[:-1]}–{percent(high)[:-1]}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for reading: whole ones with thin thousands marks, others rounded."""
    if _unknown(value):
        return _NO_VALUE
    known = value or 0.0
    if float(known).is_integer() and abs(known) < 1e15:
        return f"{int(known):,}".replace(",", "\u202f")
    return f"{known:.{digits}f}"


def p_value(value: float | None) -> str:
    """Return a p-value; tiny ones as a bound."""
    if _unknown(value):
        return _NO_VALUE
    return "< .001" if (value or 0.0) < 0.001 else f"{value:.3f}".removeprefix("0")


def exact_p(value: float | None) -> str:
    """Return a p-value or a level to be compared with one: tiny ones with their first digits.

    Examples:
        >>> exact_p(0.0312), exact_p(0.00005), exact_p(0.01 / 42)
        ('.031', '.00005', '.00024')
    """
    known = value or 0.0
    if _unknown(value) or known >= 0.001 or known < 1e-9:
        return p_value(value)
    digits = 1 - math.floor(math.log10(known))
    return f"{known:.{digits}f}".rstrip("0").removeprefix("0")


def duration(seconds: float | None) -> str:
    """Return seconds for reading.

    Examples:
        >>> duration(4.21), duration(135), duration(7320)
        ('4.2 s', '2 min 15 s', '2 h 2 min')
    """
    if _unknown(seconds):
        return _NO_VALUE
    known = seconds or 0.0
    if known < 60:
        return f"{known:.1f} s"
    minutes, rest = divmod(round(known), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(text: str) -> str:
    """Return an ISO time for reading, or the text itself where it is none."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return clean(text, 60)
    zone = when.tzname() or ""
    return f"{when:%Y-%m-%d %H:%M} {zone}".strip()


def elapsed(started: str, finished: str) -> float | None:
    """Return the seconds between two ISO times, ``None`` where that cannot be said."""
    try:
        return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
    except (TypeError, ValueError):
        return None


def _unknown(value: float | None) -> bool:
    return value is None or not math.isfinite(value)

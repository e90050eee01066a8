"""The frame of every page: inline style, no script, and a policy that forbids loading anything."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

from compass_core.report.markup import Child, Html, clean, tag

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


def document(title: str, body: Sequence[Child]) -> str:
    """Return a whole page that needs nothing but itself."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", clean(title)),
        tag("style", Html(_style())),
    )
    page = tag("html", head, tag("body", tag("main", *body)), lang="en")
    # Half a surrogate pair in the data must not keep the page from being written.
    return f"<!doctype html>\n{page}\n".encode(errors="replace").decode()


@cache
def _style() -> str:
    asset = resources.files("compass_core.report").joinpath("assets/report.css")
    return asset.read_text(encoding="utf-8")

"""How far every language of a run has come, as a table that is read while the run goes on.

A board is told what happens, in any order and from any thread; it remembers one row per language.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from compass_core.languages import language_name
from compass_core.report.text import markdown_text

COLUMNS: Final = {
    "Data": ("ingest", "usage", "coverage", "test", "check-pool", "corpora"),
    "Embed": ("embed", "pool"),
    "Clusters": ("cluster", "update-space"),
    "Gap": ("gap-score", "screen"),
    "Select": ("sample", "update-data", "rehearsal"),
    "Train": ("adapter-train", "update-train", "fisher", "replay", "history"),
    "Score": ("evaluate", "locate", "slice", "exam"),
    "Decide": ("decide",),
}
"""Stages by column; a stage of no column shows only while it runs."""

_SYMBOLS: Final = {"done": "✓", "cached": "↺", "failed": "✕", "running": "▶"}
_LEGEND: Final = "✓ done · ↺ kept from an earlier run · ▶ running · ✕ failed"
_ORDER: Final = ("failed", "running", "waiting", "finished")
_SHARED: Final = "All languages"
_NOW_LIMIT: Final = 60
_FAILURE_LIMIT: Final = 400


@dataclass
class _Row:
    """One language so far: its state, the cells of its columns, and what it is doing."""

    state: str = "waiting"
    cells: dict[str, str] = field(default_factory=dict)
    now: str = ""
    n_made: int = 0
    n_kept: int = 0


class Board:
    """What is known about the progress of a run.

    Args:
        languages: Canonical codes, in the order of the run.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self._rows = {code: _Row() for code in ("", *languages)}
        self._guard = threading.Lock()
        self.version = 0
        """Grows with all news."""

    def tell(
        self, language: str, stage: str, state: str, fraction: float = 0.0, detail: str = ""
    ) -> None:
        """Take in one piece of news; of a language that is not in the run it is none.

        Args:
            language: Canonical code; empty for work shared by all languages.
            stage: Stage and, where there are several, its arm: ``adapter-train compass``.
            state: ``running``, ``done``, ``cached``, ``failed``, or ``finished`` for the end of the
                language.
            fraction: Share of the stage that is done, in [0, 1].
            detail: A few words for a person.
        """
        with self._guard:
            row = self._rows.get(language)
            if row is None:
                return
            self.version += 1
            column = _column(stage)
            if state == "finished":
                row.state, row.now = "finished", detail.partition(": ")[2] or detail
                return
            if column:
                percent = f" {fraction:.0%}" if state == "running" and fraction else ""
                row.cells[column] = _SYMBOLS[state] + percent
            row.n_made += state == "done"
            row.n_kept += state == "cached"
            if state == "running":
                row.now = " ".join(word for word in (stage, detail) if word)
            if state == "failed":
                where = row.now if row.state == "failed" else stage
                row.state, row.now = "failed", ": ".join(text for text in (where, detail) if text)
            elif row.state != "failed":
                row.state = "running" if state == "running" else "waiting"

    def finish(self) -> None:
        """Take every language that is still running as done: the run ended well."""
        with self._guard:
            self.version += 1
            for code, row in self._rows.items():
                if code and row.state in ("running", "waiting"):
                    row.state, row.now = "finished", ""

    def kept_and_made(self, language: str) -> tuple[int, int]:
        """Return how many stages of a language were kept from earlier runs and how many made."""
        with self._guard:
            row = self._rows.get(language, _Row())
            return row.n_kept, row.n_made

    def headline(self, *, over: bool = False) -> str:
        """Return the progress in one line; of a run that is `over` nothing runs or waits."""
        with self._guard:
            states = [row.state for code, row in self._rows.items() if code]
        if over:
            states = ["stopped" if state in ("running", "waiting") else state for state in states]
        counts = {state: states.count(state) for state in (*_ORDER, "stopped")}
        parts = [f"{counts['finished']} of {len(states)} languages done"]
        left = ("failed", "running", "waiting", "stopped")
        parts += [f"{counts[state]} {state}" for state in left if counts[state]]
        return ", ".join(parts)

    def markdown(self, *, elapsed: str, updated: str, over: bool) -> str:
        """Return the table: what failed first, then what runs, what waits and what is done.

        Args:
            elapsed: Time since the run started, for a person.
            updated: Time of day of this table.
            over: Whether the run has ended.
        """
        with self._guard:
            rows = sorted(
                ((code, row) for code, row in self._rows.items() if code),
                key=lambda entry: _ORDER.index(entry[1].state),
            )
            shared = self._rows[""]
            lines = [_line(code, row, over) for code, row in rows]
            failures = [
                f"- **{markdown_text(language_name(code))}** failed in "
                f"{markdown_text(row.now, _FAILURE_LIMIT)}"
                for code, row in rows
                if row.state == "failed"
            ]
            if shared.state != "waiting" and not over:
                busy = any(row.state != "waiting" for _, row in rows)
                lines.insert(0, _line("", shared, over=over or busy))
        header = ["Language", *COLUMNS, "Now"]
        marks = [":--", *(":-:" for _ in COLUMNS), ":--"]
        state = "ended after" if over else "running for"
        return "\n".join(
            [
                f"## {self.headline(over=over)}",
                "",
                f"{state.capitalize()} {elapsed}, as of {updated}."
                + ("" if over else " Load the page again for newer figures."),
                "",
                *failures,
                "",
                f"| {' | '.join(header)} |",
                f"|{'|'.join(marks)}|",
                *lines,
                "",
                _LEGEND,
                "",
            ]
        )


def _column(stage: str) -> str:
    name = stage.partition(" ")[0]
    return next((column for column, stages in COLUMNS.items() if name in stages), "")


def _line(code: str, row: _Row, over: bool) -> str:
    name = markdown_text(language_name(code)) if code else _SHARED
    cells = [row.cells.get(column, "") for column in COLUMNS]
    return f"| {' | '.join([name, *cells, _now(row, over)])} |"


def _now(row: _Row, over: bool) -> str:
    """Return what a language is doing, or how it ended."""
    if row.state == "failed":
        return "**FAILED**"  # why stands above the table, where a long path finds room
    if row.state == "finished":
        return markdown_text(row.now or "done", _NOW_LIMIT)
    if over:
        return "stopped"
    return markdown_text(row.now, _NOW_LIMIT) if row.state == "running" else "waiting"

"""What was said about every window of a language, in the order it was said: one small JSON file.

The order is that of the decisions, never of the clock, so a clock that goes backwards changes
nothing that was decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from compass_core.errors import StoreError
from compass_core.storage import read_json, write_json

Entry = Mapping[str, Any]
"""A window as plain JSON: at least ``space``, ``name``, ``start``, ``end`` and ``status``."""


class History:
    """The decided windows of one language; its caller holds the language's lock."""

    def __init__(self, path: Path) -> None:
        """Take the file `path`; it is made with the first window."""
        self.path = path

    def entries(self) -> list[dict[str, Any]]:
        """Return every decided window, in the order of the decisions.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            entries: list[dict[str, Any]] = read_json(self.path)["windows"]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"The history of decided windows {self.path} cannot be read: {error}. Restore it "
                "from a back-up, or delete it: windows decided before are then left alone, and "
                "alarms in a row are counted from the next one."
            ) from error
        return entries

    def find(self, space: str, name: str) -> dict[str, Any] | None:
        """Return what was said about a window in this space, or None."""
        found = [e for e in self.entries() if (e["space"], e["name"]) == (space, name)]
        return found[-1] if found else None

    def add(self, entry: Entry) -> None:
        """Append what was said about a window; what was said once stays."""
        entries = self.entries()
        if all((e["space"], e["name"]) != (entry["space"], entry["name"]) for e in entries):
            write_json(self.path, {"windows": [*entries, dict(entry)]})


def comparison_start(entries: Sequence[Entry], space: str) -> datetime | None:
    """Return where the comparison in `space` begins: where the last one in another space ended.

    What was decided in another space is not decided again in this one.
    """
    ends = [datetime.fromisoformat(e["end"]) for e in entries if e["space"] != space]
    return max(ends, default=None)

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
from compass_core.storage import canonical_json, read_json, write_text

Entry = Mapping[str, Any]
"""A window as plain JSON: at least ``space``, ``name``, ``start``, ``end`` and ``status``."""


class History:
    """The decided windows of one language.

    The file is read once: whoever adds holds the language's lock from the first reading on, so
    nobody else writes meanwhile.
    """

    def __init__(self, path: Path) -> None:
        """Take the file `path`; it is made with the first window."""
        self.path = path
        self._known: dict[tuple[str, str], dict[str, Any]] | None = None

    def entries(self) -> list[dict[str, Any]]:
        """Return every decided window, in the order of the decisions.

        Raises:
            StoreError: the file cannot be read.
        """
        return list(self._read().values())

    def find(self, space: str, name: str) -> dict[str, Any] | None:
        """Return what was said about a window in this space, or None."""
        return self._read().get((space, name))

    def add(self, entry: Entry) -> None:
        """Append what was said about a window; what was said once stays."""
        known, key = self._read(), (entry["space"], entry["name"])
        if key not in known:
            longer = {**known, key: dict(entry)}
            write_text(self.path, canonical_json({"windows": list(longer.values())}) + "\n")
            self._known = longer

    def _read(self) -> dict[tuple[str, str], dict[str, Any]]:
        if self._known is None:
            self._known = {(e["space"], e["name"]): e for e in _windows(self.path)}
        return self._known


def _windows(path: Path) -> list[dict[str, Any]]:
    try:
        windows: list[dict[str, Any]] = read_json(path)["windows"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"The history of decided windows {path} cannot be read: {error}. Restore it "
            "from a back-up, or delete it: windows decided before are then left alone, and "
            "alarms in a row are counted from the next one."
        ) from error
    return windows


def comparison_start(entries: Sequence[Entry], space: str) -> datetime | None:
    """Return where the comparison in `space` begins: where the last one in another space ended.

    What was decided in another space is not decided again in this one.
    """
    ends = [datetime.fromisoformat(e["end"]) for e in entries if e["space"] != space]
    return max(ends, default=None)

"""Collecting what is wrong with a file, so that one message names every bad row (bounded)."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from compass_core.errors import MAX_PROBLEMS_SHOWN, DataError, bounded_list

MAX_VALUE_SHOWN: Final = 80
"""Characters of a refused value that are shown back."""


def show(value: Any) -> str:
    """Return `value` for a message: escaped, so that data cannot forge log lines, and cut."""
    if isinstance(value, str):
        text = repr(value[: MAX_VALUE_SHOWN + 1])
    else:
        text = repr(value) if not isinstance(value, (list, dict)) else _shallow(value)
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= MAX_VALUE_SHOWN else text[: MAX_VALUE_SHOWN - 1] + "…"


def _shallow(value: list[Any] | dict[str, Any]) -> str:
    """Describe a container without walking it (it may be deep)."""
    kind = "a list" if isinstance(value, list) else "an object"
    return f"{kind} of {len(value)}"


class Problems:
    """Bad rows of one corpus: the first ones in words, all of them counted."""

    def __init__(self, name: str) -> None:
        """Collect for the corpus called `name`."""
        self.name = name
        self.count = 0
        self.codes: Counter[str] = Counter()
        self._shown: list[tuple[str, str]] = []

    def add(  # the parts of RELIABILITY's message, in its order
        self, code: str, reason: str, place: str, *, got: str = "", advice: str
    ) -> None:
        """Note one bad row: ``E<nn> <reason>: <file>:<line> <field> got <value> - <advice>``."""
        self.count += 1
        self.codes[code] += 1
        if len(self._shown) < MAX_PROBLEMS_SHOWN:
            found = f" got {got}" if got else ""
            self._shown.append((code, f"{reason}: {place}{found} - {advice}"))

    def summary(self) -> str:
        """Return how many rows are bad, by code."""
        return ", ".join(f"{code} × {count}" for code, count in sorted(self.codes.items()))

    def first(self) -> str:
        """Return the first problem in words."""
        code, text = self._shown[0]
        return f"{code} {text}"

    def raise_if_any(self) -> None:
        """Raise when something was noted.

        Raises:
            DataError: with the code of the first problem, naming the first ones and the count.
        """
        if not self.count:
            return
        code, text = self._shown[0]
        if self.count == 1:
            raise DataError(text, code=code)
        lines = [f"{c} {t}" for c, t in self._shown]
        lines += [""] * (self.count - len(lines))
        raise DataError(
            f"{self.name} has {self.count} problems ({self.summary()}):\n{bounded_list(lines)}\n"
            "Nothing was written. Repair the file, or set `bad_rows: skip` to leave such rows out.",
            code=code,
        )

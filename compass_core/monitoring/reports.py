"""What a reading of the log came to, in numbers that say nothing about anybody."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class AppendReport:
    """What became of the records of one reading.

    Attributes:
        n_read: Records looked at, of any language, unusable ones included.
        n_new: Observations that were added.
        n_known: Records that were observed before (equal id).
        n_conflicting: Of those, records whose text or time is another; the first one counts.
        n_late: Of the new ones, those that came after their window was decided.
        n_before: Records older than the stretch that is watched; left out.
        n_forgotten: Records that `compass forget` removed before; left out.
        n_unfinished: Last lines that were still being written; they are read next time.
        rejected: Records that cannot be used, by reason.
        other_languages: Records of other languages, by canonical code.
        unknown_languages: Records whose language is none, by what they say.
        n_files: Files (or tables) read.
        n_unchanged: Files that are as they were when they were last read, and were not read again.
        warnings: What a person should know.
    """

    n_read: int = 0
    n_new: int = 0
    n_known: int = 0
    n_conflicting: int = 0
    n_late: int = 0
    n_before: int = 0
    n_forgotten: int = 0
    n_unfinished: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    other_languages: Counter[str] = field(default_factory=Counter)
    unknown_languages: Counter[str] = field(default_factory=Counter)
    n_files: int = 0
    n_unchanged: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def n_rejected(self) -> int:
        """Records that cannot be used."""
        return self.rejected.total()

    def add(self, other: AppendReport) -> None:
        """Add what another reading came to."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.rejected += other.rejected
        self.other_languages += other.other_languages
        self.unknown_languages += other.unknown_languages
        self.warnings += [text for text in other.warnings if text not in self.warnings]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "n_rejected": self.n_rejected,
            "rejected": dict(self.rejected.most_common()),
            "other_languages": dict(self.other_languages.most_common()),
            "unknown_languages": dict(self.unknown_languages.most_common()),
            "warnings": list(self.warnings),
        }


_NUMBERS = (
    "n_read",
    "n_new",
    "n_known",
    "n_conflicting",
    "n_late",
    "n_before",
    "n_forgotten",
    "n_unfinished",
    "n_files",
    "n_unchanged",
)

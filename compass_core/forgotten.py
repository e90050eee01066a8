"""Ids that must not be used any more: keyed hashes alone, honoured wherever rows are read.

The list outlives what was removed, because the files that the rows came from are not ours to change
and would bring them back with the next reading.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from compass_core.errors import StoreError
from compass_core.monitoring.privacy import Hasher, open_key
from compass_core.storage import file_lock, write_text

FILE_NAME: Final = "forgotten"


class Forgotten:
    """The list of one COMPASS home."""

    def __init__(self, home: Path, environment: Mapping[str, str] | None = None) -> None:
        """Take the list under `home`; the secret is read (or made) when it is first needed."""
        self.path = home / FILE_NAME
        self._secret = home / "usage"
        self._environment = os.environ if environment is None else environment
        self._read: tuple[tuple[int, int, int], frozenset[bytes]] | None = None

    def add(self, ids: Iterable[str]) -> int:
        """Add `ids`; return how many were new."""
        hashes = {self._hasher()("record", text) for text in ids}
        with file_lock(self.path.with_name(f".{FILE_NAME}.lock")):
            known = self.hashes()
            if hashes - known:
                lines = sorted(value.hex() for value in hashes | known)
                write_text(self.path, "".join(f"{line}\n" for line in lines))
        return len(hashes - known)

    def hashes(self) -> frozenset[bytes]:
        """Return the keyed hashes of all forgotten ids.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return frozenset()
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._read is None or self._read[0] != state:
            try:
                lines = self.path.read_text(encoding="ascii").split()
                self._read = state, frozenset(bytes.fromhex(line) for line in lines)
            except ValueError as error:
                raise StoreError(
                    f"{self.path} is damaged. Restore it from a back-up: rows that must not be "
                    "used would come back."
                ) from error
        return self._read[1]

    def __bool__(self) -> bool:
        """Tell whether anything was ever forgotten."""
        return bool(self.hashes())

    def covers(self, record_id: str) -> bool:
        """Tell whether `record_id` is forgotten."""
        hashes = self.hashes()
        return bool(hashes) and self._hasher()("record", record_id) in hashes

    def identity(self) -> str:
        """Return what changes when an id is forgotten; empty as long as none is."""
        hashes = self.hashes()
        return hashlib.sha256(b"".join(sorted(hashes))).hexdigest() if hashes else ""

    def _hasher(self) -> Hasher:
        return Hasher(open_key(self._secret, self._environment))

"""Ids that must not be used any more: keyed hashes alone, honoured wherever rows are read.

The list outlives what was removed, because the files that the rows came from are not ours to change
and would bring them back with the next reading.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa

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
        self._hash: Hasher | None = None
        self._read: tuple[tuple[int, int, int], frozenset[bytes]] | None = None

    def add(self, ids: Iterable[str]) -> int:
        """Add `ids`; return how many were new."""
        with self._at_rest():
            hashes = {self.hash_of(text) for text in ids}
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

    def test(self) -> Callable[[str], bool] | None:
        """Return what tells whether an id is forgotten now; None where none is."""
        if not self.path.exists():
            return None
        with self._at_rest():
            hashes, hasher = self.hashes(), self._hasher()
        return (lambda record_id: hasher("record", record_id) in hashes) if hashes else None

    def without(self, rows: pa.Table) -> pa.Table:
        """Return the rows of `rows` (with an ``id``) that are not forgotten."""
        covers = self.test()
        if covers is None:
            return rows
        return rows.filter(pa.array([not covers(text) for text in rows["id"].to_pylist()]))

    def hash_of(self, record_id: str) -> bytes:
        """Return the keyed hash that stands for an id: all that a receipt may say."""
        return self._hasher()("record", record_id)

    def _hasher(self) -> Hasher:
        if self._hash is None:
            self._hash = Hasher(open_key(self._secret, self._environment))
        return self._hash

    @contextlib.contextmanager
    def _at_rest(self) -> Iterator[None]:
        """Hold the list while secret and hashes belong together: a rotation changes both."""
        with file_lock(self.path.with_name(f".{FILE_NAME}.lock")):
            self._hash = None
            yield

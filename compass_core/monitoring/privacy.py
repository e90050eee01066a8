"""What is kept of a record instead of the record: keyed hashes.

Without the key nobody can find out whether an id or a prompt is in the observations by hashing a
guess; with it, `forget` finds what it has to remove.
"""

from __future__ import annotations

import functools
import hmac
import re
import secrets
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from compass_core.errors import ConfigError, StoreError
from compass_core.storage import file_lock, write_bytes

KEY_BYTES: Final = 16
"""Bytes of a keyed hash: HMAC-SHA256, cut."""

KEY_VARIABLE: Final = "COMPASS_PRIVACY_KEY"
KEY_NAME: Final = "secret.key"
_SECRET_BYTES: Final = 32
_SHORTEST_SECRET: Final = 16
_REMEMBERED: Final = 65_536
_SPACES: Final = re.compile(r"\s+")

What = Literal["record", "user", "session", "text"]


def open_key(folder: Path, environment: Mapping[str, str]) -> bytes:
    """Return the secret of a COMPASS home's hashes; it is made once, readable by its owner alone.

    Args:
        folder: ``COMPASS_HOME/usage``.
        environment: `KEY_VARIABLE` in it replaces the file, so that machines can share a secret.

    Raises:
        ConfigError: the variable is shorter than 16 characters.
        StoreError: the file is damaged.
    """
    given = environment.get(KEY_VARIABLE, "")
    if given:
        if len(given) < _SHORTEST_SECRET:
            raise ConfigError(
                f"{KEY_VARIABLE} has {len(given)} characters; give {_SHORTEST_SECRET} or more, for "
                'example of `python -c "import secrets; print(secrets.token_hex(32))"`.'
            )
        return given.encode()
    path = folder / KEY_NAME
    if not path.exists():
        with file_lock(folder / f".{KEY_NAME}.lock"):
            if not path.exists():
                folder.chmod(0o700)
                write_bytes(path, secrets.token_bytes(_SECRET_BYTES))
                path.chmod(0o600)
    key = path.read_bytes()
    if len(key) < _SHORTEST_SECRET:
        raise StoreError(
            f"{path} is damaged ({len(key)} bytes). Restore it from a back-up; without it what was "
            "observed before cannot be matched to records, and `compass forget` finds nothing."
        )
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return key


class Hasher:
    """Keyed hashes of ids and texts, each kind in a space of its own."""

    def __init__(self, key: bytes) -> None:
        """Take the secret; `os.fork` and threads may share the object."""
        self._key = key
        self.repeated = functools.lru_cache(_REMEMBERED)(self.__call__)
        """The same, remembered: for users and sessions, who come again and again."""

    def __call__(self, what: What, value: str) -> bytes:
        """Return the 16-byte hash of `value`."""
        message = f"{what}\0{value}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, message, "sha256")[:KEY_BYTES]


def normalised(text: str) -> str:
    r"""Return what equal prompts have in common: composed, without case and runs of spaces.

    Examples:
        >>> normalised("  Habari  YAKO?\n") == normalised("habari yako?")
        True
    """
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()

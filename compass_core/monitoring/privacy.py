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
LINKS_NAME: Final = "rotated.keys"
"""Secrets added by rotations, one per line in hex: each hashes what the one before it gave."""

ROTATION_NAME: Final = ".rotation"
READY_NAME: Final = "READY.json"
"""Files of a rotation on its way; once the second is there it can only be finished."""

CHECK_NAME: Final = "key.check"
"""Tells, beside the hashes, with which secret they were made, without telling the secret."""

_CHECKED: Final = b"check\0COMPASS"
_OTHERWISE: Final = (
    "With another one every record would be counted a second time and forgotten ids would come "
    "back. Where it is lost for good, move the folder usage and the file forgotten away: "
    "monitoring begins anew."
)
_SECRET_BYTES: Final = 32
_SHORTEST_SECRET: Final = 16
_REMEMBERED: Final = 65_536
_SPACES: Final = re.compile(r"\s+")

What = Literal["record", "user", "session", "text"]
Key = bytes | tuple[bytes, ...]
"""A secret, or the secret with those that rotations added, oldest first."""


def is_rotating(folder: Path) -> bool:
    """Say whether a rotation under ``COMPASS_HOME/usage`` was begun and can only be finished."""
    return (folder / ROTATION_NAME / READY_NAME).exists()


def open_key(folder: Path, environment: Mapping[str, str]) -> Key:
    """Return the secret of a COMPASS home's hashes; it is made once, readable by its owner alone.

    Args:
        folder: ``COMPASS_HOME/usage``.
        environment: `KEY_VARIABLE` in it replaces the file, so that machines can share a secret.

    Raises:
        ConfigError: the variable is shorter than 16 characters.
        StoreError: the file is damaged or lost, the secret is not the one that was used before, or
            a rotation was interrupted.
    """
    if is_rotating(folder):
        raise StoreError(
            "Replacing the secret of hashed ids was interrupted half-way. Run `compass rotate-key "
            "--yes`, which finishes it; nothing is lost."
        )
    base, links = _given_key(environment) or _own_key(folder), read_links(folder)
    key: Key = (base, *links) if links else base
    _check_same(folder, key)
    return key


def read_links(folder: Path) -> list[bytes]:
    """Return the secrets that rotations added, oldest first.

    Raises:
        StoreError: the file is damaged.
    """
    path = folder / LINKS_NAME
    try:
        links = [bytes.fromhex(line) for line in path.read_text(encoding="ascii").split()]
        if not links or any(len(link) != _SECRET_BYTES for link in links):
            raise ValueError("no secret of 32 bytes in a line")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise StoreError(f"{path} is damaged. Restore it from a back-up. {_OTHERWISE}") from error
    return links


def rehashed(value: bytes, link: bytes) -> bytes:
    """Return what a hash becomes when the secret `link` is added."""
    return hmac.digest(link, value, "sha256")[:KEY_BYTES]


def check_value(key: Key) -> bytes:
    """Return what tells keys apart without telling them."""
    base, *links = key if isinstance(key, tuple) else (key,)
    value = hmac.digest(base, _CHECKED, "sha256")[:KEY_BYTES]
    for link in links:
        value = rehashed(value, link)
    return value.hex().encode()


def _given_key(environment: Mapping[str, str]) -> bytes:
    given = environment.get(KEY_VARIABLE, "")
    if given and len(given) < _SHORTEST_SECRET:
        raise ConfigError(
            f"{KEY_VARIABLE} has {len(given)} characters; give {_SHORTEST_SECRET} or more, for "
            'example of `python -c "import secrets; print(secrets.token_hex(32))"`.'
        )
    return given.encode()


def _own_key(folder: Path) -> bytes:
    path = folder / KEY_NAME
    if not path.exists():
        with file_lock(folder / f".{KEY_NAME}.lock"):
            if not path.exists():
                if (folder / CHECK_NAME).exists():
                    raise StoreError(
                        f"{path} is missing, and this home was used with a secret. Restore it from "
                        f"a back-up, or set {KEY_VARIABLE} as it was. {_OTHERWISE}"
                    )
                folder.chmod(0o700)
                write_bytes(path, secrets.token_bytes(_SECRET_BYTES))
                path.chmod(0o600)
    key = path.read_bytes()
    if len(key) < _SHORTEST_SECRET:
        raise StoreError(
            f"{path} is damaged ({len(key)} bytes). Restore it from a back-up. {_OTHERWISE}"
        )
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return key


def _check_same(folder: Path, key: Key) -> None:
    """Refuse another secret than the first one: records would double, forgotten ids come back."""
    path = folder / CHECK_NAME
    value = check_value(key)
    if not path.exists():
        with file_lock(folder / f".{KEY_NAME}.lock"):
            if not path.exists():
                write_bytes(path, value)
                path.chmod(0o600)
    if not hmac.compare_digest(path.read_bytes(), value):
        raise StoreError(
            f"The secret of hashed ids is not the one that {folder} was made with: restore "
            f"{KEY_NAME} from a back-up, or set {KEY_VARIABLE} as it was (unset it if it was not "
            f"set then). {_OTHERWISE}"
        )


class Hasher:
    """Keyed hashes of ids and texts, each kind in a space of its own."""

    def __init__(self, key: Key) -> None:
        """Take the secret; `os.fork` and threads may share the object."""
        self._key, *self._links = key if isinstance(key, tuple) else (key,)
        self.repeated = functools.lru_cache(_REMEMBERED)(self.__call__)
        """The same, remembered: for users and sessions, who come again and again."""

    def __call__(self, what: What, value: str) -> bytes:
        """Return the 16-byte hash of `value`."""
        message = f"{what}\0{value}".encode("utf-8", "surrogatepass")
        found = hmac.digest(self._key, message, "sha256")[:KEY_BYTES]
        for link in self._links:
            found = rehashed(found, link)
        return found


def normalised(text: str) -> str:
    r"""Return what equal prompts have in common: composed, without case and runs of spaces.

    Examples:
        >>> normalised("  Habari  YAKO?\n") == normalised("habari yako?")
        True
    """
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()

"""Ids as 64-bit keys: a hash table in plain arrays, so that millions of ids cost megabytes."""

from __future__ import annotations

import hashlib
from array import array
from typing import Final

_FIRST_SLOTS: Final = 1 << 12
_EMPTY: Final = 0


def id_key(text: str) -> int:
    """Return the 64-bit key of an id (that of `selection.drawing.example_keys`)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class FirstPlaces:
    """Where each key was first seen; 16 bytes a slot, at most two thirds of the slots taken.

    Two ids share a key with probability N²/2⁶⁵ (3 in a million for ten million ids); such a pair is
    taken for one id.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._allocate(_FIRST_SLOTS)

    def add(self, key: int, place: int) -> int | None:
        """Keep `place` (below 2⁶⁴) for a new `key`; return the first place of a known one."""
        key = key or 1
        slot = self._slot(key)
        if self._keys[slot] == key:
            return self._places[slot]
        self._keys[slot] = key
        self._places[slot] = place
        self._taken += 1
        if 3 * self._taken > 2 * len(self._keys):
            self._grow()
        return None

    def _slot(self, key: int) -> int:
        """Return the slot of `key`, or the free one it belongs into (linear probing)."""
        keys, mask = self._keys, len(self._keys) - 1
        slot = key & mask
        while keys[slot] != key and keys[slot] != _EMPTY:
            slot = (slot + 1) & mask
        return slot

    def _allocate(self, slots: int) -> None:
        self._keys = array("Q", bytes(8 * slots))
        self._places = array("Q", bytes(8 * slots))

    def _grow(self) -> None:
        keys, places = self._keys, self._places
        self._allocate(2 * len(keys))
        for key, place in zip(keys, places, strict=True):
            if key != _EMPTY:
                slot = self._slot(key)
                self._keys[slot] = key
                self._places[slot] = place

"""Independent, named random streams derived from one run seed.

A stream depends on its name alone, so adding a step never changes the numbers another step draws.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str) -> int:
    """Return a 63-bit seed for the stream called `names` under `seed`.

    Examples:
        >>> derive_seed(0, "draw", "swh_Latn") == derive_seed(0, "draw", "swh_Latn")
        True
        >>> derive_seed(0, "draw") == derive_seed(1, "draw")
        False
    """
    digest = hashlib.blake2b("\x1f".join([str(seed), *names]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_rng(seed: int, *names: str) -> np.random.Generator:
    """Return the generator of the stream called `names` under `seed`."""
    return np.random.default_rng(derive_seed(seed, *names))

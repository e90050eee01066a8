"""Where the shipped weights lie; kept apart so that asking needs no torch."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def encoder_path() -> Path:
    """Return the folder of the shipped sentence-transformers encoder."""
    return WEIGHTS / "encoder"


def base_path() -> Path:
    """Return the folder of the shipped causal language model."""
    return WEIGHTS / "base"


def langrank_path() -> Path:
    """Return the folder of the shipped ranker of source languages."""
    return WEIGHTS / "langrank"

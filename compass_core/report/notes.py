"""Honest labels: what the numbers on a page are not evidence of."""

from __future__ import annotations

from typing import Final

DEMONSTRATION_NOTE: Final = (
    "Demonstration corpus of Unicode CLDR names and a tiny model trained on such names. It shows "
    "that the pipeline works; it is no evidence about Global-MMLU or any real model."
)
RECONSTRUCTION_NOTE: Final = (
    "A reconstruction of the method from its public parts, not a replication of the paper."
)

"""Starter encoder: token vectors fitted on parallel CLDR names of train keys.

It knows names, not sentences: use it for the starter corpus and for plumbing tests, and
`compass fit-encoder` or a pretrained encoder for everything else.
"""

from __future__ import annotations

from pathlib import Path

from compass_core import encoder_fitting
from compass_core.encoder_fitting import EncoderRecipe, TextEncoder
from compass_core.starter import corpus

RECIPE = EncoderRecipe(
    dim=96,
    vocab_size=8192,
    n_steps=1000,
    batch_size=256,
    learning_rate=2e-2,
    temperature=0.05,
    token_dropout=0.15,
    start="random",
    group_weight=0.2,
)
"""Fifty languages of short names have pairs enough to learn from a random start."""

MEASURED_LANGUAGES = corpus.STARTER_LANGUAGES[::3]
"""Languages the shipped figures are measured on: every third, ten scripts."""


def train_encoder(out_dir: Path, *, seed: int = 0) -> Path:
    """Fit the encoder on the names of train keys and save it under `out_dir`.

    CLDR keeps names in lists (territories, currencies, …); rows of one list attract each other a
    little, which stands in for what a pretrained encoder knows about kinds of things.
    """
    names = corpus.parallel_names()
    lists = {key: key.split(":")[1] for key in names}
    return encoder_fitting.fit_encoder(names, out_dir, recipe=RECIPE, groups=lists, seed=seed)


def measure_encoder(encoder: TextEncoder, *, centre_languages: bool = False) -> dict[str, float]:
    """Measure an encoder on usage and test names, which no part of the starter was fitted on.

    Returns:
        The figures of `compass_core.encoder_fitting.measure_encoder`.
    """
    held_out = corpus.held_out_names(MEASURED_LANGUAGES)
    topics = {key: key.split(":")[1] for key in held_out}
    return encoder_fitting.measure_encoder(
        encoder, held_out, topics, centre_languages=centre_languages
    )

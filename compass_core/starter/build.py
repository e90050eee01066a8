"""Rebuild or measure the shipped encoder and base: ``python -m compass_core.starter.build``.

``langrank`` measures gains between languages and trains the shipped ranker of source languages on
them (ten minutes more; it needs the extras ``langrank`` and ``uriel``).

Ten to twenty minutes on one core.  All are functions of the CLDR of the installed babel, the
scripts in this folder and the seed; other versions of torch may differ in the last digits.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from compass_core.langrank_fitting import fit_langrank, read_gains
from compass_core.starter.base_model import train_base
from compass_core.starter.encoder import measure_encoder, train_encoder
from compass_core.starter.langrank_gains import measure_starter_gains, starter_texts
from compass_core.starter.paths import WEIGHTS, base_path, encoder_path, langrank_path


def main(arguments: list[str] | None = None) -> int:
    """Rebuild what was asked for and print the encoder's figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    choices = ("all", "encoder", "base", "measure", "langrank")
    parser.add_argument("what", nargs="?", default="all", choices=choices)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of encoder/ and base/")
    parser.add_argument("--threads", type=int, default=1, help="more threads change the digits")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(chosen.threads)
    if chosen.what in ("all", "encoder"):
        path = train_encoder(chosen.out / encoder_path().name)
        _print_figures(path)
    if chosen.what == "measure":
        _print_figures(encoder_path())
    if chosen.what in ("all", "base"):
        train_base(chosen.out / base_path().name)
    if chosen.what == "langrank":
        _build_langrank(chosen.out / langrank_path().name)
    return 0


def _build_langrank(folder: Path) -> None:
    measured = folder.with_name(f"{folder.name}-gains.csv")
    measure_starter_gains(measured)
    gains = read_gains(measured)
    own, pool = starter_texts(set(gains.targets.tolist()), set(gains.sources.tolist()))
    facts = fit_langrank(gains, own, pool, folder, trained_on="the starter corpus")
    for name, value in facts["ndcg_at_3"]["mean"].items():
        sys.stdout.write(f"{name} {value}\n")


def _print_figures(path: Path) -> None:
    encoder = SentenceTransformer(str(path), device="cpu", trust_remote_code=False)
    for name, value in measure_encoder(encoder).items():
        sys.stdout.write(f"{name} {value:.3f}\n")


if __name__ == "__main__":
    raise SystemExit(main())

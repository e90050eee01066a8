"""Embedding as a job: paths in, vectors on disk out, in whatever process runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compass_core.embedding import encode_texts, load_encoder
from compass_core.storage import read_table, write_array


def embed_job(spec: dict[str, Any]) -> dict[str, Any]:
    """Embed the texts of one row file.

    Args:
        spec: ``encoder`` (path or hub id), ``revision``, ``device``, ``prefix``, ``batch_size``,
            ``max_length``, ``threads``, ``rows`` (Parquet file) and ``vectors`` (file to write).

    Returns:
        ``n_texts`` and ``dimension`` (0 for an empty corpus).
    """
    import torch

    rows = read_table(Path(spec["rows"]), ["prompt", "response"]).to_pydict()
    texts = [p or r for p, r in zip(rows["prompt"], rows["response"], strict=True)]
    if not texts:
        write_array(Path(spec["vectors"]), np.zeros((0, 0), dtype=np.float32))
        return {"n_texts": 0, "dimension": 0}
    torch.set_num_threads(spec["threads"])
    encoder = load_encoder(
        spec["encoder"],
        revision=spec["revision"],
        device=spec["device"],
        max_length=spec["max_length"],
    )
    vectors = encode_texts(encoder, texts, prefix=spec["prefix"], batch_size=spec["batch_size"])
    write_array(Path(spec["vectors"]), vectors)
    return {"n_texts": len(texts), "dimension": int(vectors.shape[1])}

"""Embedding as jobs: paths in, vectors on disk out, in whatever process runs them.

A corpus of one part is embedded by `embed_job`. A larger one by `plan_job`, any number of
`parts_job` at a time, and `assemble_job`.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from compass_core.embedding import Encoder, load_encoder
from compass_core.embedding_batches import Rows, Vectors, encode_texts
from compass_core.embedding_parts import (
    PartPlan,
    assemble_parts,
    make_parts,
    missing_parts,
    part_precisions,
    plan_parts,
    read_texts,
)
from compass_core.selection.space import locate
from compass_core.storage import canonical_json, read_array, write_array, write_json

_PROGRESS_SECONDS = 1.0
_ENCODER_SETTINGS = ("encoder", "revision", "device", "dtype", "max_length", "threads")


def embed_job(spec: dict[str, Any]) -> dict[str, Any]:
    """Embed the texts of one row file at once.

    Args:
        spec: ``encoder`` (path or hub id), ``revision``, ``device``, ``dtype``, ``prefix``,
            ``batch_size``, ``max_length``, ``threads``, ``rows`` (Parquet file) and ``vectors``
            (file to write).

    Returns:
        ``n_texts``, ``dimension`` (0 for an empty corpus) and ``precisions``.
    """
    rows, target = Path(spec["rows"]), Path(spec["vectors"])
    numbers = np.arange(pq.ParquetFile(rows).metadata.num_rows)
    if not len(numbers):
        write_array(target, np.zeros((0, 0), dtype=np.float32))
        return {"n_texts": 0, "dimension": 0, "precisions": []}
    encoder = _open_encoder(spec)
    vectors = _encode(encoder, read_texts(rows, numbers), spec)
    write_array(target, vectors)
    n_texts, dimension = vectors.shape
    return {"n_texts": n_texts, "dimension": dimension, "precisions": [encoder.precision]}


def place_job(spec: dict[str, Any]) -> dict[str, Any]:
    """Embed texts and say where they lie in a space; the texts never touch the disk.

    Args:
        spec: what `embed_job` wants to know of the encoder, ``texts`` (list), ``centroids`` (file),
            ``mean`` (file, or null without centring).

    Returns:
        ``cluster_ids`` and ``distances``, one per text.
    """
    texts: list[str] = spec["texts"]
    if not texts:
        return {"cluster_ids": [], "distances": []}
    settings = {name: spec[name] for name in _ENCODER_SETTINGS}
    vectors = _encode(_kept_encoder(canonical_json(settings)), texts, spec)
    mean = read_array(Path(spec["mean"])) if spec["mean"] else None
    ids, distances = locate(vectors, read_array(Path(spec["centroids"])), mean)
    return {"cluster_ids": ids.tolist(), "distances": distances.tolist()}


def plan_job(spec: dict[str, Any]) -> dict[str, Any]:
    """Find out what is to be made.

    Args:
        spec: ``rows``, ``parts`` (folder), ``recipe``, ``shard_rows``.

    Returns:
        ``n_rows`` and ``n_distinct``, which the other jobs want to be told, and ``n_missing``.
    """
    plan = plan_parts(
        Path(spec["parts"]), Path(spec["rows"]), spec["recipe"], int(spec["shard_rows"])
    )
    n_missing = len(missing_parts(plan))
    return {"n_rows": plan.n_rows, "n_distinct": plan.n_distinct, "n_missing": n_missing}


def parts_job(spec: dict[str, Any]) -> dict[str, Any]:
    """Make parts until none is left that nobody works on.

    Args:
        spec: as of `embed_job` and `plan_job`, what `plan_job` returned, ``worker`` (its number:
            several GPUs are shared out by it), ``claim_seconds``, and ``stop`` (file whose
            existence ends the work after the present part).
    """
    plan = _plan(spec)
    if not missing_parts(plan):
        return {"n_made": 0}
    encoder = _open_encoder(spec | {"device": _own_device(spec["device"], spec["worker"])})

    def encode(texts: list[str], rows: Rows) -> Vectors:
        return _encode(encoder, texts, spec, rows=rows, report=_reporter(spec, plan))

    made = make_parts(
        plan,
        encode,
        encoder.precision,
        claim_seconds=spec["claim_seconds"],
        may_go_on=lambda: not Path(spec["stop"]).exists(),
    )
    return {"n_made": made}


def assemble_job(spec: dict[str, Any]) -> dict[str, Any]:
    """Put the parts together at ``vectors``.

    Returns:
        ``broken`` (parts that have to be made again; then nothing was written), ``n_texts`` and
        ``precisions``.
    """
    plan = _plan(spec)
    broken = assemble_parts(plan, Path(spec["vectors"]))
    return {"broken": broken, "n_texts": plan.n_rows, "precisions": part_precisions(plan)}


def _plan(spec: dict[str, Any]) -> PartPlan:
    return PartPlan(
        folder=Path(spec["parts"]),
        rows=Path(spec["rows"]),
        recipe=spec["recipe"],
        part_rows=int(spec["shard_rows"]),
        n_rows=spec["n_rows"],
        n_distinct=spec["n_distinct"],
    )


@functools.lru_cache(maxsize=1)
def _kept_encoder(settings: str) -> Encoder:
    """Return the encoder that the last call used: a log comes in many batches."""
    return _open_encoder(json.loads(settings))


def _open_encoder(spec: dict[str, Any]) -> Encoder:
    import torch

    torch.set_num_threads(spec["threads"])
    return load_encoder(
        spec["encoder"],
        revision=spec["revision"],
        device=spec["device"],
        max_length=spec["max_length"],
        dtype=spec["dtype"],
    )


def _own_device(device: str, worker: int) -> str:
    """Return the GPU of a worker where the device is left open and there are several."""
    import torch

    n_devices = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return f"cuda:{worker % n_devices}" if n_devices > 1 else device


def _encode(
    encoder: Encoder,
    texts: list[str],
    spec: dict[str, Any],
    *,
    rows: Rows | None = None,
    report: Callable[[int], None] | None = None,
) -> Vectors:
    return encode_texts(
        encoder,
        texts,
        prefix=spec["prefix"],
        batch_size=spec["batch_size"],
        numbers=rows,
        on_block=report,
    )


def _reporter(spec: dict[str, Any], plan: PartPlan) -> Callable[[int], None]:
    """Return what tells the one who waits how many texts are done, all workers together."""
    path = spec.get("progress_path")
    before = plan.n_distinct - sum(plan.size(part) for part in missing_parts(plan))
    last = [0.0]

    def report(done: int) -> None:
        if path is not None and time.monotonic() - last[0] > _PROGRESS_SECONDS:
            last[0] = time.monotonic()
            write_json(Path(path), {"step": before + done, "total": plan.n_distinct})

    return report

"""Vectors for rows, made in trainer processes, in parts that survive a killed run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from compass_core.config import EmbeddingConfig, ExecutionConfig
from compass_core.embedding_jobs import assemble_job, embed_job, parts_job, plan_job
from compass_core.embedding_parts import ALIVE, sweep_parts
from compass_core.errors import StoreError
from compass_core.records import ArtifactRef
from compass_core.storage import Draft, file_lock
from tasks.caching import ModelRef, stage, stage_key, stage_of_parts
from tasks.compute import run_job
from tasks.settings import open_store

_LIBRARIES = ("sentence-transformers", "transformers", "torch")
_CLAIM_SECONDS = (0.0, 60.0, 60.0)
"""Per attempt, the wait for parts that others have claimed, as a dying process may for a while."""


@stage("embed", 2, libraries=_LIBRARIES)
def embed(
    draft: Draft,
    language: str,
    rows: ArtifactRef,
    encoder: ModelRef,
    config: EmbeddingConfig,
    execution: ExecutionConfig,
) -> None:
    """Embed one corpus: ``vectors.npy`` (N, d), unit norm, in the order of the rows."""
    store = open_store()
    sweep_parts(store.root / "partial")
    spec = config.model_dump(mode="json") | {
        "encoder": encoder.path,
        "rows": str(store.folder(rows) / "rows.parquet"),
        "vectors": str(draft.folder / "vectors.npy"),
    }
    if rows.rows <= config.shard_rows:
        facts = run_job(embed_job, spec, execution, language=language, stage="embed")
    else:
        made_of = {"rows": rows, "encoder": encoder, "config": config, "size": config.shard_rows}
        recipe = stage_key("embed", 2, made_of, _LIBRARIES)
        parts = store.root / "partial" / recipe
        with file_lock(parts / ALIVE):
            spec |= {"parts": str(parts), "recipe": recipe}
            facts = _embed_in_parts(spec, execution, language)
        draft.spent.append(parts)
    draft.rows = facts["n_texts"]
    draft.provenance["precisions"] = facts["precisions"]


@stage_of_parts("embed")
def embed_corpora(
    language: str,
    rows: Mapping[str, ArtifactRef],
    encoder: ModelRef,
    config: EmbeddingConfig,
    execution: ExecutionConfig,
) -> Iterator[tuple[str, ArtifactRef]]:
    """Embed several corpora of one language, by role; yield ``embed <role>``: see `embed`."""
    for role, corpus in rows.items():
        yield f"embed {role}", embed.part(language, corpus, encoder, config, execution)


def _embed_in_parts(
    spec: dict[str, Any], execution: ExecutionConfig, language: str
) -> dict[str, Any]:
    """Make what is missing, assemble, and make again what turns out damaged."""
    stop = Path(spec["parts"]) / "stop"
    stop.unlink(missing_ok=True)
    spec |= {"stop": str(stop)}
    spec |= run_job(plan_job, spec, execution, language=language, stage="embed")
    for seconds in _CLAIM_SECONDS:
        _make_parts(spec | {"claim_seconds": seconds}, execution, language)
        facts = run_job(assemble_job, spec, execution, language=language, stage="embed")
        if not facts["broken"]:
            return facts
    raise StoreError(
        f"Embedding {spec['rows']}: parts {facts['broken'][:5]} of {spec['parts']} are damaged or "
        f"missing after {len(_CLAIM_SECONDS)} attempts. Either the disk loses what is written to "
        "it, or another run works on the same parts; check both and run the same command again.",
        code="E29",
    )


def _make_parts(spec: dict[str, Any], execution: ExecutionConfig, language: str) -> None:
    """Let as many trainers as there are work on the parts; the first error stops them all."""
    n_parts = -(-int(spec["n_distinct"]) // int(spec["shard_rows"]))
    n_workers = max(1, min(execution.trainers, n_parts))

    def work(worker: int) -> None:
        try:
            mine = spec | {"worker": worker}
            run_job(parts_job, mine, execution, language=language, stage="embed")
        except BaseException:
            Path(spec["stop"]).touch()
            raise

    if n_workers == 1:
        work(0)
        return
    with ThreadPoolExecutor(n_workers, thread_name_prefix="embed") as threads:
        futures = [threads.submit(work, worker) for worker in range(n_workers)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            # Leaving the block waits for the others, so they must hear of an interrupt first.
            Path(spec["stop"]).touch()
            raise

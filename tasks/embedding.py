"""Vectors for rows, made in a trainer process."""

from __future__ import annotations

from compass_core.config import EmbeddingConfig, ExecutionConfig
from compass_core.embedding_jobs import embed_job
from compass_core.records import ArtifactRef
from compass_core.storage import Draft
from tasks.caching import ModelRef, stage
from tasks.compute import run_job
from tasks.settings import open_store


@stage("embed", 1, libraries=("sentence-transformers", "transformers", "torch"))
def embed(
    draft: Draft,
    language: str,
    rows: ArtifactRef,
    encoder: ModelRef,
    config: EmbeddingConfig,
    execution: ExecutionConfig,
) -> None:
    """Embed one corpus: ``vectors.npy`` (N, d), unit norm, in the order of the rows."""
    spec = config.model_dump(mode="json") | {
        "encoder": encoder.path,
        "rows": str(open_store().folder(rows) / "rows.parquet"),
        "vectors": str(draft.folder / "vectors.npy"),
    }
    facts = run_job(embed_job, spec, execution, language=language, stage="embed")
    draft.rows = facts["n_texts"]

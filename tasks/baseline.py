"""What production usage is compared with: the champion's space and a reference held out of its fit.

The first champion's space is fitted on coverage and pool alone, so that its usage sample is a fair
reference. An updated champion keeps that space; its reference is the usage that it was updated for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compass_core.config import ClusteringConfig, Recipe
from compass_core.embedding_jobs import place_job
from compass_core.errors import DataError
from compass_core.languages import language_name
from compass_core.monitoring.drift import Sample
from compass_core.monitoring.observations import Observed
from compass_core.records import ArtifactRef
from compass_core.storage import fingerprint, read_array, read_json
from tasks import registry
from tasks.caching import ModelRef, as_ref
from tasks.compute import run_job
from tasks.embedding import embed
from tasks.ingestion import models_of
from tasks.lineage import Lineage, embedding_identity, lineage_of
from tasks.pools import Corpus, gather_pool, pool_shards
from tasks.promotion import configure_tracking, registered_name
from tasks.retention import keep_space
from tasks.settings import open_store
from tasks.spaces import cluster, open_own

_ROWS_PER_CLUSTER = 10
"""A small corpus gets fewer clusters: this many rows of the fit for each."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The champion of a language, and what its usage is compared with.

    Attributes:
        name: Registered model.
        version: The version in service.
        adapter_sha256: Its identity.
        tags: Its tags in the registry.
        lineage: What it stands on.
        space: The clusters that usage is watched in.
        reference: Usage that the champion was made for, none of which fitted the clusters.
        labels: (K,) what each cluster is about.
        recipe: Settings of the encoder and of the machine.
        encoder: The encoder.
    """

    name: str
    version: str
    adapter_sha256: str
    tags: Mapping[str, str]
    lineage: Lineage
    space: ArtifactRef
    reference: Sample
    labels: tuple[str, ...]
    recipe: Recipe
    encoder: ModelRef

    @property
    def fingerprint(self) -> str:
        """Identity of encoder and space: observations of different ones are never compared."""
        return fingerprint(embedding_identity(self.recipe, self.encoder), self.space.sha256)

    @property
    def n_clusters(self) -> int:
        """K."""
        return len(self.labels)

    def observe(self, texts: list[str]) -> Observed:
        """Place texts in the space; they go to a trainer process and never touch the disk."""
        folder = open_store().folder(self.space)
        mean = folder / "mean.npy"
        spec = self.recipe.embedding.model_dump(mode="json") | {
            "encoder": self.encoder.path,
            "texts": texts,
            "centroids": str(folder / "centroids.npy"),
            "mean": str(mean) if mean.exists() else None,
        }
        language = self.lineage.language
        found = run_job(place_job, spec, self.recipe.execution, language=language, stage="observe")
        ids = np.asarray(found["cluster_ids"], dtype=np.int32)
        distances = np.asarray(found["distances"], dtype=np.float32)
        radii = open_own(self.space)["radii"]
        return Observed(cluster_ids=ids, distances=distances, outside=distances > radii[ids])


def open_baseline(recipe: Recipe, language: str, base_folder: str) -> Baseline | None:
    """Return what the usage of a language is compared with; None where no adapter serves it.

    Raises:
        ModelError: E53 what the champion was made of is gone.
        DataError: E50 the encoder changed, and what it embedded cannot be embedded again.
    """
    encoder, base = models_of(recipe, base_folder)
    name = registered_name(recipe.base.model, base, language)
    configure_tracking()
    champion = registry.champion(name)
    if champion is None:
        return None
    lineage = lineage_of(champion)
    space = watch_space(lineage, recipe, encoder)
    keep_space(language, space)
    return Baseline(
        name=name,
        version=champion.version,
        adapter_sha256=champion.adapter_sha256,
        tags=champion.tags,
        lineage=lineage,
        space=space,
        reference=_reference(lineage, space),
        labels=tuple(read_json(open_store().folder(space) / "space.json")["labels"]),
        recipe=recipe,
        encoder=encoder,
    )


def watch_space(lineage: Lineage, recipe: Recipe, encoder: ModelRef) -> ArtifactRef:
    """Return the space that usage is watched in; with another encoder everything is embedded anew.

    Raises:
        DataError: E50 the encoder changed since an update, whose usage was kept without its text.
    """
    known = lineage.refs.get("space")
    if known is not None:
        if lineage.embedded_by != embedding_identity(recipe, encoder):
            raise DataError(
                f"The champion for {language_name(lineage.language)} ({lineage.language}) is "
                "compared with usage that another encoder embedded (or other embedding settings), "
                "and the text of that usage was not kept. Set `embedding` back to what it was, or "
                "run `compass adapt` to start anew with this encoder.",
                code="E50",
            )
        return known
    shards = pool_shards(lineage.refs["pool"])
    pool = [_embedded(shard["rows"], "", recipe, encoder) for shard in shards]
    own = {
        role: _embedded(lineage.refs[role], lineage.language, recipe, encoder)
        for role in ("usage", "coverage")
    }
    config = _watch_config(recipe, own["coverage"]["rows"].rows, sum(c["rows"].rows for c in pool))
    return as_ref(
        cluster(
            language=lineage.language,
            own=own,
            pool=as_ref(gather_pool(language="", shards=pool)),
            config=config,
            centre_languages=recipe.embedding.centre_languages,
            seed=recipe.seed,
        )
    )


def _embedded(rows: ArtifactRef, language: str, recipe: Recipe, encoder: ModelRef) -> Corpus:
    vectors = embed(
        language=language,
        rows=rows,
        encoder=encoder,
        config=recipe.embedding,
        execution=recipe.execution,
    )
    return Corpus(rows=rows, vectors=as_ref(vectors))


def _watch_config(recipe: Recipe, n_coverage: int, n_pool: int) -> ClusteringConfig:
    """Return the clustering of the space that usage is watched in: usage takes no part in it."""
    n_fit = n_coverage + min(n_pool, recipe.clustering.pool_fit_sample)
    n_clusters = min(recipe.monitoring.n_clusters, max(2, n_fit // _ROWS_PER_CLUSTER))
    return recipe.clustering.model_copy(
        update={"method": "kmeans", "n_clusters": (n_clusters,), "fit_on": "coverage+pool"}
    )


def _reference(lineage: Lineage, space: ArtifactRef) -> Sample:
    """Return the usage that the champion was made for."""
    known = lineage.refs.get("reference")
    if known is not None:
        folder = open_store().folder(known)
        units = read_array(folder / "units.npy")
        return Sample(
            cluster_ids=read_array(folder / "cluster_ids.npy"),
            outside=read_array(folder / "outside.npy"),
            units=units if len(units) else None,
        )
    own = open_own(space)
    ids = own["usage_ids"]
    return Sample(cluster_ids=ids, outside=own["usage_distances"] > own["radii"][ids], units=None)

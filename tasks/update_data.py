"""What an update is made from: the new usage, everything trained so far, and where both lie.

    windows ─► new-usage ─┐
    lineage ─► history ───┴► update-space ─► gap-score ─► sample ─► update-data
    test items, older slices, retention set ─► exam

The space is the one that usage is watched in; usage of production is known by cluster alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.config import DriftConfig
from compass_core.errors import DataError
from compass_core.evaluation.retention import RETENTION
from compass_core.evaluation.slices import draw_slice, merge_slices
from compass_core.languages import language_name
from compass_core.monitoring.drift import Sample
from compass_core.records import ArtifactRef
from compass_core.seeding import derive_rng
from compass_core.selection.drawing import example_keys
from compass_core.selection.exclusion import contaminated_rows
from compass_core.selection.space import locate
from compass_core.storage import (
    Draft,
    fingerprint,
    read_array,
    read_json,
    read_table,
    write_array,
    write_json,
    write_table,
)
from tasks.caching import stage
from tasks.pools import Corpus, open_corpora, open_sketch, pool_shards
from tasks.settings import open_store
from tasks.spaces import assign, open_means, open_own, open_places, read_means

ROWS, IDS = "rows.parquet", "cluster_ids.npy"


def keep_usage(language: str, samples: Sequence[Sample], config: DriftConfig) -> ArtifactRef:
    """Keep usage of production as an artefact: clusters and numbered users, no id and no text.

    It becomes the reference of the next champion, so the minimum of a drift decision holds for it.

    Raises:
        DataError: E51 there is no usage, or too little.
    """
    ids = np.concatenate([s.cluster_ids for s in samples]) if samples else np.zeros(0, np.int32)
    if not len(ids):
        raise DataError(
            f"There is no observed usage of {language_name(language)} ({language}) to update for. "
            "Run `compass monitor` first, with `monitoring.log` set.",
            code="E51",
        )
    outside = np.concatenate([s.outside for s in samples])
    units = _numbered_users(samples)
    _require_enough(language, len(ids), len(np.unique(units)), config)
    content = hashlib.sha256()
    for array in (ids, outside, units):
        content.update(np.ascontiguousarray(array).tobytes())
    store = open_store()
    key = fingerprint("usage-window", 1, language, content.hexdigest())
    found = store.find("usage-window", key)
    if found is not None:
        return found
    with store.build("usage-window", key, {"language": language}) as draft:
        draft.rows = len(ids)
        write_array(draft.folder / IDS, ids)
        write_array(draft.folder / "outside.npy", outside)
        write_array(draft.folder / "units.npy", units)
    return store.put("usage-window", key, draft)


def _require_enough(language: str, n_prompts: int, n_units: int, config: DriftConfig) -> None:
    size, what, field = (
        (n_units, f"{config.unit}s", "min_units")
        if n_units
        else (n_prompts, "prompts", "min_prompts")
    )
    least = getattr(config, field)
    if size < least:
        raise DataError(
            f"The windows to update {language_name(language)} ({language}) for hold {size} {what}; "
            f"as the next reference they need {least}. Wait for more usage, or lower "
            f"monitoring.drift.{field}.",
            code="E51",
        )


def _numbered_users(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Return the users of all windows, numbered; empty where any window does not know them.

    A user of two windows counts as two: compared with one window, as later ones are, nobody may
    carry the prompts of several.
    """
    numbered: list[NDArray[np.int64]] = []
    taken = 0
    for sample in samples:
        if sample.units is None:
            return np.zeros(0, dtype=np.int64)
        own = np.unique(sample.units, return_inverse=True)[1].astype(np.int64)
        numbered.append(own + taken)
        taken += int(own.max(initial=-1)) + 1
    return np.concatenate(numbered)


@stage("history", 1)
def first_history(
    draft: Draft, language: str, coverage: ArtifactRef, sample: ArtifactRef, space: ArtifactRef
) -> None:
    """Gather what a first champion was trained on: ``rows.parquet``, ``cluster_ids.npy``."""
    store = open_store()
    rows = [read_table(store.folder(ref) / ROWS) for ref in (coverage, sample)]
    chosen = read_array(store.folder(sample) / "indices.npy")
    ids = [open_own(space)["coverage_ids"], open_places(space).ids[chosen]]
    _write_placed(draft, pa.concat_tables(rows), np.concatenate(ids))


@stage("history", 1)
def grown_history(draft: Draft, language: str, before: ArtifactRef, added: ArtifactRef) -> None:
    """Gather what an updated champion was trained on: before, and by the update."""
    store = open_store()
    rows = [read_table(store.folder(ref) / ROWS) for ref in (before, added)]
    ids = [read_array(store.folder(ref) / IDS) for ref in (before, added)]
    _write_placed(draft, pa.concat_tables(rows), np.concatenate(ids))


def _write_placed(draft: Draft, rows: pa.Table, ids: NDArray[Any]) -> None:
    draft.rows = rows.num_rows
    write_table(draft.folder / ROWS, rows)
    write_array(draft.folder / IDS, ids.astype(np.int32))


@stage("update-space", 1, libraries=("numpy",))
def update_space(
    draft: Draft,
    language: str,
    space: ArtifactRef,
    usage: ArtifactRef,
    history: ArtifactRef,
    pool: ArtifactRef,
) -> None:
    """Put the new usage, everything trained so far and today's pool into the champion's space.

    The files are those of the cluster stage, so gap and selection work in it as they do there.
    """
    store = open_store()
    source = store.folder(space)
    facts = read_json(source / "space.json")
    means = open_means(space)
    shards = pool_shards(pool)
    if means is not None:
        _require_means(shards, set(read_means(means)))
    assigned = [assign(ArtifactRef.from_dict(facts["fit"]), shard, means) for shard in shards]
    for name in ("centroids", "radii", *(["mean"] if means is not None else [])):
        write_array(draft.folder / f"{name}.npy", read_array(source / f"{name}.npy"))
    for role, ref in (("usage", usage), ("coverage", history)):
        ids = read_array(store.folder(ref) / IDS)
        write_array(draft.folder / f"{role}_ids.npy", ids)
        write_array(draft.folder / f"{role}_distances.npy", np.zeros(len(ids), np.float32))
    draft.rows = len(facts["labels"])
    draft.provenance["parts"] = [space.path, *(ref.path for ref in assigned)]
    kept = {name: facts[name] for name in ("labels", "method", "chosen", "fit", "means")}
    write_json(
        draft.folder / "space.json", kept | {"assigned": [ref.to_dict() for ref in assigned]}
    )


def _require_means(shards: Sequence[Corpus], known: set[str]) -> None:
    new = sorted(set(open_corpora(shards).languages.tolist()) - known)
    if new:
        raise DataError(
            f"The pool has languages that the champion's space does not know, and languages are "
            f"centred: {', '.join(new[:10])}. Leave them out with `data.pool.exclude_languages`, "
            "or run `compass adapt` to start a new space.",
            code="E50",
        )


@stage("update-data", 1)
def update_data(
    draft: Draft,
    language: str,
    sample: ArtifactRef,
    coverage: Corpus,
    history: ArtifactRef,
    space: ArtifactRef,
    screen: ArtifactRef,
) -> None:
    """Gather what the update trains on: the selection, and coverage that is new since.

    New coverage that resembles an item of `screen`, all that is or may be tested, is left out.
    """
    store = open_store()
    selected = read_table(store.folder(sample) / ROWS)
    places = open_places(space).ids[read_array(store.folder(sample) / "indices.npy")]
    rows = read_table(store.folder(coverage["rows"]) / ROWS)
    known = read_table(store.folder(history) / ROWS, ["id"])["id"].to_pylist()
    new = ~np.isin(example_keys(rows["id"].to_pylist()), example_keys(known))
    clean = contaminated_rows(open_sketch(coverage["rows"]), open_sketch(screen)).allowed
    fresh = np.flatnonzero(new & clean)
    if len(fresh):
        vectors = np.asarray(read_array(store.folder(coverage["vectors"]) / "vectors.npy"))[fresh]
        places = np.concatenate([_placed(vectors, space), places])
        selected = pa.concat_tables([rows.take(pa.array(fresh)), selected])
    left_out = int(np.count_nonzero(new & ~clean))
    draft.provenance |= {"n_new_coverage": len(fresh), "n_like_test_items": left_out}
    _write_placed(draft, selected, places)


def require_data(language: str, data: ArtifactRef) -> None:
    """Refuse an update that has nothing to train on.

    Raises:
        DataError: E03.
    """
    if not data.rows:
        raise DataError(
            f"The update of {language_name(language)} ({language}) has nothing to train on: the "
            "selection is empty, and there is no new coverage. Add data to `data.pool` or "
            "`data.coverage`.",
            code="E03",
        )


def _placed(vectors: NDArray[np.float32], space: ArtifactRef) -> NDArray[np.int32]:
    folder = open_store().folder(space)
    mean = folder / "mean.npy"
    own_mean = read_array(mean) if mean.exists() else None
    return locate(vectors, read_array(folder / "centroids.npy"), own_mean)[0]


@stage("slice", 1)
def new_slice(
    draft: Draft,
    language: str,
    test: Corpus,
    usage: ArtifactRef,
    history: ArtifactRef,
    space: ArtifactRef,
    limits: dict[str, int],
    seed: int,
) -> None:
    """Draw test items in the mix of the new usage: ``rows.parquet``.

    Items that resemble what the champion was trained on are no test of it. `limits` are ``least``
    and ``most`` items.
    """
    store = open_store()
    rows = read_table(store.folder(test["rows"]) / ROWS)
    vectors = np.asarray(read_array(store.folder(test["vectors"]) / "vectors.npy"))
    fair = contaminated_rows(open_sketch(test["rows"]), open_sketch(history)).allowed
    rows, vectors = rows.filter(pa.array(fair)), vectors[fair]
    draft.provenance["n_like_trained_on"] = int(np.count_nonzero(~fair))
    chosen = draw_slice(
        _placed(vectors, space),
        read_array(store.folder(usage) / IDS),
        example_keys(rows["id"].to_pylist()),
        least=limits["least"],
        most=limits["most"],
        rng=derive_rng(seed, "slice", language),
    )
    draft.rows = len(chosen)
    write_table(draft.folder / ROWS, rows.take(pa.array(chosen)))


@stage("exam", 1)
def exam(
    draft: Draft,
    language: str,
    slices: list[tuple[str, ArtifactRef]],
    retention: ArtifactRef | None,
) -> None:
    """Merge all slices into one test: ``rows.parquet``, and ``slices.json`` with their ids."""
    store = open_store()
    named = [*slices, *([(RETENTION, retention)] if retention is not None else [])]
    tables = {name: read_table(store.folder(ref) / ROWS) for name, ref in named}
    rows, ids = merge_slices(tables)
    draft.rows = rows.num_rows
    write_table(draft.folder / ROWS, rows)
    write_json(draft.folder / "slices.json", list(ids.items()))


def read_slices(exam_ref: ArtifactRef) -> dict[str, frozenset[str]]:
    """Return the ids of the items of each slice, oldest slice first."""
    found = read_json(open_store().folder(exam_ref) / "slices.json")
    return {name: frozenset(ids) for name, ids in found}

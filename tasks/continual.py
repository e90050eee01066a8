"""Stages that only a continual study has: cutting a stream, and the baseline of random rehearsal.

Everything else an arm does is done by the stages of the update itself (`tasks.update_data`,
`tasks.updating`) and of the main job.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from compass_core import starter
from compass_core.adaptation.replay import draw_replay
from compass_core.config import ContinualStudyConfig, StarterData, UpdateConfig
from compass_core.records import ArtifactRef, examples_to_table
from compass_core.seeding import derive_rng, derive_seed
from compass_core.selection.drawing import example_keys
from compass_core.starter import stream
from compass_core.storage import (
    Draft,
    fingerprint,
    read_array,
    read_table,
    sha256_file,
    write_array,
    write_table,
)
from tasks.caching import ModelRef, stage
from tasks.settings import open_store
from tasks.update_data import IDS, ROWS
from tasks.updating import update_settings

SLICES = "slices.npy"
FROZEN, FULL, REHEARSAL = "frozen", "full", "rehearsal"
EWC_ARMS = ("ewc-only", "ecda")
REPLAY_ARMS = ("replay-only", "ecda")


@task(name="check-stream", cache_policy=NO_CACHE)
def stream_content() -> ModelRef:
    """Return the identity of the corpus and of the way streams are cut from it."""
    modules = (starter.corpus, stream)
    files = [sha256_file(Path(str(module.__file__))) for module in modules]
    return ModelRef("", fingerprint("cldr-stream", version("babel"), files))


@stage("stream", 1)
def stream_rows(
    draft: Draft,
    language: str,
    role: Literal["coverage", "usage", "test"],
    position: int,
    data: StarterData,
    content: ModelRef,
    n_shifts: int,
    seed: int,
) -> None:
    """Cut one corpus out of a stream: ``rows.parquet``.

    The coverage, the usage of stage `position`, or the test items of all slices, whose numbers are
    in ``slices.npy``.
    """
    found = stream.build_stream(
        language,
        seed=seed,
        n_shifts=n_shifts,
        n_coverage=data.n_coverage,
        n_usage=data.n_usage,
        n_test=data.n_test,
        n_missing_topics=data.n_missing_topics,
    )
    rows = {
        "coverage": found.coverage,
        "usage": found.stages[position].usage,
        "test": [row for each in found.stages for row in each.slice],
    }[role]
    draft.rows = len(rows)
    draft.provenance["topics"] = [list(each.topics) for each in found.stages]
    write_table(draft.folder / ROWS, examples_to_table(rows))
    if role == "test":
        sizes = [len(each.slice) for each in found.stages]
        numbers = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        write_array(draft.folder / SLICES, numbers)


@stage("rehearsal", 1)
def mix_in_old(
    draft: Draft,
    language: str,
    added: ArtifactRef,
    history: ArtifactRef,
    share: float,
    seed: int,
) -> None:
    """Mix a share of the old examples, drawn uniformly at random, into the new: ``rows.parquet``.

    They are examples like all others, whatever their cluster: the baseline of equation (8).
    """
    folders = [open_store().folder(ref) for ref in (added, history)]
    (new, old), (new_ids, old_ids) = (
        [read_table(folder / ROWS) for folder in folders],
        [read_array(folder / IDS) for folder in folders],
    )
    keys = example_keys(old["id"].to_pylist())
    one_cluster = np.zeros(len(keys), dtype=np.int32)
    rng = derive_rng(seed, "rehearsal", language)
    chosen = draw_replay(one_cluster, keys, share, len(keys), rng)
    draft.rows = new.num_rows + len(chosen)
    write_table(draft.folder / ROWS, pa.concat_tables([new, old.take(pa.array(chosen))]))
    write_array(draft.folder / IDS, np.concatenate([new_ids, old_ids[chosen]]))


def arm_settings(arm: str, config: ContinualStudyConfig, seed: int, stage: int) -> dict[str, Any]:
    """Return what `tasks.updating.update_train` needs to know of one arm at one stage.

    A strength of 0 switches a term of equation (6) off. Every stage has an order of its own.
    """
    off: dict[str, Any] = {}
    if arm not in EWC_ARMS:
        off |= {"ewc_strength": 0.0, "fisher_scale": UpdateConfig().fisher_scale}
    if arm not in REPLAY_ARMS:
        off |= {"replay_strength": 0.0, "replay_batch_size": 0}
    return update_settings(config) | off | {"seed": stage_seed(seed, stage)}


def stage_seed(seed: int, stage: int) -> int:
    """Return the seed of one stage of a cell."""
    return derive_seed(seed, "stage", str(stage))

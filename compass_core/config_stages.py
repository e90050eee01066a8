"""The stages of a run: embedding, clusters, selection, training, evaluation, promotion."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    model_validator,
)

from compass_core.config_base import Config
from compass_core.selection.registry import strategy_names


# --------------------------------------------------------------------------- embedding, clusters
class EmbeddingConfig(Config):
    """The multilingual encoder."""

    not_in_key = frozenset({"encoder", "revision", "batch_size", "device", "shard_rows"})

    encoder: str = "starter"
    """`starter`, a sentence-transformers folder, or a hub id (`intfloat/multilingual-e5-small`)."""

    revision: str = ""
    """Commit of a hub encoder, so that a run can be repeated; empty for a folder."""

    prefix: str = ""
    """Text put before every input (`query: ` for the e5 family)."""

    batch_size: PositiveInt = 256
    """Texts of 64 tokens per batch on a GPU; a batch holds as many tokens, of more short or fewer
    long texts. Lower it when memory runs out. Batches on a CPU stay small whatever it says."""

    max_length: PositiveInt = 256
    """Tokens per text; longer texts are cut."""

    device: str = "auto"
    """Where the encoder computes: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. With `auto` or `cuda` the
    trainer processes (`execution.trainers`) share out the GPUs there are."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the encoder. `auto`: on a GPU half precision, once the vectors of a few probe
    texts agree with float32's (cosine of at least .999); else float32."""

    shard_rows: PositiveInt = 65_536
    """Distinct texts per part of a large corpus. Finished parts outlive a killed run."""

    centre_languages: bool = False
    """Subtract each language's mean vector: the remedy when clusters follow the script."""


class ClusteringConfig(Config):
    """The clusters of meaning, fitted per target language."""

    method: Literal["kmeans", "hdbscan"] = "kmeans"
    """`kmeans`: K-Means, with the number of clusters chosen by `choose_by`. `hdbscan`: HDBSCAN,
    with the smallest cluster size chosen by DBCV."""

    n_clusters: tuple[PositiveInt, ...] = (20, 40, 60, 80, 100, 120, 200, 300, 500)
    """Numbers of clusters to try; one number fixes it."""

    choose_by: Literal["silhouette", "likelihood", "js"] = "likelihood"
    """K-Means: what chooses the number of clusters. `silhouette`: the shape of the clusters alone.
    `likelihood` or `js`: how well they predict usage that was held out of the fit; needs 20 usage
    and 20 other rows, and five further fits per number."""

    min_cluster_sizes: tuple[PositiveInt, ...] = (5, 10, 20)
    """HDBSCAN: smallest cluster sizes to try."""

    fit_on: Literal["usage+coverage", "usage+coverage+pool", "coverage+pool"] = "usage+coverage"
    """What the clusters are fitted on; everything else goes to the nearest centroid. Without usage
    in the fit, the usage sample can serve as the reference that production is compared with."""

    pool_fit_sample: PositiveInt = 5_000
    """Pool examples used when the pool takes part in the fit (or there is no coverage)."""

    relevance_quantile: float = Field(0.95, ge=0.0, le=1.0)
    """A pool example is available to a cluster within this quantile of the cluster's own
    distances; 0 switches the radius off."""

    script_guard: Literal["refuse", "warn", "off"] = "refuse"
    """When clusters follow the language instead of the meaning: `refuse` ends the language with an
    error, `warn` goes on and says so in the report, `off` does not look."""

    min_retrieval: float = Field(0.0, ge=0.0, le=1.0)
    """Refuse an encoder that finds fewer translations than this share, where rows have any;
    0 only warns."""

    max_usage_outside: float = Field(1.0, ge=0.0, le=1.0)
    """Refuse clusters that leave more than this share of usage beyond every radius; 1 only
    warns."""


# --------------------------------------------------------------------------- selection
STRATEGIES = strategy_names()
"""Strategies of this installation: COMPASS's own and those of installed packages."""


def _known_strategy(name: str) -> str:
    if name not in STRATEGIES:
        raise ValueError(f"{name!r} is not a strategy; choose {', '.join(STRATEGIES)}")
    return name


StrategyName = Annotated[
    str,
    AfterValidator(_known_strategy),
    WithJsonSchema({"type": "string", "enum": list(STRATEGIES)}),
]


class SelectionConfig(Config):
    """Which pool examples to train on."""

    not_in_key = frozenset({"langrank_model"})

    strategy: StrategyName = "compass"
    """`compass` spends the budget where coverage falls short of usage. The others are baselines:
    `random` draws from the whole pool, `target-only` takes nothing, `all-data` takes everything,
    `similar` and `lang…` take related languages; the page on strategies has them all."""

    budget: PositiveInt = 400
    """Pool examples to select."""

    smoothing: PositiveFloat = 0.2
    """Pseudo-count α of the shares, equations (1) and (2). With many clusters and few prompts, a
    larger one spends much of the budget evenly."""

    shrinkage: Literal["additive", "adaptive"] = "additive"
    """How usage shares are estimated from few prompts: `additive`, equation (1), or `adaptive`,
    which learns from the counts how uneven the shares are."""

    rule: Literal["waterfill", "gap", "importance"] = "waterfill"
    """How the budget is split over clusters. `waterfill`: so that coverage and selection together
    come as near to usage as they can. `gap`: in proportion to the gap. `importance`: in proportion
    to usage divided by coverage."""

    draw: Literal["uniform", "nearest", "diverse"] = "uniform"
    """How examples are drawn inside a cluster: at random (`uniform`), the most typical ones
    (`nearest`), or spread as far as possible (`diverse`)."""

    language_balance: float = Field(0.0, ge=0.0, le=1.0)
    """0: languages as the pool has them; 1: every source language equally often."""

    similar_languages: PositiveInt = 3
    """`similar`, `langsim`, `langrank`: number of source languages."""

    dsir_target: Literal["usage", "usage+coverage"] = "usage"
    """`dsir`: texts whose words the selection should resemble: those of `usage`, or of usage and
    coverage together."""

    licences: tuple[str, ...] = ()
    """Licences allowed for selected rows, as the data spells them; empty allows all."""

    sources: tuple[str, ...] = ()
    """Sources allowed for selected rows; empty allows all."""

    exclude_sources: tuple[str, ...] = ()
    """Sources never selected from."""

    near_duplicates: float = Field(0.8, ge=0.0, le=1.0)
    """Pool rows whose characters resemble those of a test, usage, coverage or other pool row at
    least this much (Jaccard similarity) are left out; 0 leaves out exact copies only."""

    decontaminate: bool = True
    """Leave out pool rows that share a long run of characters with a test item."""

    langrank_model: str = "starter"
    """`langrank`: `starter`, or a folder written by `compass fit-langrank`."""


# --------------------------------------------------------------------------- model, training
class BaseConfig(Config):
    """The frozen language model."""

    not_in_key = frozenset({"model", "revision", "device"})

    model: str = "starter"
    """`starter`, a local folder with safetensors weights, or a hub id."""

    revision: str = ""
    """Commit of a hub model, so that a run can be repeated; empty for a folder."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights in memory. `auto`: bfloat16 where the hardware has it, else
    float32."""

    device: str = "auto"
    """Where the model computes: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""


class TrainingConfig(Config):
    """The adapter and its training."""

    not_in_key = frozenset({"checkpoint_every"})

    adapter: Literal["lora", "dora"] = "lora"
    """`lora`: low-rank adapter. `dora`: its weight-decomposed variant, which costs more time."""

    lora_rank: PositiveInt = 16
    """Rank r of the adapter's matrices: a higher one can learn more and is larger."""

    lora_alpha: PositiveFloat = 32.0
    """Scale α; the update is multiplied by α/r."""

    lora_dropout: float = Field(0.05, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""

    target_modules: tuple[str, ...] = ()
    """Layers to adapt; empty: all linear layers but the output head."""

    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate (AdamW)."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up: along a cosine, along a line, or not at all
    (`constant`)."""

    warmup_ratio: float = Field(0.03, ge=0.0, lt=1.0)
    """Share of steps in which the learning rate rises to its peak."""

    weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay."""

    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""

    epochs: PositiveFloat = 3.0
    """Passes over the data; `min_steps` and `max_steps` bound it."""

    min_steps: NonNegativeInt = 0
    """Optimiser steps at least (small data is repeated)."""

    max_steps: NonNegativeInt = 0
    """Optimiser steps at most; 0: no limit. Equal to `min_steps`: exactly that many."""

    batch_size: PositiveInt = 32
    """Examples per optimiser step."""

    micro_batch_tokens: PositiveInt = 16_384
    """Padded tokens per forward pass; a step is split to fit."""

    max_length: PositiveInt = 2_048
    """Tokens per example; longer ones are cut at the end."""

    checkpoint_every: PositiveInt = 200
    """Optimiser steps between checkpoints."""


# --------------------------------------------------------------------------- evaluation, promotion
class EvaluationConfig(Config):
    """How answers are scored."""

    not_in_key = frozenset({"batch_tokens"})

    batch_tokens: PositiveInt = 16_384
    """Padded tokens per forward pass."""

    normalise: Literal["none", "tokens", "bytes"] = "none"
    """Divide a choice's log-likelihood by its length in `tokens` or `bytes`, so that long answers
    are not at a disadvantage; `none` does not."""

    max_new_tokens: PositiveInt = 64
    """Tokens to generate for items without choices (scored by exact match)."""

    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    """Level of the bootstrap intervals."""

    n_bootstrap: PositiveInt = Field(1_000, title="Bootstrap resamples")
    """Resamples behind each interval; more make its ends steadier and the report slower."""


class PromotionConfig(Config):
    """When a challenger replaces the champion."""

    alpha: float = Field(0.05, gt=0.0, lt=0.5)
    """Level of the one-sided exact sign test on paired test items."""

    max_covered_loss_alpha: float = Field(0.05, gt=0.0, lt=0.5)
    """A loss on already covered topics that is significant at this level blocks promotion."""

    min_items: PositiveInt = 100
    """Fewer paired items than this are never enough to promote."""


class ExecutionConfig(Config):
    """How work is spread over processes and machines. Never changes a result."""

    not_in_key = frozenset(
        {
            "dry_run",
            "max_parallel",
            "trainers",
            "threads_per_trainer",
            "task_runner",
            "cluster_address",
            "fan_out",
            "language_deployment",
            "training_limit",
        }
    )

    dry_run: bool = False
    """Stop after the selection: nothing is trained or registered."""

    max_parallel: PositiveInt = 2
    """Languages worked on at the same time."""

    trainers: NonNegativeInt = 2
    """Trainer processes; each keeps the base model loaded. 0 trains inside the flow's process."""

    threads_per_trainer: PositiveInt = 1
    """CPU threads of one trainer process."""

    task_runner: Literal["local", "dask", "ray"] = "local"
    """Where languages run: in this process, or in the worker processes of a Dask or Ray cluster
    (`pip install compass-adapt[dask]` or `[ray]`). There each worker has its own trainers."""

    cluster_address: str = Field("", pattern=r"^([a-z]+://\S+)?$")
    """Address of a running cluster (`tcp://scheduler:8786`, `ray://head:10001`). Empty: a cluster
    of `max_parallel` processes on this machine, started for the run and stopped after it."""

    fan_out: Literal["tasks", "deployments"] = "tasks"
    """`tasks`: every language is a task of one run. `deployments`: every language is a run of its
    own of `language_deployment`, on whatever worker serves its pool."""

    language_deployment: str = Field("adapt-language/adapt-language", pattern=r"^[^/]+/[^/]+$")
    """With `fan_out: deployments`: flow and name of the deployment that adapts one language."""

    training_limit: str = Field("", pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$|^$")
    """Prefect global concurrency limit that every training holds a slot of, on whatever machine
    (`prefect gcl create compass-gpu --limit 1`). Empty: no limit beyond `trainers`."""

    @model_validator(mode="after")
    def _one_engine(self) -> Self:
        if self.cluster_address and self.task_runner == "local":
            raise ValueError(
                f"cluster_address={self.cluster_address!r} needs task_runner: dask or ray"
            )
        if self.fan_out == "deployments" and self.task_runner != "local":
            raise ValueError(
                f"fan_out: deployments starts a run per language, so task_runner="
                f"{self.task_runner} has nothing to run; set one of them"
            )
        return self

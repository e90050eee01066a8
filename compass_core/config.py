"""Everything a person may set, one frozen model per stage, composed in `AdaptConfig`.

The same models are the YAML schema, the command line's dotted overrides and the Prefect form. Each
field is documented once, under itself. All problems of a file are reported together.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from compass_core.errors import LanguageError
from compass_core.languages import canonical_language
from compass_core.selection.registry import strategy_names


class Config(BaseModel):
    """Base of all configuration: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    not_in_key: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot change a result (a device, a batch size) or enter by content instead."""

    def key_values(self) -> dict[str, Any]:
        """Return the fields that identify a stage's output, as plain JSON values."""
        values = self.model_dump(mode="json", exclude=set(self.not_in_key))
        for name in values:
            value = getattr(self, name)
            if isinstance(value, Config):
                values[name] = value.key_values()
        return values


# --------------------------------------------------------------------------- data
class ColumnMapping(Config):
    """Which column of a file holds which field; leave a field empty to use COMPASS's own name."""

    id: str = ""
    """Column with a unique id; empty: `id` where it exists, else the row's number."""

    language: str = ""
    """Column with the language code; empty: `language` where it exists."""

    prompt: str = ""
    """Column with the instruction or question."""

    response: str = ""
    """Column with the answer to train on."""

    messages: str = ""
    """Column with a chat: a list of {role, content}."""

    text: str = ""
    """Column with plain text to continue."""

    choices: str = ""
    """Column with the list of options of a multiple-choice item, or several columns separated by
    commas (`option_a,option_b,option_c,option_d`)."""

    answer: str = ""
    """Column with the right option: 0-based index, letter (A, B, …) or the option's text."""

    topic: str = ""
    """Column with a subject label (diagnosis only)."""

    parallel_id: str = ""
    """Column equal for translations of one item, so that test items never leak through them."""

    source: str = ""
    """Column with the origin of the row."""

    licence: str = ""
    """Column with the licence of the row."""


class CorpusConfig(Config):
    """One corpus: where it is and how its columns are named."""

    not_in_key = frozenset({"path", "revision"})

    path: str | tuple[str, ...]
    """File (JSONL, CSV, Parquet, also gzipped), a folder of such files, a pattern (`pool/*.jsonl`),
    a list of files and patterns, a `datasets` folder, or a hub id such as
    `CohereForAI/aya_dataset`. Each file of a pool is read on its own, so a new one leaves what was
    made of the others as it is."""

    name: str = ""
    """Configuration of a hub dataset; `{language}` is replaced by the language's ISO 639-1 code."""

    split: str = ""
    """Split to read: of a `datasets` folder or hub id, or rows whose `split` column says so."""

    revision: str = ""
    """Commit of a hub dataset; pin it, so that a run can be repeated."""

    format: Literal["auto", "jsonl", "json", "csv", "parquet", "datasets", "hub"] = "auto"
    """How to read it; `auto` decides by the file's name and first bytes."""

    columns: ColumnMapping = ColumnMapping()
    """Column mapping; the usual names are found without it."""

    language: str = ""
    """Language of every row, for files without a language column."""

    exclude_languages: tuple[str, ...] = ()
    """Languages to leave out."""

    where: dict[str, str | int | list[str] | list[int]] = Field(default_factory=dict)
    """Keep only rows whose column has this value (or one of these values)."""

    prompt_template: str = ""
    """Text of the prompt with `{column}` placeholders; empty: the prompt column as it is."""

    response_template: str = ""
    """Text of the response with `{column}` placeholders; empty: the response column as it is."""

    label_choices: tuple[str, ...] = ()
    """Options of every row when the answer is one label of a fixed set (for example topics)."""

    licence: str = ""
    """Licence of every row, where the file has no such column."""

    source: str = ""
    """Origin of every row, where the file has no such column; empty: the name of the folder, else
    of the file."""

    hash_split: str = Field("", pattern=r"^(|(100|[0-9]{1,2})-(100|[0-9]{1,2}))$")
    """For data without splits: keep the rows whose hash, a number from 0 to 99, is in this range
    (`0-70` keeps 70 %). Translations (equal `parallel_id`) and equal prompts stay together."""

    bad_rows: Literal["refuse", "skip"] = "refuse"
    """Rows that cannot be used: refuse the corpus and name them, or leave them out and count."""

    limit: NonNegativeInt = 0
    """Rows to read at most, per language; 0 reads all."""

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, (list, tuple)) or not all(isinstance(p, str) for p in listed):
            raise ValueError("give a path, or a list of paths (quote them)")
        if not listed:
            raise ValueError("the list of paths is empty; give one at least")
        return value

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a list, whether one was given or several."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def place(self) -> str:
        """`path` for a message."""
        return ", ".join(self.paths)


class StarterData(Config):
    """The embedded demonstration corpus, made of Unicode CLDR at run time."""

    kind: Literal["starter"] = "starter"
    """Marks this variant."""

    n_coverage: PositiveInt = 200
    """Training examples the target language already has."""

    n_usage: PositiveInt = 300
    """Usage prompts."""

    n_test: PositiveInt = 600
    """Test items at most."""

    n_missing_topics: PositiveInt = 3
    """Topics that users ask about and the coverage lacks: the planted gap."""


class FilesData(Config):
    """Your own corpora."""

    kind: Literal["files"] = "files"
    """Marks this variant."""

    usage: CorpusConfig
    """Sample of what users ask. Prompts only; shapes the selection, never trained on."""

    coverage: CorpusConfig | None = None
    """Training data the target language already has; leave out if there is none."""

    pool: CorpusConfig
    """Data of other languages to select from."""

    test: CorpusConfig
    """Test items with gold answers. Read for scoring only."""

    retention: CorpusConfig | None = None
    """Test items, in English as a rule, that an update must not answer worse; leave out if there
    are none."""


DataConfig = Annotated[StarterData | FilesData, Field(discriminator="kind")]


# --------------------------------------------------------------------------- embedding, clusters
class EmbeddingConfig(Config):
    """The multilingual encoder."""

    not_in_key = frozenset({"encoder", "revision", "batch_size", "device", "shard_rows"})

    encoder: str = "starter"
    """`starter`, a sentence-transformers folder, or a hub id (`intfloat/multilingual-e5-small`)."""

    revision: str = ""
    """Commit of a hub encoder."""

    prefix: str = ""
    """Text put before every input (`query: ` for the e5 family)."""

    batch_size: PositiveInt = 256
    """Texts of 64 tokens per batch on a GPU; a batch holds as many tokens, of more short or fewer
    long texts. Lower it when memory runs out. Batches on a CPU stay small whatever it says."""

    max_length: PositiveInt = 256
    """Tokens per text; longer texts are cut."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`. With `auto` or `cuda` the trainer processes
    (`execution.trainers`) share out the GPUs there are."""

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
    """K-Means chosen by `choose_by`, or HDBSCAN chosen by DBCV."""

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
    """What to do when clusters follow the language instead of the meaning."""

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
    """`compass` spends the budget where coverage falls short of usage; the others are baselines."""

    budget: PositiveInt = 400
    """Pool examples to select."""

    smoothing: PositiveFloat = 0.2
    """Pseudo-count α of the shares, equations (1) and (2). With many clusters and few prompts, a
    larger one spends much of the budget evenly."""

    shrinkage: Literal["additive", "adaptive"] = "additive"
    """How usage shares are estimated from few prompts: `additive`, equation (1), or `adaptive`,
    which learns from the counts how uneven the shares are."""

    rule: Literal["waterfill", "gap", "importance"] = "waterfill"
    """How the budget is split over clusters."""

    draw: Literal["uniform", "nearest", "diverse"] = "uniform"
    """How examples are drawn inside a cluster."""

    language_balance: float = Field(0.0, ge=0.0, le=1.0)
    """0: languages as the pool has them; 1: every source language equally often."""

    similar_languages: PositiveInt = 3
    """`similar`, `langsim`, `langrank`: number of source languages."""

    dsir_target: Literal["usage", "usage+coverage"] = "usage"
    """`dsir`: texts whose words the selection should resemble."""

    licences: tuple[str, ...] = ()
    """Licences allowed for selected rows; empty allows all."""

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
    """Commit of a hub model."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights in memory; `auto`: bfloat16 where the hardware has it, else float32."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""


class TrainingConfig(Config):
    """The adapter and its training."""

    not_in_key = frozenset({"checkpoint_every"})

    adapter: Literal["lora", "dora"] = "lora"
    """Low-rank adapter, or its weight-decomposed variant."""

    lora_rank: PositiveInt = 16
    """Rank r."""

    lora_alpha: PositiveFloat = 32.0
    """Scale α; the update is multiplied by α/r."""

    lora_dropout: float = Field(0.05, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""

    target_modules: tuple[str, ...] = ()
    """Layers to adapt; empty: all linear layers but the output head."""

    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate (AdamW)."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after warm-up."""

    warmup_ratio: float = Field(0.03, ge=0.0, lt=1.0)
    """Share of steps that warm up."""

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
    """Divide a choice's log-likelihood by its length in this unit."""

    max_new_tokens: PositiveInt = 64
    """Tokens to generate for items without choices (scored by exact match)."""

    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    """Level of the bootstrap intervals."""

    n_bootstrap: PositiveInt = 1_000
    """Bootstrap resamples."""


class PromotionConfig(Config):
    """When a challenger replaces the champion."""

    alpha: float = Field(0.05, gt=0.0, lt=0.5)
    """Level of the one-sided exact sign test on paired test items."""

    max_covered_loss_alpha: float = Field(0.05, gt=0.0, lt=0.5)
    """A loss on already covered topics that is significant at this level blocks promotion."""

    min_items: PositiveInt = 100
    """Fewer paired items than this are never enough to promote."""


# --------------------------------------------------------------------------- production
class LogColumns(Config):
    """Which column of a usage log holds which field; leave a field empty to use the usual name."""

    id: str = ""
    """Column with the record's unique id; empty: `id`, `record_id` or `request_id`."""

    time: str = ""
    """Column with the time of the request; empty: `time`, `timestamp` or `created_at`."""

    text: str = ""
    """Column with the prompt; empty: `prompt`, `text` or `message`."""

    language: str = ""
    """Column with the language code; empty: `language` or `lang` where one exists."""

    user: str = ""
    """Column with the user; empty: `user`, `user_id` where one exists."""

    session: str = ""
    """Column with the session or conversation; empty: `session`, `session_id` where one exists."""


class UsageLogConfig(Config):
    """Where production prompts are read from: files, or a table that DuckDB can read."""

    not_in_key = frozenset({"path", "database"})

    path: str | tuple[str, ...] = ""
    """Folder, file or pattern of JSONL or Parquet files (`logs/*.jsonl.gz`), or a list of them."""

    database: str = ""
    """A DuckDB file, or a connection string together with `database_type`; instead of `path`."""

    database_type: Literal["duckdb", "sqlite", "postgres", "mysql"] = "duckdb"
    """Kind of `database`; all but duckdb need DuckDB's extension of that name to be installed."""

    table: str = ""
    """Table or view of `database`."""

    columns: LogColumns = LogColumns()
    """Column mapping; the usual names are found without it."""

    language: str = ""
    """Language of every record, for logs without a language column."""

    time_zone: str = ""
    """IANA name (`Africa/Nairobi`) of times that are written without a zone. Without it such
    records are quarantined."""

    keep: Literal["clusters", "text"] = "clusters"
    """What is kept of a record: its cluster, its distance and hashed ids, or its text as well."""


class DriftConfig(Config):
    """When a change of usage is an alarm, and when alarms are a drift."""

    alpha: float = Field(0.01, gt=0.0, lt=0.5)
    """Chance of a false alarm in one check of one language, before the correction over
    languages."""

    n_permutations: int = Field(999, ge=99)
    """Permutations of a check."""

    max_permutations: int = Field(19_999, ge=99)
    """Permutations when the first ones say p <= .01, or when a corrected level needs more."""

    unit: Literal["user", "session", "prompt"] = "user"
    """What is resampled. Prompts of one user are not independent; `prompt` is right only where
    every prompt has its own user."""

    min_units: PositiveInt = 200
    """Users (or sessions) a window needs for a decision."""

    min_prompts: PositiveInt = 500
    """Prompts a window needs for a decision, where users are unknown."""

    max_prompts_per_unit: PositiveInt = 20
    """Prompts of one user that count, so that nobody moves the mix alone."""

    duplicates: Literal["collapse", "count"] = "collapse"
    """Equal prompts in one window: count once, or every time."""

    over_time: Literal["consecutive", "spending"] = "consecutive"
    """`consecutive`: several alarms in a row are a drift. `spending`: one alarm is, at a level of
    `alpha` divided by `checks_per_year`."""

    consecutive: PositiveInt = 2
    """Alarms in a row that make a drift."""

    checks_per_year: PositiveInt = 365
    """`spending`: checks over which `alpha` is spent."""

    cooldown: NonNegativeInt = 3
    """Windows after a drift in which no new one is declared."""

    correct_languages: bool = True
    """Divide the level by the number of languages watched."""

    min_effect: NonNegativeFloat = 0.0
    """Smallest drift score (bits, beyond what no change would give) that can be an alarm: very
    large windows make every triviality significant."""


class MonitoringConfig(Config):
    """How production usage is watched."""

    log: UsageLogConfig | None = None
    """Where production prompts are read from; leave out when they are appended from Python."""

    n_clusters: PositiveInt = 50
    """Clusters of the space that usage is watched in. Fewer see diffuse changes sooner, more see
    small new topics."""

    windows: Literal["time", "count"] = "time"
    """Cut the log by time or by number of prompts."""

    window_length: str = Field("1d", pattern=r"^[1-9][0-9]{0,3}[hdw]$")
    """Length of a window of time: hours (`6h`), days (`1d`) or weeks (`1w`), in UTC."""

    window_size: PositiveInt = 1_000
    """Prompts of a window by count."""

    lateness: str = Field("1h", pattern=r"^(0|[1-9][0-9]{0,3}[hdw])$")
    """How long after its end a window of time waits for records that arrive late."""

    min_shown: PositiveInt = 20
    """A cluster with fewer users (or prompts, where users are unknown) is never shown by itself."""

    drift: DriftConfig = DriftConfig()
    """The test and its consequences."""

    emit_events: bool = True
    """Send `compass.drift` events to Prefect, which start the update."""


class UpdateConfig(Config):
    """COMPASS-ECDA: how an adapter learns new usage without losing the old, equation (6)."""

    ewc_strength: NonNegativeFloat = 2.0
    """λ of equation (6); 0 switches the penalty off."""

    replay_strength: NonNegativeFloat = 0.1
    """β of equation (6); 0 switches replay off."""

    fisher_scale: Literal["mean", "max", "raw"] = "mean"
    """What the Fisher information is divided by before λ applies: λ means nothing without it."""

    fisher_examples: NonNegativeInt = 0
    """Examples the Fisher information is averaged over; 0 takes all."""

    fisher_decay: float = Field(1.0, ge=0.0, le=1.0)
    """Weight of the Fisher information of earlier updates when a new one is added."""

    replay_share: float = Field(0.05, ge=0.0, le=1.0)
    """Share of the historical training examples kept in the replay buffer."""

    max_replay_examples: PositiveInt = 5_000
    """Examples of the replay buffer at most."""

    replay_batch_size: NonNegativeInt = 0
    """Replayed examples per optimiser step; 0: an eighth of `training.batch_size`."""

    budget: NonNegativeInt = 0
    """Pool examples to add; 0: `selection.budget`."""

    steps: NonNegativeInt = 0
    """Optimiser steps; 0: as `training` says."""

    learning_rate: NonNegativeFloat = 0.0
    """Peak learning rate; 0: that of `training`."""

    max_loss_alpha: float = Field(0.05, gt=0.0, lt=0.5)
    """A loss on an older slice or on the retention set that is significant at this level (after
    Holm's correction) blocks the update."""

    max_slices: PositiveInt = 8
    """Older slices that are tested for forgetting, newest first; the first one always stays."""

    slice_items: PositiveInt = 500
    """Test items of a slice at most."""

    escalate_after: NonNegativeInt = 0
    """Refused updates in a row after which the language is trained anew; 0: never."""


class ExecutionConfig(Config):
    """How work is spread over the machine. Never changes a result."""

    not_in_key = frozenset({"dry_run", "max_parallel", "trainers", "threads_per_trainer"})

    dry_run: bool = False
    """Stop after the selection: nothing is trained or registered."""

    max_parallel: PositiveInt = 2
    """Languages in flight."""

    trainers: NonNegativeInt = 2
    """Trainer processes; each keeps the base model loaded. 0 trains inside the flow's process."""

    threads_per_trainer: PositiveInt = 1
    """CPU threads of one trainer process."""


class Recipe(Config):
    """Everything about a run but the languages it is for."""

    project: str = Field("compass", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    """Name of the MLflow experiment and of the report."""

    seed: NonNegativeInt = 0
    """Seed of everything random."""

    data: DataConfig = StarterData()
    """Usage, coverage, pool and test set."""

    embedding: EmbeddingConfig = EmbeddingConfig()
    """The encoder."""

    clustering: ClusteringConfig = ClusteringConfig()
    """The clusters of meaning."""

    selection: SelectionConfig = SelectionConfig()
    """What is selected from the pool."""

    base: BaseConfig = BaseConfig()
    """The language model that all adapters share."""

    training: TrainingConfig = TrainingConfig()
    """The adapter's training."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """The scoring."""

    promotion: PromotionConfig = PromotionConfig()
    """The gate."""

    monitoring: MonitoringConfig = MonitoringConfig()
    """Production usage: where it is logged, and when its change is a drift."""

    update: UpdateConfig = UpdateConfig()
    """The update that a drift starts."""

    baselines: tuple[StrategyName, ...] = ()
    """Baselines trained beside the selected strategy, for the report; never registered."""

    execution: ExecutionConfig = ExecutionConfig()
    """Parallelism."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Shape the schema for forms: what must be said first, and unions as a choice."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        properties = schema["properties"]
        first = [name for name in ("languages", "language", "seeds") if name in properties]
        schema["properties"] = {n: properties[n] for n in (*first, *properties)}
        data = schema["properties"]["data"]
        data.pop("discriminator", None)
        if "oneOf" in data:
            data["anyOf"] = data.pop("oneOf")
        return schema

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        if self.training.max_steps and self.training.max_steps < self.training.min_steps:
            raise ValueError(
                f"training.max_steps={self.training.max_steps} is below "
                f"training.min_steps={self.training.min_steps}"
            )
        return self


class AdaptConfig(Recipe):
    """Adapt one frozen language model to several languages."""

    languages: tuple[str, ...] = Field(min_length=1)
    """Target languages: BCP-47, ISO 639, or English names (`sw`, `swh_Latn`, `Swahili`)."""

    @field_validator("languages", mode="before")
    @classmethod
    def _canonical(cls, value: Any) -> Any:
        return canonical_languages(value)


class AdaptLanguageConfig(Recipe):
    """Adapt one frozen language model to one language."""

    language: str
    """Target language: BCP-47, ISO 639, or English name (`sw`, `swh_Latn`, `Swahili`)."""

    @field_validator("language", mode="before")
    @classmethod
    def _canonical(cls, value: Any) -> Any:
        return canonical_languages([value])[0]


class StudyConfig(AdaptConfig):
    """Compare selection strategies at equal budgets and equal optimiser steps."""

    seeds: tuple[NonNegativeInt, ...] = Field((0, 1, 2), min_length=1)
    """Seeds; each draws its own splits, clusters, selections and trainings."""

    strategies: tuple[StrategyName, ...] = (
        "target-only",
        "random",
        "similar",
        "all-data",
        "compass",
    )
    """Trained arms; the base without an adapter (zero-shot) always takes part."""


class ContinualStudyConfig(AdaptConfig):
    """Compare ways of updating an adapter over a sequence of shifts.

    The sequence is cut from the embedded corpus: of `data`, `n_usage` and `n_test` are those of
    each stage, and `n_missing_topics` are the topics of the first stage that its coverage lacks.
    """

    seeds: tuple[NonNegativeInt, ...] = Field((0, 1, 2), min_length=1)
    """Seeds; each draws its own sequence of shifts."""

    arms: tuple[
        Literal["frozen", "naive", "ewc-only", "replay-only", "rehearsal", "ecda", "full"], ...
    ] = Field(
        ("frozen", "naive", "ewc-only", "replay-only", "rehearsal", "ecda", "full"), min_length=1
    )
    """Ways of updating: not at all; fine-tuning on the new data alone; one term of equation (6)
    alone; 5 % of old examples mixed in at random; equation (6); training anew on everything."""

    n_shifts: PositiveInt = 5
    """Shifts of usage after the first training."""

    @model_validator(mode="after")
    def _has_a_sequence(self) -> Self:
        if not isinstance(self.data, StarterData):
            raise ValueError(
                "a continual study needs a sequence of shifts, which only the embedded corpus "
                "has; set data.kind to `starter` (`compass monitor` watches your own usage)"
            )
        if self.selection.draw == "nearest":
            raise ValueError(
                "selection.draw=nearest needs the vectors of the usage that a space was made "
                "with, and a study has one space for all shifts; choose `uniform` or `diverse`"
            )
        for name in ("arms", "seeds"):
            values = getattr(self, name)
            twice = sorted({str(value) for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{name} names {', '.join(twice)} twice")
        return self


def canonical_languages(value: Any) -> Any:
    """Return language names as canonical codes; every problem is reported at once.

    Raises:
        ValueError: a boolean (YAML's `no`), an unknown code, or a language named twice.
    """
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, (list, tuple)):
        return value
    languages: list[str] = []
    problems: list[str] = []
    for position, item in enumerate(value):
        if isinstance(item, bool):
            quoted = "yes" if item else "no"
            problems.append(f'E36 [{position}] is a boolean; quote it: "{quoted}"')
            continue
        try:
            languages.append(canonical_language(str(item)))
        except LanguageError as error:
            problems.append(f"[{position}] {error}")
    problems += [
        f"{code} is named twice" for code in sorted(set(languages)) if languages.count(code) > 1
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(languages)

"""Everything a person may set, one frozen model per stage, composed in `AdaptConfig`.

The same models are the YAML schema, the command line's dotted overrides and the Prefect form. Each
field is documented once, under itself. All problems of a file are reported together.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from compass_core.config_base import Config
from compass_core.config_data import (
    ColumnMapping,
    CorpusConfig,
    DataConfig,
    FilesData,
    StarterData,
)
from compass_core.config_production import (
    DriftConfig,
    LogColumns,
    MonitoringConfig,
    UpdateConfig,
    UsageLogConfig,
)
from compass_core.config_stages import (
    STRATEGIES,
    BaseConfig,
    ClusteringConfig,
    EmbeddingConfig,
    EvaluationConfig,
    ExecutionConfig,
    PromotionConfig,
    SelectionConfig,
    StrategyName,
    TrainingConfig,
)
from compass_core.errors import LanguageError
from compass_core.languages import canonical_language

__all__ = [
    "STRATEGIES",
    "AdaptConfig",
    "AdaptLanguageConfig",
    "BaseConfig",
    "ClusteringConfig",
    "ColumnMapping",
    "Config",
    "ContinualStudyConfig",
    "CorpusConfig",
    "DataConfig",
    "DriftConfig",
    "EmbeddingConfig",
    "EvaluationConfig",
    "ExecutionConfig",
    "FilesData",
    "LogColumns",
    "MonitoringConfig",
    "PromotionConfig",
    "Recipe",
    "SelectionConfig",
    "StarterData",
    "StrategyName",
    "StudyConfig",
    "TrainingConfig",
    "UpdateConfig",
    "UsageLogConfig",
    "canonical_languages",
]


class Recipe(Config):
    """Everything about a run but the languages it is for."""

    form_order: ClassVar[tuple[str, ...]] = (
        "languages",
        "language",
        "seeds",
        "strategies",
        "arms",
        "n_shifts",
        "project",
        "seed",
        "execution",
        "selection",
        "baselines",
        "training",
        "evaluation",
        "promotion",
        "base",
        "embedding",
        "clustering",
        "data",
        "monitoring",
        "update",
    )

    project: str = Field("compass", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    """Name of the MLflow experiment and of the report: small letters, digits and hyphens."""

    seed: NonNegativeInt = 0
    """Seed of everything random. Another one gives other draws, so every stage runs again."""

    data: DataConfig = StarterData()
    """Where usage, coverage, pool and test set come from."""

    embedding: EmbeddingConfig = EmbeddingConfig()
    """The multilingual encoder that turns texts into vectors."""

    clustering: ClusteringConfig = ClusteringConfig()
    """The clusters of meaning that usage and coverage are compared in."""

    selection: SelectionConfig = SelectionConfig()
    """Which pool examples are selected, and how many: the budget and the strategy."""

    base: BaseConfig = Field(BaseConfig(), title="Base model")
    """The language model that all adapters share."""

    training: TrainingConfig = TrainingConfig()
    """The adapter, and for how long and how fast it is trained."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """How test items are scored."""

    promotion: PromotionConfig = PromotionConfig()
    """The gate: how much better than the champion a new adapter has to be to replace it."""

    monitoring: MonitoringConfig = MonitoringConfig()
    """Production usage: where it is logged, and when its change is a drift."""

    update: UpdateConfig = UpdateConfig()
    """How an adapter learns new usage after a drift."""

    baselines: tuple[StrategyName, ...] = ()
    """Baselines trained beside the selected strategy, for the report; never registered."""

    execution: ExecutionConfig = ExecutionConfig()
    """Dry run, parallelism and where the work runs. Nothing here changes a result."""

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        if self.training.max_steps and self.training.max_steps < self.training.min_steps:
            raise ValueError(
                f"training.max_steps={self.training.max_steps} is below "
                f"training.min_steps={self.training.min_steps}"
            )
        return self

    @model_validator(mode="after")
    def _drift_within_reach(self) -> Self:
        if self.monitoring.log is not None:  # else nobody watches, and nothing has to be reached
            self.monitoring.drift.check_reach(len(getattr(self, "languages", ("one",))))
        return self


class AdaptConfig(Recipe):
    """Adapt one frozen language model to several languages."""

    languages: tuple[str, ...] = Field(min_length=1)
    """Languages to adapt to, each with an adapter of its own: BCP-47, ISO 639 or English names
    (`sw`, `swh_Latn`, `Swahili`). One alone, to run it again, is fine."""

    @field_validator("languages", mode="before")
    @classmethod
    def _canonical(cls, value: Any) -> Any:
        return canonical_languages(value)


class AdaptLanguageConfig(Recipe):
    """Adapt one frozen language model to one language."""

    language: str
    """Language to adapt to: BCP-47, ISO 639 or English name (`sw`, `swh_Latn`, `Swahili`)."""

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

    n_shifts: PositiveInt = Field(5, title="Shifts")
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

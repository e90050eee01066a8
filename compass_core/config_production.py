"""Production: the usage log, when its change is a drift, and the update that follows."""

from __future__ import annotations

import math
import re
from typing import Final, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
)

from compass_core.config_base import Config

_SECRET: Final = re.compile(
    r"//[^/\s:]*:\S*@|\b(?:\w*password|passwd|pwd)\s*=", re.IGNORECASE | re.ASCII
)
"""What a connection string with a password looks like: ``//user:secret@`` or ``password=``."""


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

    model_config = ConfigDict(title="Files or a table")

    not_in_key = frozenset({"path", "database"})

    path: str | tuple[str, ...] = ""
    """Folder, file or pattern of JSONL or Parquet files (`logs/*.jsonl.gz`), or a list of them."""

    database: str = ""
    """A DuckDB file, or a connection string together with `database_type`; instead of `path`.
    `env:NAME` takes it from the environment when the log is read: the place for a password."""

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
    """What is kept of a record. `clusters`: its cluster, its distance and hashed ids. `text`: its
    text as well."""

    @field_validator("database")
    @classmethod
    def _without_password(cls, value: str) -> str:
        if _SECRET.search(value):
            raise ValueError(
                "holds a password, and the configuration is kept with every run: write env:NAME "
                "here and put the connection string into the environment variable NAME"
            )
        return value


class DriftConfig(Config):
    """When a change of usage is an alarm, and when alarms are a drift."""

    alpha: float = Field(0.01, gt=0.0, lt=0.5)
    """Chance of a false alarm in one check of one language, before the correction over
    languages."""

    n_permutations: int = Field(999, ge=99, title="Permutations")
    """Permutations that each check starts with."""

    max_permutations: int = Field(19_999, ge=99)
    """Permutations when the first ones say p <= .01; a corrected level needs 2 / level of them."""

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
    """Equal prompts in one window count once (`collapse`) or every time (`count`)."""

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
    large windows make every triviality significant. Above 0, a change of nothing but the share
    of prompts outside every radius is never an alarm, because the score does not see it."""

    def level(self, n_languages: int = 1) -> float:
        """Return the level of one check of one of so many languages.

        Examples:
            >>> DriftConfig(alpha=0.01).level(n_languages=4)
            0.0025
            >>> DriftConfig(alpha=0.05, over_time="spending", checks_per_year=50).level()
            0.001
        """
        level = self.alpha
        if self.correct_languages:
            level /= n_languages
        if self.over_time == "spending":
            level /= self.checks_per_year
        return level

    def check_reach(self, n_languages: int) -> None:
        """Refuse a level that no p-value of `max_permutations` permutations can reach.

        Raises:
            ValueError: one statistic alone needs 2 / level permutations, less the observed one.
        """
        level = self.level(n_languages)
        needed = math.ceil(round(2 / level, 6)) - 1
        most = max(self.n_permutations, self.max_permutations)
        if most >= needed:
            return
        shared, others = "", ["a higher alpha"]
        if self.correct_languages and n_languages > 1:
            shared += f" / {n_languages} languages"
            others.append("correct_languages off")
        if self.over_time == "spending":
            shared += f" / {self.checks_per_year} checks_per_year"
            others.append("fewer checks_per_year")
        raise ValueError(
            f"monitoring.drift tests at a level of {level:.2g} (alpha {self.alpha:g}{shared}), "
            f"which max_permutations={most} cannot reach: set monitoring.drift.max_permutations to "
            f"{needed} or more, or choose {' or '.join(others)}"
        )


class MonitoringConfig(Config):
    """How production usage is watched."""

    log: UsageLogConfig | None = None
    """Where production prompts are read from; none when they are appended from Python."""

    n_clusters: PositiveInt = 50
    """Clusters of the space that usage is watched in. Fewer see diffuse changes sooner, more see
    small new topics."""

    windows: Literal["time", "count"] = "time"
    """Cut the log by time (`window_length`) or by number of prompts (`count`, `window_size`)."""

    window_length: str = Field("1d", pattern=r"^[1-9][0-9]{0,3}[hdw]$")
    """Length of a window of time: hours (`6h`), days (`1d`) or weeks (`1w`), in UTC."""

    window_size: PositiveInt = 1_000
    """Prompts of a window by count."""

    lateness: str = Field("1h", pattern=r"^(0|[1-9][0-9]{0,3}[hdw])$")
    """How long after its end a window of time waits for records that arrive late (`1h`, `2d`;
    `0`: not at all)."""

    min_shown: PositiveInt = 20
    """A cluster with fewer users (or prompts, where users are unknown) is never shown by itself."""

    drift: DriftConfig = DriftConfig()
    """The test and its consequences."""

    emit_events: bool = True
    """Send `compass.drift` events to Prefect, which start the update."""


class UpdateConfig(Config):
    """COMPASS-ECDA: how an adapter learns new usage without losing the old, equation (6)."""

    ewc_strength: NonNegativeFloat = 2.0
    """λ of equation (6): how strongly important weights are held in place; 0 lets them move."""

    replay_strength: NonNegativeFloat = 0.1
    """β of equation (6): weight of replayed old examples in the loss; 0 switches replay off."""

    fisher_scale: Literal["mean", "max", "raw"] = "mean"
    """What the Fisher information is divided by before λ applies: its `mean`, its `max`, or nothing
    (`raw`). λ means nothing without it."""

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

    max_slices: int = Field(8, ge=2)
    """Older slices that are tested for forgetting: the first one, and the newest."""

    slice_items: PositiveInt = 500
    """Test items of a slice at most."""

    escalate_after: NonNegativeInt = 0
    """Refused updates in a row after which the language is trained anew; 0: never."""

"""Where corpora are, and how their columns are named."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator

from compass_core.config_base import Config


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
    """Keep only rows whose column has this value, or one of these values, as JSON:
    `{"quality": "good", "domain": ["law", "health"]}`; empty (`{}`) keeps all."""

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

    model_config = ConfigDict(title="Demonstration corpus")

    kind: Literal["starter"] = "starter"
    """`starter` stands for the demonstration corpus."""

    n_coverage: PositiveInt = Field(200, title="Coverage examples")
    """Training examples the target language already has."""

    n_usage: PositiveInt = Field(300, title="Usage prompts")
    """Prompts of the usage sample that the gap is measured with."""

    n_test: PositiveInt = Field(600, title="Test items")
    """Test items at most."""

    n_missing_topics: PositiveInt = Field(3, title="Missing topics")
    """Topics that users ask about and the coverage lacks: the planted gap."""


class FilesData(Config):
    """Your own corpora."""

    model_config = ConfigDict(title="Your own files")

    kind: Literal["files"] = "files"
    """`files` stands for your own corpora."""

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

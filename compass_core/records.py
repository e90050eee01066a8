"""Records that cross stages: one example, a reference to an artefact, and the row schemas.

Rows travel as Arrow tables (``EXAMPLE_SCHEMA``); `Example` is one row as Python sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

Turn = tuple[str, str]
"""(role, content) of an earlier turn of a conversation; role is system, user or assistant."""

EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field(
            "history",
            pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])),
            nullable=False,
        ),
        pa.field("choices", pa.list_(pa.string()), nullable=False),
        pa.field("answer_index", pa.int32()),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("parallel_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
    ]
)
"""Columns of every ingested corpus, whatever the format it came from."""


@dataclass(frozen=True, slots=True)
class Example:
    """One unit of text: a usage prompt, a training pair or a test item.

    Attributes:
        id: Unique within its corpus.
        language: Canonical ISO 639-3 + script, for example ``swh_Latn``.
        prompt: What the user asks; empty for plain text to continue.
        response: What the model should answer; empty for usage prompts.
        history: Earlier turns of the conversation, oldest first.
        choices: Answer options of a multiple-choice item; empty otherwise.
        answer_index: 0-based index of the right choice, where there are choices.
        topic: Subject label where the source has one; diagnosis only, never used to select.
        parallel_id: Equal for translations of one item; empty where unknown.
        source: Where the row comes from (dataset name or file).
        licence: SPDX expression or the source's own words; empty where unknown.
    """

    id: str
    language: str
    prompt: str
    response: str = ""
    history: tuple[Turn, ...] = ()
    choices: tuple[str, ...] = ()
    answer_index: int | None = None
    topic: str = ""
    parallel_id: str = ""
    source: str = ""
    licence: str = ""

    @property
    def text(self) -> str:
        """The text that is embedded: the prompt, or the response of a plain-text row."""
        return self.prompt or self.response


def examples_to_table(examples: Iterable[Example]) -> pa.Table:
    """Return `examples` as a table of ``EXAMPLE_SCHEMA``, in order."""
    rows = []
    for example in examples:
        row = {name: getattr(example, name) for name in EXAMPLE_SCHEMA.names}
        row["history"] = [{"role": role, "content": text} for role, text in example.history]
        row["choices"] = list(example.choices)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


def table_to_examples(table: pa.Table) -> list[Example]:
    """Return the rows of `table` (of ``EXAMPLE_SCHEMA``) as examples, in order."""
    examples = []
    for row in table.select(EXAMPLE_SCHEMA.names).to_pylist():
        row["history"] = tuple((turn["role"], turn["content"]) for turn in row["history"])
        row["choices"] = tuple(row["choices"])
        examples.append(Example(**row))
    return examples


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """A finished artefact by reference; what travels between tasks instead of the data.

    Attributes:
        kind: Stage that made it, for example ``embed``.
        fingerprint: Identity of the recipe (stage version, config, input hashes).
        path: Folder relative to the store's root, so that a store can be moved.
        sha256: Identity of the content; downstream fingerprints are made of this.
        bytes: Size of all files together.
        rows: Rows of the main table, 0 where that means nothing.
    """

    kind: str
    fingerprint: str
    path: str
    sha256: str
    bytes: int
    rows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ArtifactRef:
        """Rebuild a reference from `to_dict`."""
        return cls(**values)

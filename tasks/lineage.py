"""What a registered adapter stands on: named when it is made, kept with it, found by its tag.

An update starts from the champion's lineage and nothing else: its corpora, what it was trained on,
the slices it was tested on, the space its usage is watched in, and the terms of equation (6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compass_core.config import Recipe
from compass_core.errors import ModelError
from compass_core.records import ArtifactRef
from compass_core.storage import Draft, fingerprint, read_json, write_json
from tasks import registry
from tasks.caching import ModelRef, key_value, part
from tasks.settings import open_store

LINEAGE_TAG = "lineage_fingerprint"
FIRST_SLICE = "first"
_FILE = "lineage.json"


@dataclass(frozen=True, slots=True)
class Lineage:
    """What one adapter was made of.

    Attributes:
        ref: The artefact that holds this.
        language: Canonical code.
        embedded_by: Identity of encoder and embedding settings, see `embedding_identity`.
        refs: By name: ``usage``, ``coverage``, ``test`` (rows), ``pool``, ``sample``; an updated
            adapter also has ``space``, ``reference``, ``history``, ``replay`` and ``fisher`` (as
            far as its update used them).
        slices: By name, oldest first: test items of each stage of the adapter's life.
        facts: Plain values: strategy, seed, event.
    """

    ref: ArtifactRef
    language: str
    embedded_by: str
    refs: Mapping[str, ArtifactRef]
    slices: Mapping[str, ArtifactRef]
    facts: Mapping[str, Any]


def embedding_identity(recipe: Recipe, encoder: ModelRef) -> str:
    """Return what vectors must have in common to be compared: the encoder and its settings."""
    return fingerprint(encoder.sha256, key_value(recipe.embedding))


@part("lineage", 1)
def write_lineage(
    draft: Draft,
    language: str,
    embedded_by: str,
    refs: dict[str, ArtifactRef],
    slices: list[tuple[str, ArtifactRef]],
    facts: dict[str, Any],
) -> None:
    """Name everything that an adapter stands on: ``lineage.json``. What is named is kept."""
    named = [*refs.values(), *(ref for _name, ref in slices)]
    draft.rows = len(named)
    draft.provenance |= {"language": language, "parts": [ref.path for ref in named]}
    values = {
        "language": language,
        "embedded_by": embedded_by,
        "refs": {name: ref.to_dict() for name, ref in refs.items()},
        "slices": [{"name": name, "ref": ref.to_dict()} for name, ref in slices],
        "facts": facts,
    }
    write_json(draft.folder / _FILE, values)


def read_lineage(ref: ArtifactRef) -> Lineage:
    """Return what `write_lineage` wrote."""
    values = read_json(open_store().folder(ref) / _FILE)
    return Lineage(
        ref=ref,
        language=values["language"],
        embedded_by=values["embedded_by"],
        refs={name: ArtifactRef.from_dict(value) for name, value in values["refs"].items()},
        slices={s["name"]: ArtifactRef.from_dict(s["ref"]) for s in values["slices"]},
        facts=values["facts"],
    )


def lineage_of(version: registry.RegisteredAdapter) -> Lineage:
    """Return the lineage of a registered adapter.

    Raises:
        ModelError: E53 it has none, or the store no longer holds it.
    """
    fingerprint = version.tags.get(LINEAGE_TAG, "")
    found = open_store().find("lineage", fingerprint) if fingerprint else None
    if found is None:
        raise ModelError(
            f"The store does not hold what version {version.version} of {version.name} was made "
            "of, so its usage cannot be compared and it cannot be updated. Run `compass adapt` "
            "for this language once, in the home that serves it.",
            code="E53",
        )
    return read_lineage(found)


def keep_slices(
    slices: Mapping[str, ArtifactRef], newest: tuple[str, ArtifactRef], limit: int
) -> list[tuple[str, ArtifactRef]]:
    """Return the slices of the next adapter: the first, and the newest up to `limit` in all.

    Examples:
        >>> keep_slices({"first": 1, "b": 2, "c": 3}, ("d", 4), 3)
        [('first', 1), ('c', 3), ('d', 4)]
    """
    earlier = {name: ref for name, ref in slices.items() if name != newest[0]}
    known: Sequence[tuple[str, ArtifactRef]] = [*earlier.items(), newest]
    if len(known) <= limit:
        return list(known)
    return [known[0], *known[len(known) - limit + 1 :]] if limit > 1 else [newest]

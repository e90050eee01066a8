"""The file of cases: its schema, checked before anything is read or fitted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from compass_core.errors import DataError, bounded_list

SELECTION_KINDS = ("coverage_gap", "usage_skew")
DRIFT_KINDS = ("drift", "no_drift_control")
ALL_BUT_TARGET = "all but the target"
_DEFAULT_BUDGET = 400


class _Loose(BaseModel):
    """Part of a case; keys that are not known are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PoolFilter(_Loose):
    """Which rows may be drawn."""

    file: str
    """Name of the data file."""

    languages: str | list[str] = ALL_BUT_TARGET
    """Languages, or `all but the target`."""

    split: str = ""
    """Split; empty takes all."""


class _Settings(_Loose):
    budget: PositiveInt = _DEFAULT_BUDGET


class _Expected(_Loose):
    gap_topics: list[str] = Field(default_factory=list)


class _CaseModel(_Loose):
    name: str = Field(min_length=1)
    kind: str
    files: list[str] = Field(min_length=1)
    target_language: str
    existing_ids: list[str] = Field(default_factory=list)
    usage_ids: list[str] = Field(default_factory=list)
    pool: PoolFilter | None = None
    expected: _Expected = _Expected()
    settings: _Settings = _Settings()

    @model_validator(mode="after")
    def _complete(self) -> _CaseModel:
        if self.kind not in (*SELECTION_KINDS, *DRIFT_KINDS):
            known = ", ".join((*SELECTION_KINDS, *DRIFT_KINDS))
            raise ValueError(f"kind {self.kind!r} is not one of {known}")
        if self.kind in SELECTION_KINDS and (not self.usage_ids or self.pool is None):
            raise ValueError("a selection case needs usage_ids and a pool")
        return self


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        name: Its name.
        kind: coverage_gap, usage_skew, drift or no_drift_control.
        files: Data files that hold its rows.
        target_language: As the data writes it.
        existing_ids: Rows of the target language that are covered already; may be empty.
        usage_ids: Rows that stand for what users ask.
        pool: What may be drawn; None for drift cases.
        gap_topics: Topics the selection must over-represent.
        budget: Rows to select.
        raw: The case as it was written.
    """

    name: str
    kind: str
    files: tuple[str, ...]
    target_language: str
    existing_ids: tuple[str, ...]
    usage_ids: tuple[str, ...]
    pool: PoolFilter | None
    gap_topics: tuple[str, ...]
    budget: int
    raw: dict[str, Any] = field(repr=False)

    @property
    def selects(self) -> bool:
        """Whether the case is about a selection, not about drift."""
        return self.kind in SELECTION_KINDS


def read_cases(path: Path) -> list[Case]:
    """Read a file of cases: a list, or an object with a list under ``cases`` or ``scenarios``.

    Raises:
        DataError: the file is missing, not JSON, or a case lacks what it needs; all are named.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist. Give a file of cases (scenarios.json).", code="E01"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.", code="E05") from None
    if isinstance(document, dict):
        document = document.get("cases", document.get("scenarios"))
    if not isinstance(document, list) or not document:
        raise DataError(f"{path} holds no list of cases.", code="E51")
    cases, problems = [], []
    for position, values in enumerate(document):
        try:
            cases.append(_case(_CaseModel.model_validate(values), values))
        except ValidationError as error:
            name = values.get("name", "") if isinstance(values, dict) else ""
            problems += [
                f"case {position} {name}: {'.'.join(map(str, e['loc']))} {e['msg']}".rstrip()
                for e in error.errors()
            ]
    if problems:
        raise DataError(f"{path} cannot be used:\n{bounded_list(problems)}", code="E11")
    return cases


def _case(found: _CaseModel, values: dict[str, Any]) -> Case:
    return Case(
        name=found.name,
        kind=found.kind,
        files=tuple(dict.fromkeys(found.files)),
        target_language=found.target_language,
        existing_ids=tuple(dict.fromkeys(found.existing_ids)),
        usage_ids=tuple(dict.fromkeys(found.usage_ids)),
        pool=found.pool,
        gap_topics=tuple(found.expected.gap_topics),
        budget=found.settings.budget,
        raw=values,
    )

"""The file of cases: its schema, checked before anything is read or fitted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

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


class DriftSettings(_Loose):
    """How the windows of a drift case are checked."""

    min_prompts: PositiveInt = 500
    """Prompts a window needs for a decision."""

    users: Literal["one per row", "unknown"] = "one per row"
    """Who asked: a user of its own for each row, or nobody knows. Either way rows are the unit."""

    n_clusters: PositiveInt = 50
    """Clusters that usage is watched in."""

    alpha: float = Field(0.01, gt=0.0, lt=0.5)
    """Level of one check."""

    decision: Literal["single window", "consecutive windows"] = "single window"
    """What `alarm` means: of this window alone, or the second in a row."""


class DriftExpected(_Loose):
    """When a drift must be seen, and when it must not."""

    no_alarm_before_window: NonNegativeInt = 0
    """No window with a smaller number (from 0) may be an alarm."""

    alarm_no_later_than_window: NonNegativeInt | None = None
    """One window up to this number must be an alarm."""

    no_alarm_in_any_window: bool = False
    """Nothing happens, so nothing may be an alarm."""


class _Settings(_Loose):
    budget: PositiveInt = _DEFAULT_BUDGET


class _Expected(_Loose):
    gap_topics: list[str] = Field(default_factory=list)


class _Window(_Loose):
    ids: list[str]


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
        if self.kind not in SELECTION_KINDS:
            known = ", ".join((*SELECTION_KINDS, *DRIFT_KINDS))
            raise ValueError(f"kind {self.kind!r} is not one of {known}")
        if not self.usage_ids or self.pool is None:
            raise ValueError("a selection case needs usage_ids and a pool")
        return self


class _DriftModel(_Loose):
    name: str = Field(min_length=1)
    kind: str
    files: list[str] = Field(min_length=1)
    target_language: str
    reference_ids: list[str] = Field(min_length=1)
    windows: list[_Window] = Field(min_length=1)
    expected: DriftExpected = DriftExpected()
    settings: DriftSettings = DriftSettings()

    @field_validator("windows", mode="before")
    @classmethod
    def _lists_of_ids(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"ids": window} if isinstance(window, list) else window for window in value]


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
        reference_ids: Rows of the usage that windows are compared with; drift cases only.
        windows: Rows of each window, in the order of time; drift cases only.
        drift: How windows are checked.
        expected: When a drift must be seen.
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
    reference_ids: tuple[str, ...] = ()
    windows: tuple[tuple[str, ...], ...] = ()
    drift: DriftSettings = field(default_factory=DriftSettings)
    expected: DriftExpected = field(default_factory=DriftExpected)

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
            cases.append(_case(values))
        except ValidationError as error:
            name = values.get("name", "") if isinstance(values, dict) else ""
            problems += [
                f"case {position} {name}: {'.'.join(map(str, e['loc']))} {e['msg']}".rstrip()
                for e in error.errors()
            ]
    if problems:
        raise DataError(f"{path} cannot be used:\n{bounded_list(problems)}", code="E11")
    return cases


def _case(values: Any) -> Case:
    if isinstance(values, dict) and values.get("kind") in DRIFT_KINDS:
        return _drift_case(_DriftModel.model_validate(values), values)
    found = _CaseModel.model_validate(values)
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


def _drift_case(found: _DriftModel, values: dict[str, Any]) -> Case:
    return Case(
        name=found.name,
        kind=found.kind,
        files=tuple(dict.fromkeys(found.files)),
        target_language=found.target_language,
        existing_ids=(),
        usage_ids=(),
        pool=None,
        gap_topics=(),
        budget=0,
        raw=values,
        reference_ids=tuple(dict.fromkeys(found.reference_ids)),
        windows=tuple(tuple(dict.fromkeys(window.ids)) for window in found.windows),
        drift=found.settings,
        expected=found.expected,
    )

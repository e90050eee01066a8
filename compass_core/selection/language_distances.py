"""Distances between languages by what linguists know of them: the six kinds of URIEL.

The data is that of the optional package ``urielplus``, read from the arrays it installs: no network
needed, and neither pickle nor copies into the installation, as the package's own loader has them.
What is computed equals its ``new_distance`` (angular distance over the features known of both
languages, Khan et al. 2025, "URIEL+"), which ``tests/compass_core/selection/test_langsim.py``
checks.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import ConfigError, LanguageError

KINDS = ("genetic", "geographic", "syntactic", "phonological", "inventory", "featural")
"""The six distances, each in [0, 1]."""

_PREFIXES = {"syntactic": "S_", "phonological": "P_", "inventory": "INV_"}
_FILES = {
    "genetic": "family_features.npz",
    "geographic": "geocoord_features.npz",
    "typological": "features.npz",
}
_DIGITS = 4
"""URIEL's distances are given to this many digits."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Distances:
    """Distances of one target to other languages.

    Attributes:
        by_language: Code → kind → distance in [0, 1]; None where URIEL shares no feature.
        unknown: Codes URIEL does not have.
        version: Of the package that holds the data.
    """

    by_language: dict[str, dict[str, float | None]]
    unknown: tuple[str, ...]
    version: str


def has_uriel() -> bool:
    """Tell whether the optional package is installed."""
    return importlib.util.find_spec("urielplus") is not None


def find_uriel() -> Path:
    """Return the folder of the optional package.

    Raises:
        ConfigError: it is not installed (E66).
    """
    spec = importlib.util.find_spec("urielplus")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "The distances between languages (selection.strategy=langsim) need the data of URIEL, "
            "which is not installed: pip install 'compass-adapt[uriel]'. "
            "`selection.strategy: similar` works without.",
            code="E66",
        )
    return Path(spec.submodule_search_locations[0])


def uriel_distances(target: str, languages: Iterable[str]) -> Distances:
    """Return the six distances from `target` to each of `languages`.

    A canonical code stands for its ISO 639-3 part: scripts of one language have equal distances.

    Args:
        target: canonical code, for example ``swh_Latn``.
        languages: canonical codes.

    Raises:
        ConfigError: the package is not installed, or holds other files than expected (E66).
        LanguageError: URIEL does not know the target (E67).
    """
    tables = _tables()
    names = sorted(set(languages))
    if not _knows(tables, target):
        raise LanguageError(
            f"{target}: URIEL has neither a family nor a place for {target[:3]!r}, so no language "
            "is near it. Use `selection.strategy: similar`, which compares texts.",
            code="E67",
        )
    known = [name for name in names if _knows(tables, name)]
    columns = {kind: _distances(tables, kind, target, known) for kind in KINDS}
    by_language = {name: {kind: columns[kind][i] for kind in KINDS} for i, name in enumerate(known)}
    unknown = tuple(name for name in names if name not in by_language)
    return Distances(by_language, unknown, uriel_version())


def uriel_similarity(distances: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Return 1 − the mean of the six distances of each language.

    A distance that URIEL cannot tell counts as the mean of that kind over the languages that have
    it, so that a language gains nothing by being little described; a kind that none has is left
    out.

    Examples:
        >>> near = {"genetic": 0.2, "geographic": 0.0}
        >>> far = {"genetic": 0.6, "geographic": None}
        >>> uriel_similarity({"a": near, "b": far})
        {'a': 0.9, 'b': 0.7}
    """
    values = np.array(
        [[d if d is not None else np.nan for d in kinds.values()] for kinds in distances.values()],
        dtype=np.float64,
    )
    if not values.size:
        return {}
    values = values[:, ~np.isnan(values).all(axis=0)]
    filled = np.where(np.isnan(values), np.nanmean(values, axis=0), values)
    similarity = np.round(1.0 - filled.mean(axis=1), 6)
    return dict(zip(distances, similarity.tolist(), strict=True))


def uriel_version() -> str:
    """Return the version of the package that holds the data, "" without it."""
    return importlib.metadata.version("urielplus") if has_uriel() else ""


# --------------------------------------------------------------------------- reading
@dataclass(frozen=True)
class _Table:
    """Features of all languages: (L, F) values, −1 where unknown; code → row; feature names."""

    values: Floats | NDArray[np.int8]
    row: dict[str, int]
    features: NDArray[np.str_]


@lru_cache(maxsize=1)
def _tables() -> dict[str, _Table]:
    """Read the package's arrays; 15 MB are kept of some 250, for the life of the process."""
    folder = find_uriel() / "database" / "original_uriel"
    try:
        return {kind: _read(folder / name, kind) for kind, name in _FILES.items()}
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"The URIEL data in {folder} cannot be read: {error}. COMPASS was tested with "
            "urielplus 1.3; install that version: pip install 'compass-adapt[uriel]'.",
            code="E66",
        ) from error


def _read(path: Path, kind: str) -> _Table:
    with np.load(path, allow_pickle=False) as arrays:
        data, names = arrays["data"], arrays["langs"]
        features = arrays["feats"]
    known = (data != -1.0) & np.isfinite(data)
    if kind == "geographic":
        counts = known.sum(axis=2)
        sums = np.where(known, data, 0.0).sum(axis=2)
        values = np.where(counts > 0, sums / np.maximum(counts, 1), -1.0).astype(np.float32)
        return _Table(values, {str(n): i for i, n in enumerate(names)}, features)
    union = np.where(known, data, -1.0).max(axis=2).astype(np.int8)
    return _Table(union, {str(n): i for i, n in enumerate(names)}, features)


def _knows(tables: Mapping[str, _Table], code: str) -> bool:
    """Tell whether URIEL places the language: its family or its coordinates are known."""
    rows = ((tables[kind], tables[kind].row.get(code[:3])) for kind in ("genetic", "geographic"))
    return any(row is not None and bool((table.values[row] > 0).any()) for table, row in rows)


# --------------------------------------------------------------------------- distances
def _distances(
    tables: Mapping[str, _Table], kind: str, target: str, languages: list[str]
) -> list[float | None]:
    table = tables.get(kind, tables["typological"])
    chosen = slice(None)
    columns = np.char.startswith(table.features, _PREFIXES[kind]) if kind in _PREFIXES else chosen
    own = _row(table, target)[columns]
    return [_angle(own, _row(table, name)[columns]) for name in languages]


def _row(table: _Table, code: str) -> NDArray[np.float64]:
    row = table.row.get(code[:3])
    if row is None:
        return np.full(len(table.features), -1.0)
    return np.asarray(table.values[row], dtype=np.float64)


def _angle(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Return the angular distance 2/π · arccos(cos) over what is known of both; None if nothing."""
    shared = (first != -1.0) & (second != -1.0)
    if not shared.any():
        return None
    cosine = float(_direction(first[shared]) @ _direction(second[shared]))
    return round(2 * float(np.arccos(np.clip(cosine, -1.0, 1.0))) / np.pi, _DIGITS)


def _direction(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `values` of length 1; without any feature, the same amount of each."""
    norm = np.linalg.norm(values)
    if norm == 0:
        return np.full(len(values), 1 / np.sqrt(len(values)))
    return np.asarray(values / norm)

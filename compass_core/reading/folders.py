"""Several local files as one corpus: a pattern's matches, a folder, a saved `datasets` folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from compass_core.config import CorpusConfig
from compass_core.errors import DataError
from compass_core.reading.files import (
    SUFFIXES,
    DataFile,
    Source,
    exists,
    one_format,
    plain_name,
    show_name,
    take_file,
)

_METADATA: Final = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})
_SPLIT_WORDS: Final = {"validation": ("validation", "valid", "val", "dev"), "dev": ("dev",)}


def is_pattern(place: str) -> bool:
    """Tell whether `place` is meant to match several files."""
    return any(sign in place for sign in "*?[")


def place_label(path: Path) -> str:
    """Return what messages call a pattern: from the last folder without a wildcard on."""
    root = pattern_root(path)
    return f"{root.resolve().name}/{path.relative_to(root)}"


def pattern_root(pattern: Path) -> Path:
    """Return the deepest folder above a pattern that exists as it is written."""
    return next(folder for folder in pattern.parents if exists(folder))


def pattern_files(pattern: Path, place: str) -> list[tuple[Path, str]]:
    """Return (path, label below the pattern's fixed folder) of every file that matches.

    Raises:
        DataError: none does (E01).
    """
    root = pattern_root(pattern)
    try:
        found = sorted(p for p in root.glob(str(pattern.relative_to(root))) if p.is_file())
    except ValueError as error:
        raise DataError(
            f"not a pattern: {place[:200]!a} ({error}) - correct it", code="E01"
        ) from error
    if not found:
        raise DataError(
            f"no file matches: {place[:200]!a} - check the pattern (what exists is the folder "
            f"{show_name(root.resolve().name)}; relative paths start from the config's folder)",
            code="E01",
        )
    return [(path, path.relative_to(root).as_posix()) for path in found]


def find_folder(config: CorpusConfig, path: Path, name: str) -> Source:
    """Take a folder: a saved dataset, a saved dataset dict, or data files of one format.

    Args:
        config: The corpus.
        path: The folder.
        name: Folder inside it (the configuration of a dataset); may be empty.

    Raises:
        DataError: no data files (E02) or not all of one format (E22), no such configuration or
            split (E25), or a broken `datasets` folder (E20).
    """
    if name:
        if not (path / name).is_dir() or not _inside(path / name, path):
            folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            raise DataError(_no_such("configuration", name, path.name, folders), code="E25")
        path = path / name
    label = path.name
    if (path / "dataset_dict.json").is_file():
        splits = [str(split) for split in _json(path / "dataset_dict.json").get("splits", [])]
        split = config.split or (splits[0] if len(splits) == 1 else "")
        if split not in splits:
            raise DataError(_no_such("split", split, label, splits), code="E25")
        return Source(label, _saved(path / split, label), split_done=True)
    if (path / "state.json").is_file():
        return Source(label, _saved(path, label), split_done=False)
    return _loose_files(config, path)


def _saved(path: Path, label: str) -> tuple[DataFile, ...]:
    """Return the Arrow files that `datasets.save_to_disk` has listed."""
    state = _json(path / "state.json")
    names = [str(entry["filename"]) for entry in state.get("_data_files", [])]
    files = []
    for name in names:
        file = path / name
        if not _inside(file, path) or not file.is_file():
            raise DataError(
                f"not a valid datasets folder: {label} lists {show_name(name)}, which is not in it "
                "- save it again with `save_to_disk`",
                code="E20",
            )
        files.append(DataFile(file, f"{label}/{name}", "arrow", origin=label))
    return tuple(files)


def _loose_files(config: CorpusConfig, path: Path) -> Source:
    found = sorted(_walk(path))
    if not found:
        raise DataError(
            f"no data files: {path.name} is a folder without .jsonl, .csv, .parquet or .arrow files"
            " - give the file itself",
            code="E02",
        )
    split_done = False
    if config.split:
        chosen = [file for file in found if _names_split(file.relative_to(path), config.split)]
        split_done = bool(chosen)
        found = chosen or found
    files = [take_file(config, file, str(file.relative_to(path)), path.name) for file in found]
    return Source(path.name, one_format(files, path.name), split_done=split_done, many=True)


def _walk(path: Path) -> Iterator[Path]:
    for entry in path.rglob("*"):
        if entry.name in _METADATA or any(
            part.startswith((".", "_")) for part in entry.relative_to(path).parts
        ):
            continue
        if Path(plain_name(entry.name)).suffix.lower() in SUFFIXES and entry.is_file():
            yield entry


def _names_split(path: Path, split: str) -> bool:
    words = re.split(r"[^a-z0-9]+", str(path).lower())
    return any(word in words for word in _SPLIT_WORDS.get(split.lower(), (split.lower(),)))


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a valid datasets folder: {path.name}: {error}", code="E20") from error
    if not isinstance(value, dict):
        raise DataError(f"not a valid datasets folder: {path.name}", code="E20")
    return value


def _no_such(kind: str, asked: str, label: str, available: list[str]) -> str:
    asked_text = f"no {kind} {asked!r}" if asked else f"{kind} needed"
    return f"{asked_text}: {label} - available: {', '.join(available[:40]) or 'none'}"

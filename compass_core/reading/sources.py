"""Where a corpus is: files (one, a folder, a pattern, a list), a `datasets` folder, or a hub id.

Nothing is opened here but the first bytes; what is found is checked before anything is parsed.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Final

from compass_core.config import CorpusConfig
from compass_core.errors import DataError
from compass_core.languages import alpha2
from compass_core.reading.files import (
    SUFFIXES,
    DataFile,
    HubDataset,
    Source,
    exists,
    expand_home,
    one_format,
    plain_name,
    show_name,
    take_file,
)
from compass_core.reading.folders import (
    find_folder,
    is_pattern,
    pattern_files,
    pattern_root,
    place_label,
)

PLACEHOLDER: Final = "{language}"
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def find_source(config: CorpusConfig, base_folder: Path, language: str | None = None) -> Source:
    """Find the corpus of `config`; relative paths start from `base_folder`.

    `language` fills the ``{language}`` placeholder of `path` and `name`, as its ISO 639-1 code.

    Raises:
        DataError: nothing there (E01), not a regular file (E02), a URL (E45), an unknown format, an
            unknown split (E25), or no language for the placeholder (E15).
    """
    if not isinstance(config.path, str):
        return _listed(config, base_folder, language)
    place = _fill(config.path, language)
    path = base_folder / _checked(place)
    if config.format != "hub" and exists(path):
        return _local(config, path, language)
    if config.format != "hub" and is_pattern(place):
        files = [take_file(config, *found) for found in pattern_files(path, place)]
        return Source(place_label(path), one_format(files, place_label(path)), many=True)
    if config.format == "hub" or (config.format == "auto" and _looks_like_hub(place)):
        name = _fill(config.name, language)
        hub = HubDataset(place, name, config.split, config.revision)
        return Source(name=place, hub=hub, split_done=True)
    raise DataError(_not_found(place, path), code="E01")


def matching_files(config: CorpusConfig, base_folder: Path) -> list[DataFile]:
    """Return every local file that `config` may read for any language, sorted by label."""
    if PLACEHOLDER not in config.place:
        return list(find_source(config, base_folder).files)
    found: list[DataFile] = []
    for place in config.paths:
        pattern = re.sub(r"([*?[])", r"[\1]", place).replace(PLACEHOLDER, "*")
        anchor = expand_home(pattern)
        root = Path(anchor.anchor) if anchor.is_absolute() else base_folder
        for path in sorted(root.glob(str(anchor.relative_to(anchor.anchor)))):
            found += _local(config, path, None).files
    return found


def _fill(text: str, language: str | None) -> str:
    if PLACEHOLDER not in text:
        return text
    if language is None:
        raise DataError(
            f"language needed: {text} has {PLACEHOLDER} - a pool is read for "
            "all languages at once; give one file or dataset that holds them",
            code="E15",
        )
    return text.replace(PLACEHOLDER, alpha2(language))


def _looks_like_hub(place: str) -> bool:
    return (
        _HUB_ID.fullmatch(place) is not None
        and "/" in place
        and ".." not in place
        and not any(part in SUFFIXES or part == ".gz" for part in Path(place).suffixes)
    )


def _not_found(place: str, path: Path) -> str:
    near: list[str] = []
    if exists(path.parent) and path.parent.is_dir():
        names = [entry.name for entry in path.parent.iterdir()]
        near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "check the path (relative paths start "
    hint += "" if near else f"from {path.parent if path.is_absolute() else 'the config file'})"
    return f"file not found: {place[:200]} - {hint}"


def _checked(place: str) -> Path:
    """Return a local path (or hub id) of a text that can be one."""
    if _URL.match(place):
        raise DataError(
            f"scheme not allowed: {place[:80]!r} is a URL - download it and give the file, or give "
            "a hub id such as CohereForAI/aya_dataset",
            code="E45",
        )
    if not place.strip() or not place.isprintable():
        raise DataError(f"file not found: {place[:80]!a} - give a path", code="E01")
    return expand_home(place)


def _local(config: CorpusConfig, path: Path, language: str | None) -> Source:
    if path.is_dir():
        return find_folder(config, path, _fill(config.name, language))
    return Source(name=plain_name(path.name), files=(take_file(config, path, path.name),))


def _listed(config: CorpusConfig, base_folder: Path, language: str | None) -> Source:
    """Take a list of files and patterns; a file is called by its folder's and its own name."""
    files: dict[str, DataFile] = {}
    for text in config.paths:
        place = _fill(text, language)
        path = base_folder / _checked(place)
        if not exists(path) and is_pattern(place):
            matches = pattern_files(path, place)
            matches = [
                (found, f"{pattern_root(path).resolve().name}/{label}") for found, label in matches
            ]
        elif not exists(path):
            raise DataError(_not_found(place, path), code="E01")
        elif path.is_dir():
            raise DataError(
                f"not a file: {show_name(path.name)} is a folder in a list of files - write "
                f"{show_name(path.name + '/*')}, or give the folder alone",
                code="E02",
            )
        else:
            matches = [(path, f"{path.parent.resolve().name}/{path.name}")]
        for found, label in matches:
            if label in files and not files[label].path.samefile(found):
                raise DataError(
                    f"two files are called {label}: rows are named after them - rename one, or "
                    "put both in one folder and give that",
                    code="E17",
                )
            files[label] = take_file(config, found, label)
    name = f"{len(files)} files"
    return Source(name, one_format(list(files.values()), name), many=True)

"""Where a corpus is: files (one, a folder, a pattern, a list), a `datasets` folder, or a hub id.

Nothing is opened here but the first bytes; what is found is checked before anything is parsed.
"""

from __future__ import annotations

import difflib
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from compass_core.config import CorpusConfig
from compass_core.errors import DataError
from compass_core.languages import alpha2

FileFormat = Literal["jsonl", "json", "csv", "parquet", "arrow"]

PLACEHOLDER: Final = "{language}"
GZIP_MAGIC: Final = b"\x1f\x8b"
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SUFFIXES: Final[dict[str, FileFormat]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
}
_ARCHIVES: Final = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstandard file",
    b"7z\xbc\xaf": "a 7z archive",
}
_METADATA: Final = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})
_SPLIT_WORDS: Final = {"validation": ("validation", "valid", "val", "dev"), "dev": ("dev",)}
_CODES: Final = {"json": "E18", "jsonl": "E18", "csv": "E18", "parquet": "E20", "arrow": "E20"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file to read.

    Attributes:
        path: Where it is.
        label: What messages call it: relative to the corpus, never an absolute path.
        format: How to read it.
        gzipped: Whether its first bytes say gzip.
        origin: Where its rows come from, unless they say so themselves.
    """

    path: Path
    label: str
    format: FileFormat
    gzipped: bool = False
    origin: str = ""


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset on the hub."""

    id: str
    name: str
    split: str
    revision: str


@dataclass(frozen=True, slots=True)
class Source:
    """A corpus that was found.

    Attributes:
        name: What messages call it (file name, folder, pattern or hub id).
        files: Local files, sorted by name; empty for a hub dataset.
        hub: The hub dataset, if it is one.
        split_done: Whether choosing files has already applied `split`.
        many: Whether there may be more than one file: a folder, a pattern or a list.
    """

    name: str
    files: tuple[DataFile, ...] = ()
    hub: HubDataset | None = None
    split_done: bool = False
    many: bool = False


def find_source(config: CorpusConfig, base_folder: Path, language: str | None = None) -> Source:
    """Find the corpus of `config`; relative paths start from `base_folder`.

    `language` fills the ``{language}`` placeholder of `path` and `name`, as its ISO 639-1 code.

    Raises:
        DataError: nothing there (E01), not a regular file (E02), a URL (E45), an unknown format, an
            unknown split (E25), or no language for the placeholder (E15).
    """
    if not isinstance(config.path, str):
        return _listed(config, base_folder, language)
    place = _fill(config.path, language, config)
    path = base_folder / _checked(place)
    if config.format != "hub" and _exists(path):
        return _local(config, path, language)
    if config.format != "hub" and is_pattern(place):
        files = [_file(config, *found) for found in _matches(path, place)]
        return Source(place_label(path), _one_format(files, place_label(path)), many=True)
    if config.format == "hub" or (config.format == "auto" and _looks_like_hub(place)):
        name = _fill(config.name, language, config)
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


def expand_home(text: str) -> Path:
    """Return `text` as a path; ``~`` is the home folder where the user exists."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


# --------------------------------------------------------------------------- local files
def _fill(text: str, language: str | None, config: CorpusConfig) -> str:
    if PLACEHOLDER not in text:
        return text
    if language is None:
        raise DataError(
            f"language needed: {text} has {PLACEHOLDER} - a pool is read for "
            "all languages at once; give one file or dataset that holds them",
            code="E15",
        )
    return text.replace(PLACEHOLDER, alpha2(language))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _looks_like_hub(place: str) -> bool:
    return (
        _HUB_ID.fullmatch(place) is not None
        and "/" in place
        and ".." not in place
        and not any(part in _SUFFIXES or part == ".gz" for part in Path(place).suffixes)
    )


def _not_found(place: str, path: Path) -> str:
    near: list[str] = []
    if _exists(path.parent) and path.parent.is_dir():
        names = [entry.name for entry in path.parent.iterdir()]
        near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "check the path (relative paths start "
    hint += "" if near else f"from {path.parent if path.is_absolute() else 'the config file'})"
    return f"file not found: {place[:200]} - {hint}"


def _local(config: CorpusConfig, path: Path, language: str | None) -> Source:
    if path.is_dir():
        return _folder(config, path, language)
    return Source(name=plain_name(path.name), files=(_file(config, path, path.name),))


# --------------------------------------------------------------------------- patterns, lists
def is_pattern(place: str) -> bool:
    """Tell whether `place` is meant to match several files."""
    return any(sign in place for sign in "*?[")


def place_label(path: Path) -> str:
    """Return what messages call a pattern: from the last folder without a wildcard on."""
    root = _root(path)
    return f"{root.name}/{path.relative_to(root)}"


def _root(pattern: Path) -> Path:
    """Return the deepest folder above a pattern that exists as it is written."""
    return next(folder for folder in pattern.parents if _exists(folder))


def _matches(pattern: Path, place: str) -> list[tuple[Path, str]]:
    """Return (path, label below the pattern's fixed folder) of every file that matches."""
    root = _root(pattern)
    found = sorted(path for path in root.glob(str(pattern.relative_to(root))) if path.is_file())
    if not found:
        raise DataError(
            f"no file matches: {place[:200]} - check the pattern (relative paths start from "
            f"the config file's folder; found the folder {show_name(root.name)})",
            code="E01",
        )
    return [(path, path.relative_to(root).as_posix()) for path in found]


def _listed(config: CorpusConfig, base_folder: Path, language: str | None) -> Source:
    """Take a list of files and patterns; a file is called by its folder's and its own name."""
    files: dict[str, DataFile] = {}
    for text in config.paths:
        place = _fill(text, language, config)
        path = base_folder / _checked(place)
        if not _exists(path) and is_pattern(place):
            matches = _matches(path, place)
            matches = [(found, f"{_root(path).name}/{label}") for found, label in matches]
        elif not _exists(path):
            raise DataError(_not_found(place, path), code="E01")
        elif path.is_dir():
            raise DataError(
                f"not a file: {show_name(path.name)} is a folder in a list of files - write "
                f"{show_name(path.name + '/*')}, or give the folder alone",
                code="E02",
            )
        else:
            matches = [(path, f"{path.resolve().parent.name}/{path.name}")]
        for found, label in matches:
            if label in files and not files[label].path.samefile(found):
                raise DataError(
                    f"two files are called {label}: rows are named after them - rename one, or "
                    "put both in one folder and give that",
                    code="E17",
                )
            files[label] = _file(config, found, label)
    name = f"{len(files)} files"
    return Source(name, _one_format(list(files.values()), name), many=True)


def _one_format(files: list[DataFile], name: str) -> tuple[DataFile, ...]:
    formats = sorted({file.format for file in files})
    if len(formats) > 1:
        raise DataError(
            f"mixed formats: {name} holds {' and '.join(formats)} files - give one of them",
            code="E22",
        )
    return tuple(files)


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


def plain_name(name: str) -> str:
    """Return a file's name without ``.gz``."""
    return name.removesuffix(".gz")


def _file(config: CorpusConfig, path: Path, label: str, origin: str = "") -> DataFile:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise DataError(f"not a regular file: {label} - give a file or a folder", code="E02")
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise DataError(
            f"cannot be read: {label} ({error.strerror}) - check its permissions", code="E02"
        ) from error
    if not head:
        raise DataError(f"file is empty: {label} - give a file with records", code="E03")
    format_ = _format(config, label, head)
    for magic, what in _ARCHIVES.items():
        if head.startswith(magic):
            raise DataError(f"not {format_}: {label} is {what} - unpack it", code=_CODES[format_])
    gzipped = head.startswith(GZIP_MAGIC)
    return DataFile(path, label, format_, gzipped, origin or plain_name(path.name))


def _format(config: CorpusConfig, label: str, head: bytes) -> FileFormat:
    if config.format in ("jsonl", "json", "csv", "parquet"):
        return config.format
    suffix = Path(plain_name(label)).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return "json"
    raise DataError(
        f"format unknown: {label} - name it .jsonl, .json, .csv or .parquet, or set `format`",
        code="E18",
    )


# --------------------------------------------------------------------------- folders
def _folder(config: CorpusConfig, path: Path, language: str | None) -> Source:
    """Take a folder: a saved dataset, a saved dataset dict, or data files of one format."""
    name = _fill(config.name, language, config) if config.name else ""
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
    files = [_file(config, file, str(file.relative_to(path)), path.name) for file in found]
    return Source(path.name, _one_format(files, path.name), split_done=split_done, many=True)


def _walk(path: Path) -> Iterator[Path]:
    for entry in path.rglob("*"):
        if entry.name in _METADATA or any(
            part.startswith((".", "_")) for part in entry.relative_to(path).parts
        ):
            continue
        if Path(plain_name(entry.name)).suffix.lower() in _SUFFIXES and entry.is_file():
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


def show_name(name: str) -> str:
    """Return a file name for a message."""
    return ascii(name[:80])

"""What a corpus is: a fingerprint of its content and of everything that changes how it is read."""

from __future__ import annotations

import hashlib
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

from compass_core.config import CorpusConfig
from compass_core.reading.files import DataFile
from compass_core.reading.lines import open_data
from compass_core.reading.sources import PLACEHOLDER, find_source, matching_files
from compass_core.storage import canonical_json

KnownContents = MutableMapping[str, str]
"""SHA-256 by what the file system says of a file: device, inode, size and both times."""

_TEXT_FORMATS: Final = frozenset({"jsonl", "json", "csv"})
_BLOCK: Final = 2**20
_SETTLED_NS: Final = 2 * 10**9
"""A file that changed less than this ago may change again without new times."""


def corpus_fingerprint(
    config: CorpusConfig, base_folder: Path, known: KnownContents | None = None
) -> str:
    """Return the identity of a corpus: its content and everything that changes how it is read.

    Text files are hashed unpacked and with LF line ends, so that packing or converting them changes
    nothing. A hub dataset is identified by id, revision, configuration and split.

    Args:
        config: The corpus.
        base_folder: Folder that relative paths start from.
        known: Contents hashed before; files that are as they were are not read again, and what is
            hashed is added.

    Raises:
        DataError: the corpus cannot be found.
    """
    content: list[list[Any]]
    if PLACEHOLDER in config.place:
        files = tuple(matching_files(config, base_folder))
        if not files:
            find_source(config, base_folder, "eng_Latn")
    else:
        source = find_source(config.model_copy(update={"name": ""}), base_folder)
        files = source.files
        if source.hub is not None:
            content = [[source.hub.id, config.revision, config.name, config.split]]
            return _sha256([config.key_values(), content])
    content = [
        [file.label.removesuffix(".gz"), file.origin, _known_content(file, known)] for file in files
    ]
    return _sha256([config.key_values(), content])


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _known_content(file: DataFile, known: KnownContents | None) -> str:
    if known is None:
        return _content(file)
    status = file.path.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    kind = "text" if file.format in _TEXT_FORMATS else "bytes"
    place = (status.st_dev, status.st_ino, status.st_size, *times)
    key = f"{kind}-{'-'.join(map(str, place))}"
    if key not in known:
        content = _content(file)
        if time.time_ns() - max(times) < _SETTLED_NS:
            return content
        known[key] = content
    return known[key]


def _content(file: DataFile) -> str:
    """Return the SHA-256 of a file's content, unpacked and with LF line ends for text formats."""
    digest = hashlib.sha256()
    text = file.format in _TEXT_FORMATS
    with open_data(file) as stream:
        held = b""
        while block := stream.read(_BLOCK):
            block = held + block
            held = b"\r" if text and block.endswith(b"\r") else b""
            block = block[: len(block) - len(held)]
            digest.update(block.replace(b"\r\n", b"\n") if text else block)
        digest.update(held)
    return digest.hexdigest()

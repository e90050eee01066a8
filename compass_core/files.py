"""Files that last: written atomically, flushed, hashed, and locked by the kernel.

Every file that outlives a process is written through these helpers, or through the artefact store,
which is made of them: kill -9 or a full disk leaves the old content or the new, never half.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from compass_core.errors import ResourceError, StoreError

ROW_GROUP_ROWS = 16_384
"""Rows per group of a Parquet file: what a reader holds at a time."""
_BLOCK = 1 << 20


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces, so equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(*parts: Any) -> str:
    """Return a 32-hex identity of `parts` (plain JSON values only).

    Examples:
        >>> fingerprint("embed", 1, {"a": 1, "b": 2}) == fingerprint("embed", 1, {"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:32]


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of one file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_tree(root: Path) -> str:
    """Return one hex SHA-256 over the relative names and contents of all files under `root`."""
    files = {
        str(path.relative_to(root)): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
    return hashlib.sha256(canonical_json(files).encode()).hexdigest()


def fsync_path(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: temporary file beside it, fsync, rename, fsync folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    fsync_path(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: Path, table: pa.Table) -> None:
    """Write `table` as zstd Parquet into a draft folder (the draft's commit makes it durable)."""
    write_tables(path, [table], table.schema)


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write `tables` one after the other, a row group each, like `write_table`; return the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            rows += table.num_rows
    return rows


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, optionally only `columns`."""
    file = pq.ParquetFile(path)
    # Waking other threads for a few rows takes longer than reading them.
    return file.read(columns=columns, use_threads=file.metadata.num_rows > ROW_GROUP_ROWS)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write `array` as ``.npy`` into a draft folder."""
    np.save(path, array, allow_pickle=False)


def read_array(path: Path, *, mmap: bool = False) -> NDArray[Any]:
    """Read a ``.npy`` file, memory-mapped read-only if `mmap`."""
    array: NDArray[Any] = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    return array


@contextlib.contextmanager
def file_lock(path: Path, *, timeout_seconds: float = 60.0) -> Iterator[None]:
    """Hold a kernel lock on `path`; it vanishes with the process, so nothing is ever stale.

    Raises:
        ResourceError: the lock was not free within `timeout_seconds`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + timeout_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ResourceError(
                        f"{path} is locked by another process for more than "
                        f"{timeout_seconds:.0f} s. Wait for it or stop it, then run again.",
                        code="E63",
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def is_full(error: OSError) -> bool:
    """Tell a full disk or quota; numpy reports one in words alone, without an error number."""
    if error.errno is None:
        return any(words in str(error) for words in ("free space", "No space", "requested and"))
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_error(error: OSError, path: Path) -> Exception:
    """Turn a full or read-only disk into advice; leave every other system error as it is."""
    if is_full(error):
        free = shutil.disk_usage(path.parent if path.parent.exists() else Path("/")).free
        return ResourceError(
            f"No space left on the device of {path} ({free / 2**20:.0f} MiB free). Free some space "
            "(`compass clean` helps) and run the same command again; finished work is kept.",
            code="E64",
        )
    if error.errno in (errno.EROFS, errno.EACCES):
        return StoreError(f"Cannot write {path}: {error.strerror}.", code="E50")
    return error

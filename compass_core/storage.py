"""The artefact store: finished work in folders named by what made it.

    <root>/<kind>/<fingerprint>/…files…  +  MANIFEST.json   (written last)

A folder is built under ``<root>/tmp``, every file is fsynced and hashed, the manifest is written,
and one rename publishes it. So a valid manifest means completion, whoever asks, and kill -9 at any
point loses nothing that was finished. The store is the truth; DuckDB, Prefect and MLflow hold views
of it that can be rebuilt. This module is the only one that writes files that last.
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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from compass_core.errors import StoreError
from compass_core.records import ArtifactRef

STORE_VERSION = 1
MANIFEST_NAME = "MANIFEST.json"
_VERSION_FILE = "STORE.json"
ROW_GROUP_ROWS = 16_384
"""Rows per group of a Parquet file: what a reader holds at a time."""
_BLOCK = 1 << 20
_STALE_DRAFT_SECONDS = 6 * 3600
_LIFE_LINE = ".alive"


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
        raise _disk_error(error, path) from error
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
    return pq.ParquetFile(path).read(columns=columns)


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
        StoreError: the lock was not free within `timeout_seconds`.
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
                    raise StoreError(
                        f"{path} is locked by another process for more than "
                        f"{timeout_seconds:.0f} s. Wait for it or stop it, then run again.",
                        code="E63",
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


@dataclass
class Draft:
    """An artefact being built; `folder` becomes visible only when the block ends without error.

    Attributes:
        folder: Where to write files.
        provenance: JSON values kept in the manifest (config, input references, versions).
        rows: Rows of the main table.
        spent: Folders that go once the artefact is published, for instance its checkpoints.
    """

    folder: Path
    provenance: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    spent: list[Path] = field(default_factory=list)


class ArtifactStore:
    """Artefacts under one root folder (a local disk or a shared POSIX folder)."""

    def __init__(self, root: Path) -> None:
        """Open or create the store at `root`.

        Raises:
            StoreError: the folder belongs to another store version or cannot be written.
        """
        self.root = root.resolve()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            version_file = self.root / _VERSION_FILE
            if not version_file.exists():
                write_json(version_file, {"store_version": STORE_VERSION})
            found = read_json(version_file).get("store_version")
        except OSError as error:
            raise StoreError(
                f"Cannot use the store {self.root}: {error.strerror or error}. "
                "Point COMPASS_HOME to a folder you own.",
                code="E50",
            ) from error
        except (ValueError, AttributeError) as error:
            raise StoreError(f"{version_file} is not readable: {error}. Restore it.") from error
        if found != STORE_VERSION:
            raise StoreError(
                f"{self.root} is a store of version {found}, this COMPASS reads version "
                f"{STORE_VERSION}. Use the matching release or another COMPASS_HOME."
            )

    def find(self, kind: str, key: str) -> ArtifactRef | None:
        """Return the finished artefact, or None when it is missing or its files do not add up."""
        folder = self.root / kind / key
        try:
            manifest = read_json(folder / MANIFEST_NAME)
            files = manifest["files"]
            whole = all((folder / n).stat().st_size == meta["bytes"] for n, meta in files.items())
            named = (manifest["kind"], manifest["fingerprint"]) == (kind, key)
            if not whole or not named or manifest["sha256"] != _content_sha256(files):
                return None
            return _ref(manifest, self.root, folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def folder(self, ref: ArtifactRef) -> Path:
        """Return the folder of `ref`.

        Raises:
            StoreError: the artefact is gone or the content is not the one referred to.
        """
        found = self.find(ref.kind, Path(ref.path).name)
        if found is None or found.sha256 != ref.sha256:
            raise StoreError(
                f"The artefact {ref.path} is missing or damaged. Run the same command again: "
                "only this stage will be recomputed."
            )
        return self.root / ref.path

    def manifest(self, ref: ArtifactRef) -> dict[str, Any]:
        """Return the manifest of `ref` (files, rows, provenance)."""
        manifest: dict[str, Any] = read_json(self.folder(ref) / MANIFEST_NAME)
        return manifest

    def verify(self, ref: ArtifactRef) -> None:
        """Re-hash every file of `ref`.

        Raises:
            StoreError: a file differs from what was published.
        """
        folder = self.folder(ref)
        for name, meta in self.manifest(ref)["files"].items():
            if sha256_file(folder / name) != meta["sha256"]:
                raise StoreError(
                    f"{ref.path}/{name} changed after it was written (sha256 differs). "
                    "Delete the folder and run the same command again.",
                    code="E29",
                )

    def set_aside(self, ref: ArtifactRef) -> None:
        """Take a damaged artefact out of sight; `sweep` removes it later."""
        with file_lock(self.root / "locks" / "publish.lock"), contextlib.suppress(OSError):
            (self.root / "tmp").mkdir(exist_ok=True)
            (self.root / ref.path).rename(self.root / "tmp" / f"damaged-{uuid.uuid4().hex}")

    @contextlib.contextmanager
    def build(self, kind: str, key: str, provenance: Mapping[str, Any]) -> Iterator[Draft]:
        """Build the artefact `kind`/`key`; it is published when the block ends without error.

        Raises:
            StoreError: the disk is full or not writable; what was finished before is untouched.
        """
        folder = self.root / "tmp" / f"{kind}-{key[:12]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        draft = Draft(folder=folder, provenance=dict(provenance))
        try:
            # The lock says "alive" to `sweep`, however long the work takes.
            with file_lock(_life_line(folder)):
                folder.mkdir(parents=True)
                yield draft
                self._publish(draft, kind, key)
            for spent in draft.spent:
                shutil.rmtree(spent, ignore_errors=True)
        except OSError as error:
            raise _disk_error(error, folder) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _life_line(folder).unlink(missing_ok=True)

    def put(self, kind: str, key: str, draft: Draft) -> ArtifactRef:
        """Return the reference of what `build` has just published."""
        ref = self.find(kind, key)
        if ref is None:
            raise StoreError(f"{kind}/{key} was not published from {draft.folder}.")
        return ref

    def _publish(self, draft: Draft, kind: str, key: str) -> None:
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(draft.folder.rglob("*")):
            fsync_path(path)
            if path.is_dir():
                continue
            name = str(path.relative_to(draft.folder))
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        manifest = {
            "store_version": STORE_VERSION,
            "kind": kind,
            "fingerprint": key,
            "sha256": _content_sha256(files),
            "rows": draft.rows,
            "files": files,
            "provenance": draft.provenance,
        }
        write_json(draft.folder / MANIFEST_NAME, manifest)
        final = self.root / kind / key
        final.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(self.root / "locks" / "publish.lock"):
            if self.find(kind, key) is not None:
                return
            if final.exists():
                final.rename(self.root / "tmp" / f"damaged-{uuid.uuid4().hex}")
            draft.folder.rename(final)
        fsync_path(final.parent)

    def refs(self, kind: str) -> list[ArtifactRef]:
        """Return every finished artefact of `kind`, by name."""
        folder = self.root / kind
        if not folder.is_dir():
            return []
        found = (self.find(kind, path.name) for path in sorted(folder.iterdir()))
        return [ref for ref in found if ref is not None]

    def sweep(self) -> int:
        """Remove drafts that a killed process left behind; return how many."""
        removed = 0
        for path in sorted((self.root / "tmp").glob("*")):
            with contextlib.suppress(FileNotFoundError):
                old = time.time() - path.stat().st_mtime > _STALE_DRAFT_SECONDS
                if not old or _is_held(path) or _is_held(_life_line(path)):
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
                removed += path.suffix != _LIFE_LINE
        return removed


def _life_line(draft: Path) -> Path:
    """Return the file that is locked for as long as the process building `draft` lives."""
    return draft.with_name(f"{draft.name}{_LIFE_LINE}")


def _is_held(lock: Path) -> bool:
    if lock.suffix != _LIFE_LINE:
        return False
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _content_sha256(files: Mapping[str, Mapping[str, Any]]) -> str:
    contents = {name: meta["sha256"] for name, meta in files.items()}
    return hashlib.sha256(canonical_json(contents).encode()).hexdigest()


def _ref(manifest: Mapping[str, Any], root: Path, folder: Path) -> ArtifactRef:
    return ArtifactRef(
        kind=manifest["kind"],
        fingerprint=manifest["fingerprint"],
        path=str(folder.relative_to(root)),
        sha256=manifest["sha256"],
        bytes=sum(meta["bytes"] for meta in manifest["files"].values()),
        rows=manifest["rows"],
    )


def _is_full(error: OSError) -> bool:
    """Tell a full disk; numpy reports one in words alone, without an error number."""
    if error.errno is None:
        return any(words in str(error) for words in ("free space", "No space", "requested and"))
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _disk_error(error: OSError, path: Path) -> Exception:
    """Turn a full or read-only disk into advice; leave every other system error as it is."""
    if _is_full(error):
        free = shutil.disk_usage(path.parent if path.parent.exists() else Path("/")).free
        return StoreError(
            f"No space left on the device of {path} ({free / 2**20:.0f} MiB free). Free some space "
            "(`compass clean` helps) and run the same command again; finished work is kept.",
            code="E64",
        )
    if error.errno in (errno.EROFS, errno.EACCES):
        return StoreError(f"Cannot write {path}: {error.strerror}.", code="E50")
    return error

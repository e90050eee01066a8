"""The artefact store: finished work in folders named by what made it.

    <root>/<kind>/<fingerprint>/…files…  +  MANIFEST.json   (written last)

A folder is built under ``<root>/tmp``, every file is fsynced and hashed, the manifest is written,
and one rename publishes it. So a valid manifest means completion, whoever asks, and kill -9 at any
point loses nothing that was finished. The store is the truth; DuckDB, Prefect and MLflow hold views
of it that can be rebuilt. `compass_core.remote_store` shares a store through object storage.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from compass_core.errors import StoreError
from compass_core.files import (
    ROW_GROUP_ROWS,
    canonical_json,
    disk_error,
    file_lock,
    fingerprint,
    fsync_path,
    read_array,
    read_json,
    read_table,
    sha256_file,
    sha256_tree,
    write_array,
    write_bytes,
    write_json,
    write_table,
    write_tables,
    write_text,
)
from compass_core.records import ArtifactRef

STORE_VERSION = 1
MANIFEST_NAME = "MANIFEST.json"
VERSION_FILE = "STORE.json"
NOT_ARTEFACTS = frozenset({"tmp", "locks", "keys", "checkpoints", "partial", "seen"})
"""Folders below the root that hold no artefacts."""
ATTEMPT_AGE = timedelta(hours=24)
"""An upload without a manifest that nobody has added to for this long belongs to nobody."""
_STALE_DRAFT_SECONDS = 6 * 3600
_LIFE_LINE = ".alive"


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
            version_file = self.root / VERSION_FILE
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
        manifest = self.local_manifest(kind, key)
        return None if manifest is None else ref_of(manifest)

    def local_manifest(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return the manifest of an artefact whose files lie whole under the root, or None."""
        folder = self.root / kind / key
        try:
            manifest: dict[str, Any] = read_json(folder / MANIFEST_NAME)
            sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return manifest if adds_up(manifest, kind, key, sizes) else None

    def check(self) -> None:
        """Fail now if finished work could not be kept later; a folder was tried when opened.

        Raises:
            StoreError: the store refuses to be written.
        """

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
        folder = self._draft_folder(kind, key)
        draft = Draft(folder=folder, provenance=dict(provenance))
        try:
            with self._drafting(folder):
                yield draft
                self._publish(draft, kind, key)
        except OSError as error:
            raise disk_error(error, folder) from error

    def _draft_folder(self, kind: str, key: str) -> Path:
        name = f"{kind}-{key[:12]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        return self.root / "tmp" / name

    @contextlib.contextmanager
    def _drafting(self, folder: Path) -> Iterator[None]:
        """Let `folder` exist for the block; its lock says "alive" to `sweep`, however long."""
        try:
            with file_lock(_life_line(folder)):
                folder.mkdir(parents=True)
                yield
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
        write_json(draft.folder / MANIFEST_NAME, _seal(draft, kind, key))
        self._place(draft.folder, kind, key)
        for spent in draft.spent:
            shutil.rmtree(spent, ignore_errors=True)

    def _place(self, folder: Path, kind: str, key: str) -> None:
        """Rename a finished folder to its name, unless a whole one is there already."""
        final = self.root / kind / key
        final.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(self.root / "locks" / "publish.lock"):
            if self.local_manifest(kind, key) is not None:
                return
            if final.exists():
                final.rename(self.root / "tmp" / f"damaged-{uuid.uuid4().hex}")
            folder.rename(final)
        fsync_path(final.parent)

    def remove(self, kind: str, key: str) -> None:
        """Delete an artefact for good, its damaged or unfinished remains too."""
        shutil.rmtree(self.root / kind / key, ignore_errors=True)

    def drop_copy(self, kind: str, key: str) -> None:
        """Delete this home's copy of an artefact; of a folder there is no other."""
        self.remove(kind, key)

    def mirror(self, kinds: Collection[str]) -> None:
        """Bring every artefact of `kinds` here, whichever machine made it."""

    def sweep_attempts(self, older_than: timedelta = ATTEMPT_AGE) -> int:
        """Delete what killed machines left where machines share; return how many attempts."""
        return 0

    def kinds(self) -> list[str]:
        """Return the kinds of which there are artefacts, by name."""
        folders = (path.name for path in self.root.iterdir() if path.is_dir())
        return sorted(set(folders) - NOT_ARTEFACTS)

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
        drafts = sorted((self.root / "tmp").glob("*"))
        now = _time_of(self.root / "tmp") if drafts else 0.0
        for path in drafts:
            with contextlib.suppress(FileNotFoundError):
                old = now - path.stat().st_mtime > _STALE_DRAFT_SECONDS
                if not old or _is_held(path) or _is_held(_life_line(path)):
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
                removed += path.suffix != _LIFE_LINE
        return removed


def _time_of(folder: Path) -> float:
    """Return the time as the file system of `folder` has it; a host's own clock may be days off."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="clock-") as probe:
        return Path(probe.name).stat().st_mtime


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


def _seal(draft: Draft, kind: str, key: str) -> dict[str, Any]:
    """Flush every file of a draft to the disk; return the manifest that names them."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(draft.folder.rglob("*")):
        fsync_path(path)
        if path.is_dir():
            continue
        name = str(path.relative_to(draft.folder))
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    return {
        "store_version": STORE_VERSION,
        "kind": kind,
        "fingerprint": key,
        "sha256": _content_sha256(files),
        "rows": draft.rows,
        "files": files,
        "provenance": draft.provenance,
    }


def adds_up(manifest: Any, kind: str, key: str, sizes: Mapping[str, int]) -> bool:
    """Return whether files of these sizes (bytes, by name) are the artefact `kind`/`key`."""
    try:
        files = manifest["files"]
        named = (manifest["kind"], manifest["fingerprint"]) == (kind, key)
        whole = all(sizes.get(name) == meta["bytes"] for name, meta in files.items())
        counted = isinstance(manifest["rows"], int)
        return named and whole and counted and manifest["sha256"] == _content_sha256(files)
    except (KeyError, TypeError, AttributeError):
        return False


def _content_sha256(files: Mapping[str, Mapping[str, Any]]) -> str:
    contents = {name: meta["sha256"] for name, meta in files.items()}
    return hashlib.sha256(canonical_json(contents).encode()).hexdigest()


def ref_of(manifest: Mapping[str, Any]) -> ArtifactRef:
    """Return the reference to the artefact that `manifest` describes."""
    return ArtifactRef(
        kind=manifest["kind"],
        fingerprint=manifest["fingerprint"],
        path=f"{manifest['kind']}/{manifest['fingerprint']}",
        sha256=manifest["sha256"],
        bytes=sum(meta["bytes"] for meta in manifest["files"].values()),
        rows=manifest["rows"],
    )


__all__ = [
    "ATTEMPT_AGE",
    "MANIFEST_NAME",
    "NOT_ARTEFACTS",
    "ROW_GROUP_ROWS",
    "STORE_VERSION",
    "VERSION_FILE",
    "ArtifactStore",
    "Draft",
    "adds_up",
    "canonical_json",
    "file_lock",
    "fingerprint",
    "fsync_path",
    "read_array",
    "read_json",
    "read_table",
    "ref_of",
    "sha256_file",
    "sha256_tree",
    "write_array",
    "write_bytes",
    "write_json",
    "write_table",
    "write_tables",
    "write_text",
]

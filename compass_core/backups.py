"""Back-ups of a folder: contents by their hash, and one list of files per back-up.

    <folder>/BACKUP.json                  what this folder is, and the version of its layout
    <folder>/objects/<2 hex>/<sha256>     a content, once, however many back-ups hold it
    <folder>/snapshots/<time>.json        one back-up: every file with its hash; written last

So a back-up that was interrupted is no back-up, a second one into the same folder copies what is
new, and nothing that is there is ever written over.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from compass_core.errors import DataError, StoreError
from compass_core.files import disk_error, fsync_path, read_json, sha256_file, write_json

LAYOUT_VERSION = 1
_HEAD = "BACKUP.json"
_HASH = re.compile(r"[0-9a-f]{64}")
_PRIVATE = 0o700
_PRIVATE_FILE = 0o600


@dataclass(frozen=True, slots=True)
class BackedUpFile:
    """One file of a back-up: its content's SHA-256 and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One back-up.

    Attributes:
        name: Its time, sortable.
        created: ISO 8601.
        home: Folder that was backed up.
        files: By path relative to that folder.
        facts: Versions and the like.
        left_out: What is not in it, as sentences.
    """

    name: str
    created: str
    home: str
    files: Mapping[str, BackedUpFile]
    facts: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file.bytes for file in self.files.values())


class BackupFolder:
    """A folder of back-ups."""

    def __init__(self, folder: Path) -> None:
        """Take a folder; nothing is made yet."""
        self.folder = folder

    def create(self) -> None:
        """Make the folder, or go on with the one that is there.

        Raises:
            StoreError: it holds something else, or back-ups of a later COMPASS.
        """
        if self.folder.exists() and any(self.folder.iterdir()):
            self.require()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(_PRIVATE)
        write_json(self.folder / _HEAD, {"layout_version": LAYOUT_VERSION})

    def require(self) -> None:
        """Check that this is a folder of back-ups that can be read.

        Raises:
            StoreError: it is none, or one of a later COMPASS.
        """
        try:
            found = read_json(self.folder / _HEAD)["layout_version"]
        except (OSError, ValueError, KeyError, TypeError):
            raise StoreError(
                f"{self.folder} holds something, but no back-ups of COMPASS. Name an empty or a "
                "new folder to back up to, or the folder of an earlier back-up to restore from."
            ) from None
        if found != LAYOUT_VERSION:
            raise StoreError(
                f"{self.folder} has back-ups of layout {found}, this COMPASS knows "
                f"{LAYOUT_VERSION}. Use the release that wrote them."
            )

    def add(self, path: Path, *, sha256: str = "") -> BackedUpFile:
        """Keep the content of `path`.

        Args:
            path: The file.
            sha256: Its hash, where it is known; a copy that is already there is then not read.

        Raises:
            FileNotFoundError: it is gone.
            DataError: its content is not the one that `sha256` names.
        """
        if sha256 and self._object(sha256).exists():
            return BackedUpFile(sha256, self._object(sha256).stat().st_size)
        incoming = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            shutil.copyfile(path, incoming)
            found = sha256_file(incoming)
            if sha256 and found != sha256:
                raise DataError(f"{path} is damaged: its sha256 is {found[:12]}…", code="E29")
            return self._publish(incoming, found)
        except OSError as error:
            raise disk_error(error, incoming) from error
        finally:
            incoming.unlink(missing_ok=True)

    def _publish(self, incoming: Path, sha256: str) -> BackedUpFile:
        target = self._object(sha256)
        size = incoming.stat().st_size
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            incoming.chmod(_PRIVATE_FILE)
            fsync_path(incoming)
            incoming.replace(target)
        return BackedUpFile(sha256, size)

    def finish(self, snapshot: Snapshot) -> None:
        """Write the list of files; from here on the back-up counts.

        Raises:
            StoreError: there is one of this name.
        """
        path = self.folder / "snapshots" / f"{snapshot.name}.json"
        if path.exists():
            raise StoreError(f"{path} exists; nothing is written over. Try again in a second.")
        for parent in {self._object(file.sha256).parent for file in snapshot.files.values()}:
            fsync_path(parent)
        write_json(path, asdict(snapshot))

    def snapshots(self) -> list[Snapshot]:
        """Return all back-ups, oldest first.

        Raises:
            StoreError: the folder is none of back-ups, or a list cannot be read.
        """
        self.require()
        found = []
        for path in sorted((self.folder / "snapshots").glob("*.json")):
            try:
                values = read_json(path)
                files = {name: BackedUpFile(**meta) for name, meta in values["files"].items()}
                _require_inside(files)
                left_out = tuple(values["left_out"])
                found.append(Snapshot(**values | {"files": files, "left_out": left_out}))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(f"The back-up {path} cannot be read: {error}.") from error
        return found

    def newest(self) -> Snapshot:
        """Return the newest back-up.

        Raises:
            StoreError: there is none.
        """
        found = self.snapshots()
        if not found:
            raise StoreError(
                f"{self.folder} holds no finished back-up. Run `compass backup {self.folder}`."
            )
        return found[-1]

    def problems(self, snapshot: Snapshot) -> Iterator[str]:
        """Yield every file of a back-up whose content is gone or damaged; all are hashed."""
        checked: dict[str, str] = {}
        for name, file in snapshot.files.items():
            if file.sha256 not in checked:
                path = self._object(file.sha256)
                if not path.exists():
                    checked[file.sha256] = "missing"
                else:
                    checked[file.sha256] = "" if sha256_file(path) == file.sha256 else "damaged"
            if checked[file.sha256]:
                yield f"{name} is {checked[file.sha256]}"

    def extract(self, snapshot: Snapshot, names: Iterable[str], target: Path) -> None:
        """Copy files of a back-up under `target`, each hashed on its way.

        Raises:
            StoreError: one is missing or damaged.
        """
        for name in names:
            file = snapshot.files[name]
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(self._object(file.sha256), path)
            except FileNotFoundError:
                raise StoreError(f"{name} is missing from the back-up.", code="E29") from None
            if sha256_file(path) != file.sha256:
                raise StoreError(f"{name} is damaged in the back-up.", code="E29")
            path.chmod(_PRIVATE_FILE)
            fsync_path(path)

    def _object(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256[:2] / sha256


def snapshot_name(now: datetime) -> str:
    """Return the name of a back-up made at `now`."""
    return f"{now:%Y%m%dT%H%M%S%fZ}"


def _require_inside(files: Mapping[str, BackedUpFile]) -> None:
    """Refuse names that lead out of the folder: a list may come from anywhere."""
    for name, file in files.items():
        parts = Path(name).parts
        if (
            Path(name).is_absolute()
            or ".." in parts
            or not parts
            or not _HASH.fullmatch(file.sha256)
        ):
            raise ValueError(f"{name!r} is no file of a COMPASS home")

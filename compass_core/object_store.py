"""Objects under one address that fsspec knows, such as ``s3://bucket/prefix``.

Object storage has no rename and no lock. What it has, and what is used here: an object appears
whole or not at all, reads see the last write, and an object can be created on condition that its
name is free. Credentials and endpoint come from where the storage's own library looks for them (for
S3 the AWS_* variables and files); they are never part of an address.
"""

from __future__ import annotations

import contextlib
import errno
import posixpath
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from compass_core.errors import CompassError, StoreError, TransientError
from compass_core.files import is_full

PARALLEL_FILES = 4
_PART_BYTES = 8 << 20
_PARALLEL_PARTS = 4
"""Memory of a transfer: files × parts × bytes of a part = 128 MiB, however large the files are."""
_DENIED = ("NoCredentials", "PartialCredentials", "TokenRetrieval", "CredentialRetrieval")
_S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"mode": "standard", "max_attempts": 3},
    }
}


def is_url(address: str) -> bool:
    """Tell the address of object storage from that of a folder (``file://`` is a folder)."""
    return "://" in address and not address.startswith("file://")


class ObjectStore:
    """Reading, creating and listing objects; every failure is one of ours.

    Names are relative to the address, with ``/`` between their parts.
    """

    def __init__(self, url: str) -> None:
        """Take the storage at `url`; nothing is asked of it yet.

        Raises:
            StoreError: the address holds credentials, or fsspec does not know it.
        """
        self.url = url.rstrip("/")
        if "@" in self.url.split("://", 1)[1].split("/", 1)[0]:
            raise StoreError(
                "COMPASS_STORE must not hold a user or a password: addresses are shown in reports. "
                "Set the storage's own variables instead, such as AWS_ACCESS_KEY_ID.",
                code="E54",
            )
        self._protocol = self.url.split("://", 1)[0]
        self._root = posixpath.join(*self.url.split("://", 1)[1:])

    @property
    def _is_s3(self) -> bool:
        return self._protocol in ("s3", "s3a")

    @cached_property
    def _fs(self) -> Any:
        import fsspec

        options = _S3_OPTIONS if self._is_s3 else {}
        try:
            # A listing that was kept would hide what other machines have written since.
            return fsspec.filesystem(self._protocol, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"COMPASS_STORE={self.url} cannot be opened: {error}. Install what it needs (for "
                'S3: pip install "compass-adapt[s3]"), or name a folder.',
                code="E54",
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def read(self, name: str) -> bytes | None:
        """Return one small object, or None if there is none.

        Raises:
            StoreError: access is denied.
            TransientError: the storage cannot be reached.
        """
        with self._translated(f"read {name}"):
            try:
                # One stream: several would need to ask for the size of the object first.
                one = {"max_concurrency": 1} if self._is_s3 else {}
                data: bytes = self._fs.cat_file(self._path(name), **one)
            except FileNotFoundError:
                return None
            return data

    def create(self, name: str, data: bytes) -> bool:
        """Create an object if its name is free; return whether it was. Nothing is ever replaced.

        Raises:
            StoreError: access is denied, the bucket is missing, or names cannot be reserved.
            TransientError: the storage cannot be reached.
        """
        with self._translated(f"create {name}"):
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileNotFoundError as error:
                bucket = self._root.split("/", 1)[0]
                raise StoreError(
                    f"COMPASS_STORE={self.url}: there is no bucket {bucket}. Create it, or correct "
                    "the address.",
                    code="E54",
                ) from error
            except NotImplementedError as error:
                raise self._unconditional() from error
            except OSError as error:
                if error.errno == errno.ENOSYS:
                    raise self._unconditional() from error
                if not _is_taken(error):
                    raise
                return False
            return True

    def check_create(self, name: str, data: bytes) -> None:
        """Make sure that the existing object `name` is not replaced, and that writing is allowed.

        Args:
            name: An object that exists.
            data: Its content, so that nothing changes where it is replaced after all.

        Raises:
            StoreError: writing is denied, or the storage replaces what it should keep.
        """
        if self.create(name, data):
            raise self._unconditional()

    def _unconditional(self) -> StoreError:
        return StoreError(
            f"COMPASS_STORE={self.url}: this storage does not create objects on condition that "
            "their name is free (If-None-Match), so two machines could publish over each other. "
            "Use a storage that does (Amazon S3, MinIO since 2024), or a shared folder.",
            code="E54",
        )

    def upload(self, folder: Path, names: Iterable[str], prefix: str) -> None:
        """Copy files of `folder` to below `prefix`, several at once, each as a stream.

        Raises:
            StoreError: access is denied.
            TransientError: the storage cannot be reached.
        """

        def send(name: str) -> None:
            self._fs.put_file(str(folder / name), self._path(f"{prefix}/{name}"), **self._parts())

        with self._translated(f"upload to {prefix}"):
            _each(send, names)

    def download(self, prefix: str, names: Iterable[str], folder: Path) -> None:
        """Copy objects below `prefix` into `folder`, several at once, each as a stream.

        Raises:
            StoreError: access is denied, the disk is full, or an object is missing.
            TransientError: the storage cannot be reached.
        """

        def fetch(name: str) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(self._path(f"{prefix}/{name}"), str(folder / name), **self._parts())

        with self._translated(f"download {prefix}"):
            _each(fetch, names)

    def _parts(self) -> dict[str, int]:
        if not self._is_s3:
            return {}
        return {"chunksize": _PART_BYTES, "max_concurrency": _PARALLEL_PARTS}

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return size in bytes by name of everything below `prefix` (names relative to it)."""
        return {name: int(found["size"]) for name, found in self._below(prefix).items()}

    def written(self, prefix: str) -> dict[str, datetime]:
        """Return when, by the storage's clock, each object below `prefix` was written."""
        return {name: _when(found) for name, found in self._below(prefix).items()}

    def _below(self, prefix: str) -> dict[str, dict[str, Any]]:
        start = self._path(prefix)
        with self._translated(f"list {prefix or 'the store'}"):
            try:
                found: dict[str, dict[str, Any]] = self._fs.find(start, detail=True)
            except FileNotFoundError:
                return {}
        cut = len(self._fs._strip_protocol(start)) + 1
        return {path[cut:]: info for path, info in found.items() if info["type"] == "file"}

    def folders(self, prefix: str) -> list[str]:
        """Return the names directly below `prefix` that have something below them, sorted."""
        with self._translated(f"list {prefix or 'the store'}"):
            try:
                found = self._fs.ls(self._path(prefix), detail=True)
            except FileNotFoundError:
                return []
        return sorted(posixpath.basename(e["name"]) for e in found if e["type"] == "directory")

    def now(self) -> datetime:
        """Return the time on the storage's clock: clocks of machines differ."""
        name = f"tmp/clock-{uuid.uuid4().hex}"
        try:
            self.create(name, b"")
            return self.written("tmp")[name.removeprefix("tmp/")]
        finally:
            self.delete([name])

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; one that is gone already is fine.

        Raises:
            StoreError: access is denied.
            TransientError: the storage cannot be reached.
        """
        paths = [self._path(name) for name in names]
        with self._translated("delete objects"):
            if self._is_s3:
                if paths:
                    self._fs.rm(paths)
                return
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(path)

    def abort_uploads(self, older_than: timedelta, now: datetime) -> int:
        """Drop what killed processes left of files sent in parts; return how many files.

        Such parts are invisible, but the storage charges for them. Only S3 has them.
        """
        if not self._is_s3:
            return 0
        bucket, _, prefix = self._root.partition("/")
        aborted = 0
        with self._translated("list unfinished uploads"):
            found = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
            for upload in found.get("Uploads", []):
                if now - upload["Initiated"] > older_than:
                    names = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                    self._fs.call_s3("abort_multipart_upload", Bucket=bucket, **names)
                    aborted += 1
        return aborted

    @contextlib.contextmanager
    def _translated(self, action: str) -> Iterator[None]:
        """Turn what the storage raises into ours: what the user must change, and what may pass."""
        try:
            yield
        except CompassError:
            raise
        except OSError as error:
            if is_full(error) or error.errno in (errno.EROFS, errno.EACCES):
                raise  # our own disk; the caller says which folder
            raise self._failure(action, error) from error
        except Exception as error:
            raise self._failure(action, error) from error

    def _failure(self, action: str, error: Exception) -> CompassError:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        denied = isinstance(error, PermissionError) or type(error).__name__.startswith(_DENIED)
        if denied:
            return StoreError(
                f"COMPASS_STORE={self.url}: may not {action}: {said}. Check the credentials (for "
                "S3 the AWS_* variables), what they are allowed to, and this machine's clock.",
                code="E54",
            )
        if isinstance(error, FileNotFoundError):
            return StoreError(f"COMPASS_STORE={self.url}: cannot {action}: {said}.", code="E29")
        return TransientError(
            f"COMPASS_STORE={self.url}: cannot {action}: {said}. Check that the storage can be "
            "reached, and run the same command again; finished work is kept."
        )


def _each(work: Any, names: Iterable[str]) -> None:
    """Do `work` for every name, a few at a time; the first failure stops those not begun."""
    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        waiting = [pool.submit(work, name) for name in names]
        try:
            for future in waiting:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _is_taken(error: OSError) -> bool:
    """Tell that a name is taken, or is being taken by another right now (answers 412 and 409)."""
    said = str(error).lower()
    return isinstance(error, FileExistsError) or any(
        word in said for word in ("pre-condition", "precondition", "conflict")
    )


def _when(info: dict[str, Any]) -> datetime:
    """Return when an object was written, whatever its file system calls that."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        found = info.get(name)
        if isinstance(found, int | float):
            return datetime.fromtimestamp(found, UTC)
        if isinstance(found, datetime):
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        if isinstance(found, str):
            return datetime.fromisoformat(found)
    return datetime.now(UTC)

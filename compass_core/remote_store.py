"""The artefact store on object storage: one truth for many machines, a mirror on each.

    <url>/<kind>/<fingerprint>/<attempt>/…files…
    <url>/<kind>/<fingerprint>/MANIFEST.json       created last, names the attempt

Work is published under the mirror first, then uploaded to an attempt of its own; the manifest is
created on condition that there is none. So of several machines that make the same artefact exactly
one wins, and all of its files come from one attempt; the others drop theirs and take the winner's.
Without a manifest nothing is visible to anybody, and what a killed machine had finished is uploaded
when it is next asked for, not computed again.

A mirrored manifest holds its attempt. A local one without has not been shared yet, which is also
how a store that used to be a folder moves to object storage: artefact by artefact, when used.
``<root>/seen`` keeps manifests of what was found but never needed here, so that finding it again
asks nobody.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from compass_core.errors import StoreError, TransientError
from compass_core.files import disk_error, file_lock, fsync_path, read_json, sha256_file, write_json
from compass_core.object_store import ObjectStore
from compass_core.records import ArtifactRef
from compass_core.storage import (
    ATTEMPT_AGE,
    MANIFEST_NAME,
    NOT_ARTEFACTS,
    STORE_VERSION,
    VERSION_FILE,
    ArtifactStore,
    Draft,
    adds_up,
    ref_of,
)

_TRANSFER_TIMEOUT_SECONDS = 6 * 3600.0
_SEEN = "seen"
_IDENTITY = re.compile("[0-9a-f]{32}")
"""Fingerprints look like this; what does not is none of ours."""
_PARALLEL_LOOKS = 8
_CREATE_DELAYS = (0.0, 0.2, 1.0, 3.0)
_joined: set[tuple[str, Path]] = set()


class RemoteStore(ArtifactStore):
    """Artefacts at one address, mirrored under `root` as far as they were made or needed here."""

    def __init__(self, root: Path, url: str) -> None:
        """Open or create the store at `url` with its mirror at `root`.

        Raises:
            StoreError: access is denied, the bucket is missing, the store is of another version,
                or `root` mirrors another store.
            TransientError: the storage cannot be reached.
        """
        super().__init__(root)
        self.objects = ObjectStore(url)
        if (self.objects.url, self.root) not in _joined:
            self._join()
            _joined.add((self.objects.url, self.root))

    def _join(self) -> None:
        fresh = {"store_version": STORE_VERSION, "store_id": uuid.uuid4().hex}
        found = self.objects.read(VERSION_FILE)
        if found is None:
            self.objects.create(VERSION_FILE, _json(fresh))
            found = self.objects.read(VERSION_FILE)
        shared = _parsed(found)
        if shared.get("store_version") != STORE_VERSION:
            raise StoreError(
                f"{self.objects.url} is a store of version {shared.get('store_version')}, this "
                f"COMPASS reads version {STORE_VERSION}. Use the matching release or another "
                "COMPASS_STORE."
            )
        with file_lock(self.root / "locks" / "join.lock"):
            own = read_json(self.root / VERSION_FILE)
            before = own.get("mirror_of", shared["store_id"])
            if before != shared["store_id"]:
                raise StoreError(
                    f"{self.root} mirrors {own.get('mirror_url', 'another store')}, and "
                    f"COMPASS_STORE={self.objects.url} is a different one. Use another "
                    "COMPASS_HOME for it.",
                    code="E54",
                )
            wanted = own | {"mirror_of": shared["store_id"], "mirror_url": self.objects.url}
            if wanted != own:
                write_json(self.root / VERSION_FILE, wanted)

    def check(self) -> None:
        """Fail now if finished work could not be shared later; called before expensive work.

        Raises:
            StoreError: writing is denied, or the storage cannot reserve names.
            TransientError: the storage cannot be reached.
        """
        self.objects.check_create(VERSION_FILE, self.objects.read(VERSION_FILE) or b"")

    # -- finding

    def find(self, kind: str, key: str) -> ArtifactRef | None:
        """Return the artefact that serves all machines, or None.

        What is mirrored or was seen before costs no request; anything else two (manifest, sizes).

        Raises:
            StoreError: access is denied.
            TransientError: the storage cannot be reached.
        """
        manifest = self.local_manifest(kind, key)
        if manifest is None:
            manifest = self._seen(kind, key) or self._look(kind, key)
        elif "attempt" not in manifest:
            manifest = self._share(kind, key)
        return None if manifest is None else ref_of(manifest)

    def _seen(self, kind: str, key: str) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError):
            manifest: dict[str, Any] = read_json(self._seen_path(kind, key))
            if adds_up(manifest, kind, key, _stated_sizes(manifest)):
                return manifest
        return None

    def _seen_path(self, kind: str, key: str) -> Path:
        return self.root / _SEEN / kind / f"{key}.json"

    def _look(self, kind: str, key: str) -> dict[str, Any] | None:
        """Ask the storage; keep the answer."""
        manifest = self._remote_manifest(kind, key)
        if manifest is not None:
            write_json(self._seen_path(kind, key), manifest)
        return manifest

    def _remote_manifest(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return the manifest of an artefact whose objects are all there in their full size."""
        manifest = _parsed(self.objects.read(_manifest_name(kind, key)))
        attempt = manifest.get("attempt")
        if not isinstance(attempt, str) or not attempt.isalnum() or not _stays_inside(manifest):
            return None
        sizes = self.objects.sizes(f"{kind}/{key}/{attempt}")
        return manifest if adds_up(manifest, kind, key, sizes) else None

    def kinds(self) -> list[str]:
        """Return the kinds of which any machine has artefacts, by name."""
        return sorted((set(self.objects.folders("")) | set(super().kinds())) - NOT_ARTEFACTS)

    def refs(self, kind: str) -> list[ArtifactRef]:
        """Return every finished artefact of `kind` on any machine, by name."""
        names = set(self.objects.folders(kind))
        if (self.root / kind).is_dir():
            names |= {path.name for path in (self.root / kind).iterdir()}
        with ThreadPoolExecutor(_PARALLEL_LOOKS) as pool:
            found = list(pool.map(lambda name: self.find(kind, name), sorted(names)))
        return [ref for ref in found if ref is not None]

    def manifest(self, ref: ArtifactRef) -> dict[str, Any]:
        """Return the manifest of `ref`; its files are not downloaded for it."""
        seen = self._seen(ref.kind, ref.fingerprint)
        if seen is not None and seen["sha256"] == ref.sha256:
            return seen
        return super().manifest(ref)

    # -- fetching

    def folder(self, ref: ArtifactRef) -> Path:
        """Return the folder of `ref`, downloaded and verified first where it is not mirrored yet.

        Raises:
            StoreError: the artefact is gone, damaged, or not the one referred to.
            TransientError: the storage cannot be reached.
        """
        mirrored = self.local_manifest(ref.kind, ref.fingerprint)
        if mirrored is None or mirrored["sha256"] != ref.sha256:
            with self._transfer(ref.kind, ref.fingerprint):
                self._fetch(ref)
        return super().folder(ref)

    def mirror(self, kinds: Collection[str]) -> None:
        """Download every artefact of `kinds`, whichever machine made it.

        Raises:
            StoreError: the disk is full.
            TransientError: the storage cannot be reached.
        """
        for kind in kinds:
            for ref in self.refs(kind):
                self.folder(ref)

    def _fetch(self, ref: ArtifactRef) -> None:
        kind, key = ref.kind, ref.fingerprint
        here = self.local_manifest(kind, key)
        if here is not None and here["sha256"] == ref.sha256:
            return
        manifest = self._remote_manifest(kind, key)
        if manifest is None or manifest["sha256"] != ref.sha256:
            self._seen_path(kind, key).unlink(missing_ok=True)
            return
        if here is not None:  # made anew elsewhere, after this copy
            self.set_aside(ref)
        folder = self._draft_folder(kind, key)
        with self._drafting(folder):
            if not self._download(manifest, folder) and not self._download(manifest, folder):
                self._withdraw(manifest)
                raise StoreError(
                    f"{self.objects.url}/{ref.path} is damaged (sha256 differs) and was withdrawn. "
                    "Run the same command again: only this stage will be recomputed.",
                    code="E29",
                )
            write_json(folder / MANIFEST_NAME, manifest)
            self._place(folder, kind, key)
        self._seen_path(kind, key).unlink(missing_ok=True)

    def _download(self, manifest: Mapping[str, Any], folder: Path) -> bool:
        """Download every file; return whether each is what the manifest says."""
        prefix = f"{manifest['kind']}/{manifest['fingerprint']}/{manifest['attempt']}"
        try:
            self.objects.download(prefix, manifest["files"], folder)
        except OSError as error:
            raise disk_error(error, folder) from error
        for path in folder.rglob("*"):
            fsync_path(path)
        return all(
            sha256_file(folder / name) == meta["sha256"] for name, meta in manifest["files"].items()
        )

    def _transfer(self, kind: str, key: str) -> contextlib.AbstractContextManager[None]:
        """Let one process of this machine move an artefact; the others wait for it."""
        lock = self.root / "locks" / f"transfer-{kind}-{key}.lock"
        return file_lock(lock, timeout_seconds=_TRANSFER_TIMEOUT_SECONDS)

    # -- publishing

    def _publish(self, draft: Draft, kind: str, key: str) -> None:
        super()._publish(draft, kind, key)
        self._share(kind, key)

    def _share(self, kind: str, key: str) -> dict[str, Any] | None:
        """Upload what this machine made, or take what another was quicker to share."""
        with self._transfer(kind, key):
            own = self.local_manifest(kind, key)
            if own is None or "attempt" in own:
                return own or self._look(kind, key)
            agreed = self._agree(own)
            if agreed["sha256"] == own["sha256"]:
                write_json(self.root / kind / key / MANIFEST_NAME, agreed)
            else:
                super().set_aside(ref_of(own))
                write_json(self._seen_path(kind, key), agreed)
            return agreed

    def _agree(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return the manifest that serves: that of the first machine to create one."""
        kind, key = own["kind"], own["fingerprint"]
        found = self._remote_manifest(kind, key)
        if found is not None:
            return found
        attempt = uuid.uuid4().hex
        prefix, files = f"{kind}/{key}/{attempt}", list(own["files"])
        self.objects.upload(self.root / kind / key, files, prefix)
        offered = own | {"attempt": attempt}
        for seconds in _CREATE_DELAYS:
            time.sleep(seconds)
            # A request whose answer was lost is sent again, and then finds its own object.
            if self.objects.create(_manifest_name(kind, key), _json(offered)):
                return offered
            found = self._remote_manifest(kind, key)
            if found is not None and found["attempt"] == attempt:
                return offered
            if found is not None:
                self.objects.delete(f"{prefix}/{name}" for name in files)
                return found
            self._withdraw_if_partial(kind, key)
        raise TransientError(f"{self.objects.url}/{kind}/{key} keeps changing; try again.")

    # -- taking away

    def _withdraw(self, manifest: Mapping[str, Any]) -> None:
        """Delete a manifest whose objects are damaged, unless another has taken its place."""
        kind, key = manifest["kind"], manifest["fingerprint"]
        name = _manifest_name(kind, key)
        if _parsed(self.objects.read(name)).get("attempt") == manifest["attempt"]:
            self.objects.delete([name])
        self._seen_path(kind, key).unlink(missing_ok=True)

    def _withdraw_if_partial(self, kind: str, key: str) -> None:
        """Delete a manifest whose objects are missing or cut short, so that it blocks nobody."""
        name = _manifest_name(kind, key)
        before = self.objects.read(name)
        if before is None or self._remote_manifest(kind, key) is not None:
            return
        if self.objects.read(name) == before:
            self.objects.delete([name])

    def set_aside(self, ref: ArtifactRef) -> None:
        """Take a damaged mirrored copy out of sight; what the storage has is fetched again."""
        super().set_aside(ref)
        self._seen_path(ref.kind, ref.fingerprint).unlink(missing_ok=True)

    def remove(self, kind: str, key: str) -> None:
        """Delete an artefact for good, here and in the storage; the manifest goes first."""
        self.objects.delete([_manifest_name(kind, key)])
        self.objects.delete(f"{kind}/{key}/{name}" for name in self.objects.sizes(f"{kind}/{key}"))
        self._seen_path(kind, key).unlink(missing_ok=True)
        super().remove(kind, key)

    def drop_copy(self, kind: str, key: str) -> None:
        """Delete the mirrored copy of an artefact; one that the storage does not have stays."""
        here = self.local_manifest(kind, key)
        if here is not None and "attempt" not in here:
            return
        self._seen_path(kind, key).unlink(missing_ok=True)
        shutil.rmtree(self.root / kind / key, ignore_errors=True)

    def sweep_attempts(self, older_than: timedelta = ATTEMPT_AGE) -> int:
        """Delete what killed or beaten machines left in the storage; return how many attempts.

        Ages are read off the storage's own clock, so machines with wrong clocks do no harm.
        """
        now = self.objects.now()
        newest: dict[tuple[str, str, str], list[Any]] = {}
        for name, written in self.objects.written("").items():
            parts = name.split("/")
            ours = len(parts) >= 4 and _IDENTITY.fullmatch(parts[1])
            if ours and parts[0] not in NOT_ARTEFACTS:  # others may keep things beside the store
                entry = newest.setdefault((parts[0], parts[1], parts[2]), [written])
                entry[0] = max(entry[0], written)
                entry.append(name)
        old = {where: names for where, (when, *names) in newest.items() if now - when > older_than}
        serving = {
            where[:2]: _parsed(self.objects.read(_manifest_name(*where[:2]))).get("attempt")
            for where in old
        }
        gone = {where: names for where, names in old.items() if serving[where[:2]] != where[2]}
        self.objects.delete(name for names in gone.values() for name in names)
        return len(gone) + self.objects.abort_uploads(older_than, now)


def _manifest_name(kind: str, key: str) -> str:
    return f"{kind}/{key}/{MANIFEST_NAME}"


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _parsed(data: bytes | None) -> dict[str, Any]:
    """Return the object in `data`; nothing, or nonsense, is an empty one."""
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _stays_inside(manifest: Mapping[str, Any]) -> bool:
    """Tell that no file of `manifest` would be written outside of its folder."""
    paths = [PurePosixPath(name) for name in _stated_sizes(manifest)]
    return not any(path.is_absolute() or ".." in path.parts for path in paths)


def _stated_sizes(manifest: Any) -> dict[str, int]:
    try:
        return {name: meta["bytes"] for name, meta in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError):
        return {}

"""Back up a COMPASS home while runs go on, and bring it back.

What can be made again is left out: the catalogue, Prefect's database, caches, checkpoints. The
registry's database is copied first, by SQLite's own back-up, then what it refers to: files are
there before anything names them, so every name in the copy has its file. Nothing is cleaned away
meanwhile. A language's observations are copied while no monitor of it works.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from compass_core.backups import BackedUpFile, BackupFolder, Snapshot, snapshot_name
from compass_core.errors import CompassError, StoreError
from compass_core.files import file_lock, read_json, write_bytes
from compass_core.forgotten import FILE_NAME as FORGOTTEN
from compass_core.monitoring.privacy import (
    CHECK_NAME,
    KEY_NAME,
    LINKS_NAME,
    is_rotating,
    open_key,
    read_links,
)
from compass_core.monitoring.rotation import no_rotation
from compass_core.storage import MANIFEST_NAME
from compass_core.version import __version__
from tasks.migrations import HOME_FILE
from tasks.settings import (
    compass_home,
    open_catalog,
    store_address,
    store_root,
    tracking_uri,
    without_password,
)

_DATABASE = "mlflow.db"
_KEY_HEAD = "compass-key 1"
_SECRETS = frozenset({KEY_NAME, LINKS_NAME})
_NO_ARTEFACTS = frozenset({"tmp", "locks", "keys", "checkpoints", "partial"})
_MONITOR_SECONDS = 600.0
_CLEAN_SECONDS = 60.0
_UNFINISHED = ".restoring"
_MOVING = ".restored-in-part"
_ALREADY_THERE = frozenset({"prefect", _UNFINISHED})
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Where MLflow writes down absolute addresses of files."""


@dataclass
class _Copy:
    """A back-up on its way."""

    folder: BackupFolder
    home: Path
    files: dict[str, BackedUpFile] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, path: Path, name: str, *, sha256: str = "") -> None:
        """Copy one file; one that went away meanwhile was not part of anything finished."""
        with contextlib.suppress(FileNotFoundError):
            self.files[name] = self.folder.add(path, sha256=sha256)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did, and what is left to do."""

    snapshot: Snapshot
    notes: tuple[str, ...]


def make_backup(target: Path, now: datetime, *, with_key: Path | None = None) -> Snapshot:
    """Back up the home into `target`.

    Args:
        target: Folder of the back-up, outside of the home.
        now: The time.
        with_key: File that gets the secrets of hashed ids, those of these very hashes.

    Raises:
        StoreError: there is nothing to back up, the folder holds something else, or `with_key`
            exists.
    """
    home = compass_home()
    if not (home / "store").is_dir() and not (home / _DATABASE).is_file():
        raise StoreError(f"There is nothing to back up under {home} yet. Set COMPASS_HOME.")
    resolved = target.expanduser().resolve()
    if resolved == home or home in resolved.parents:
        raise StoreError(f"{target} lies inside {home}. Name a folder elsewhere, on another disk.")
    if with_key is not None:
        _require_key(with_key)
    folder = BackupFolder(resolved)
    folder.create()
    copy = _Copy(folder, home)
    locks = store_root() / "locks"
    with file_lock(locks / "clean.lock", timeout_seconds=_CLEAN_SECONDS):
        _copy_registry(copy)
        _copy_folder(copy, home / "runs", "runs")
        with no_rotation(home, timeout_seconds=_MONITOR_SECONDS):
            _require_no_rotation(home)
            _copy_usage(copy)
            copy.add(home / FORGOTTEN, FORGOTTEN)
            if with_key is not None:
                copy_key(with_key)
        _copy_store(copy)
    copy.add(home / HOME_FILE, HOME_FILE)
    snapshot = Snapshot(
        name=snapshot_name(now),
        created=now.isoformat(timespec="seconds"),
        home=str(home),
        files=copy.files,
        facts={"compass": __version__},
        left_out=tuple(copy.left_out),
    )
    folder.finish(snapshot)
    return snapshot


def _require_no_rotation(home: Path) -> None:
    if is_rotating(home / "usage"):
        raise StoreError(
            "A rotation of the secret was interrupted. Run `compass rotate-key` first."
        )


def copy_key(target: Path) -> None:
    """Copy the secrets of hashed ids to `target`, a file that does not exist yet.

    Raises:
        StoreError: the file exists, or this home has no secret of its own.
    """
    own, links = _require_key(target)
    lines = [_KEY_HEAD, *([f"secret {own.read_bytes().hex()}"] if own.is_file() else [])]
    lines += [f"rotated {link.hex()}" for link in links]
    write_bytes(target, "".join(f"{line}\n" for line in lines).encode())
    target.chmod(0o600)


def _require_key(target: Path) -> tuple[Path, list[bytes]]:
    usage = compass_home() / "usage"
    own, links = usage / KEY_NAME, list(read_links(usage))
    if target.exists():
        raise StoreError(f"{target} exists; nothing is written over. Name another file.")
    if not own.is_file() and not links:
        raise StoreError(
            f"{own} does not exist: the secret comes from COMPASS_PRIVACY_KEY, or was never "
            "needed. Keep the variable's value where you keep other secrets."
        )
    return own, links


def _read_key(path: Path) -> tuple[bytes, list[bytes]]:
    """Return the secret (empty: it comes from the environment) and what rotations added."""
    content = path.expanduser().read_bytes()
    if not content.startswith(_KEY_HEAD.encode()):
        return content, []
    pairs = [line.split() for line in content.decode().splitlines()[1:]]
    found = {name: bytes.fromhex(value) for name, value in pairs if name == "secret"}
    return found.get("secret", b""), [bytes.fromhex(v) for n, v in pairs if n == "rotated"]


def _copy_registry(copy: _Copy) -> None:
    uri = tracking_uri()
    database = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or database != copy.home / _DATABASE:
        copy.left_out.append(
            f"the MLflow store {without_password(uri)}: back it up by its own means (PostgreSQL: "
            "pg_dump --format=custom; a server: its database and its artefacts)"
        )
        return
    if not database.is_file():
        return
    with tempfile.TemporaryDirectory(dir=copy.folder.folder) as scratch:
        whole = Path(scratch) / _DATABASE
        with (
            contextlib.closing(sqlite3.connect(database, timeout=60)) as source,
            contextlib.closing(sqlite3.connect(whole)) as target,
        ):
            source.backup(target, pages=1_000, sleep=0.01)
        copy.add(whole, _DATABASE)
    _copy_folder(copy, copy.home / "mlartifacts", "mlartifacts")


def _copy_folder(copy: _Copy, folder: Path, name: str) -> None:
    """Copy every file of a folder but locks, temporary ones and links."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not path.is_symlink() and not hidden and path.suffix != ".lock":
            copy.add(path, f"{name}/{inside}")


def _copy_usage(copy: _Copy) -> None:
    usage = copy.home / "usage"
    copy.add(usage / CHECK_NAME, f"usage/{CHECK_NAME}")
    if any((usage / name).exists() for name in _SECRETS):
        copy.left_out.append(
            "the secret of hashed ids: keep it apart, once (`compass backup --with-key FILE`)"
        )
    for folder in sorted(path for path in usage.glob("[!.]*") if path.is_dir()):
        with (
            file_lock(folder / "monitor.lock", timeout_seconds=_MONITOR_SECONDS),
            file_lock(folder / "observations.lock", timeout_seconds=_MONITOR_SECONDS),
            _events_at_rest(folder / "events"),
        ):
            _copy_folder(copy, folder, f"usage/{folder.name}")


@contextlib.contextmanager
def _events_at_rest(folder: Path) -> Iterator[None]:
    if not folder.is_dir():
        yield
        return
    with file_lock(folder / "events.lock"):
        yield


def _copy_store(copy: _Copy) -> None:
    """Copy every finished artefact, by the hashes of its manifest; a damaged one is told."""
    root = store_root()
    if store_address() != str(copy.home / "store"):
        copy.left_out.append(
            f"the artefact store {without_password(store_address())}: it lies outside "
            "COMPASS_HOME; back it up by its own means (versions of a bucket, rsync of a folder)"
        )
        return
    copy.add(root / "STORE.json", "store/STORE.json")
    for manifest in sorted(root.glob(f"*/*/{MANIFEST_NAME}")):
        folder = manifest.parent
        if folder.parent.name in _NO_ARTEFACTS:
            continue
        name = f"store/{folder.relative_to(root)}"
        try:
            own = {
                f"{name}/{file}": copy.folder.add(folder / file, sha256=meta["sha256"])
                for file, meta in read_json(manifest)["files"].items()
            }
            own[f"{name}/{MANIFEST_NAME}"] = copy.folder.add(manifest)
        except (CompassError, OSError, ValueError, KeyError, TypeError) as error:
            copy.left_out.append(f"{name}: {error}")
            continue
        copy.files |= own


# ------------------------------------------------------------------ back again
def restore_backup(source: Path, key: Path | None) -> Restored:
    """Bring the newest back-up of `source` into an empty home.

    Args:
        source: Folder of back-ups.
        key: File with the secret of hashed ids; None where it comes from the environment, is lost,
            or was never needed.

    Raises:
        StoreError: the home is not empty, a file of the back-up is damaged, or the secret is not
            the one of the back-up.
    """
    folder = BackupFolder(source.expanduser().resolve())
    snapshots = folder.snapshots()
    snapshot = folder.newest()
    home = compass_home()
    _require_empty(home)
    staging = home / _UNFINISHED
    shutil.rmtree(staging, ignore_errors=True)
    folder.extract(snapshot, snapshot.files, staging)
    notes = _unite_forgotten(folder, snapshots, snapshot, staging)
    database = staging / _DATABASE
    if database.is_file():
        _move_addresses(database, Path(snapshot.home), home)
    notes += _bring_key(staging, key)
    tops = sorted(path.name for path in staging.iterdir())
    write_bytes(home / _MOVING, b"")
    for top in tops:
        shutil.rmtree(home / top, ignore_errors=True)
        (staging / top).replace(home / top)
    shutil.rmtree(staging)
    (home / _MOVING).unlink()
    if store_root().is_dir():
        open_catalog().rebuild()
    notes += [f"not in the back-up: {text}" for text in snapshot.left_out if "secret" not in text]
    return Restored(snapshot, tuple([*notes, *_missing()]))


def _require_empty(home: Path) -> None:
    """Refuse a home in use; one whose restore was interrupted is begun again."""
    if not home.exists():
        home.mkdir(parents=True)
        return
    there = sorted(path.name for path in home.iterdir() if path.name not in _ALREADY_THERE)
    if there and not (home / _MOVING).exists():
        raise StoreError(
            f"{home} is not empty ({', '.join(there[:5])}). Nothing is written over: point "
            "COMPASS_HOME to a new folder, or move this one away."
        )


def _unite_forgotten(
    folder: BackupFolder, snapshots: list[Snapshot], chosen: Snapshot, staging: Path
) -> list[str]:
    """Keep every id that any back-up knows as forgotten, so that an older one brings none back."""
    check = chosen.files.get(f"usage/{CHECK_NAME}")
    lines: set[str] = set()
    for snapshot in snapshots:
        if FORGOTTEN in snapshot.files and snapshot.files.get(f"usage/{CHECK_NAME}") == check:
            with tempfile.TemporaryDirectory(dir=staging) as scratch:
                folder.extract(snapshot, [FORGOTTEN], Path(scratch))
                lines |= set((Path(scratch) / FORGOTTEN).read_text(encoding="ascii").split())
    if not lines:
        return []
    write_bytes(staging / FORGOTTEN, "".join(f"{line}\n" for line in sorted(lines)).encode())
    return [
        f"{len(lines)} forgotten ids stay forgotten; run `compass forget` again for ids that "
        f"were forgotten after {chosen.created}"
    ]


def _move_addresses(database: Path, old: Path, new: Path) -> None:
    """Let MLflow find its files under the new home."""
    if old == new:
        return
    before, after = (f"{(path / 'mlartifacts').as_uri()}/" for path in (old, new))
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in _COLUMNS:
            known = connection.execute(
                "SELECT 1 FROM pragma_table_info(?) WHERE name = ?", (table, column)
            ).fetchall()
            if known:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    (after, len(before) + 1, len(before), before),
                )


def _bring_key(staging: Path, key: Path | None) -> list[str]:
    """Put the secret beside the hashes made with it, and check that it is that one."""
    usage = staging / "usage"
    if not (usage / CHECK_NAME).is_file():
        return []
    if key is not None:
        usage.chmod(0o700)
        secret, links = _read_key(key)
        lines = "".join(f"{link.hex()}\n" for link in links).encode()
        for name, content in ((KEY_NAME, secret), (LINKS_NAME, lines)):
            if content:
                write_bytes(usage / name, content)
                (usage / name).chmod(0o600)
    elif not os.environ.get("COMPASS_PRIVACY_KEY"):
        return [
            "the secret of hashed ids is missing: copy it to usage/secret.key (mode 0600) or set "
            "COMPASS_PRIVACY_KEY before the next run, which refuses to go on without it (E62)"
        ]
    open_key(usage, os.environ)
    return []


def _missing() -> list[str]:
    """Return what a champion stands on and the back-up did not bring."""
    from tasks.status import collect_status

    report = collect_status(datetime.now(UTC), verify=True)
    found = [*report.attention, *(item for row in report.languages for item in row.attention)]
    codes = ("adapter-damaged", "lineage-missing", "alias-broken", "no-registry", "unreadable")
    return [f"{item.code}: {item.text}" for item in found if item.code in codes]

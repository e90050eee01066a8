"""Replace the secret of hashed ids, without knowing a single id.

What is kept cannot be hashed again from ids, for nobody keeps those. So a new secret is laid over
the old one: every hash ``h`` that is kept becomes ``HMAC(new, h)``, and from then on an id is
hashed with the old secret first and the new one after. Records are recognised, users are counted
and forgotten ids stay forgotten as before, and whoever has the old secret alone can test no guess
any more. The old secret stays part of the chain.

    usage/.rotation/   the files as they will be, then READY.json; then each takes its place

A kill before READY.json changes nothing; after it, the next call finishes.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from compass_core.files import ROW_GROUP_ROWS, file_lock, read_json, write_bytes, write_json
from compass_core.monitoring.privacy import (
    CHECK_NAME,
    KEY_BYTES,
    LINKS_NAME,
    READY_NAME,
    ROTATION_NAME,
    check_value,
    open_key,
    read_links,
    rehashed,
)

_SECRET_BYTES = 32
_COLUMNS = ("record_key", "user_key", "session_key", "text_key")
_FORGOTTEN = "forgotten"
_LOCK_SECONDS = 60.0
_LOCK_NAME = ".rotation.lock"


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did.

    Attributes:
        observations: Observations whose hashes were replaced.
        forgotten: Forgotten ids, likewise.
        resumed: Whether an interrupted rotation was finished instead of beginning another.
    """

    observations: int
    forgotten: int
    resumed: bool


def rotate_key(home: Path, environment: Mapping[str, str]) -> Rotation:
    """Add a secret to the chain of `home` and replace every hash that is kept.

    No monitor and no application that appends usage may run: the locks keep out those that begin
    now, not those that hold the old secret in memory.

    Args:
        home: The COMPASS home.
        environment: Where `privacy.KEY_VARIABLE` may be.

    Raises:
        StoreError: the secret cannot be used, a monitor is at work, or the disk is full.
    """
    usage = home / "usage"
    staged = usage / ROTATION_NAME
    usage.mkdir(parents=True, exist_ok=True)
    with _alone(home):
        if (staged / READY_NAME).exists():
            counts = _commit(home, staged)
            return Rotation(*counts, resumed=True)
        shutil.rmtree(staged, ignore_errors=True)
        key = open_key(usage, environment)
        link = secrets.token_bytes(_SECRET_BYTES)
        base = key if isinstance(key, tuple) else (key,)
        counts = _stage(home, staged, link)
        links = "".join(f"{item.hex()}\n" for item in [*read_links(usage), link])
        _put(staged, f"usage/{LINKS_NAME}", links.encode())
        _put(staged, f"usage/{CHECK_NAME}", check_value((*base, link)))
        write_json(staged / READY_NAME, {"observations": counts[0], "forgotten": counts[1]})
        _commit(home, staged)
    return Rotation(*counts, resumed=False)


@contextlib.contextmanager
def no_rotation(home: Path, *, timeout_seconds: float) -> Iterator[None]:
    """Keep the secret of `home` as it is: hashes of several languages are read as one whole.

    Raises:
        StoreError: a rotation or a back-up held the lock for longer than `timeout_seconds`.
    """
    (home / "usage").mkdir(parents=True, exist_ok=True)
    with file_lock(home / "usage" / _LOCK_NAME, timeout_seconds=timeout_seconds):
        yield


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the locks of every language and of the list of forgotten ids."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(no_rotation(home, timeout_seconds=_LOCK_SECONDS))
        for folder in sorted(path.parent for path in home.glob("usage/*/observations")):
            for name in ("monitor.lock", "observations.lock"):
                stack.enter_context(file_lock(folder / name, timeout_seconds=_LOCK_SECONDS))
        stack.enter_context(file_lock(home / f".{_FORGOTTEN}.lock"))
        yield


def _stage(home: Path, staged: Path, link: bytes) -> tuple[int, int]:
    """Write every file with hashes as it will be; return how many hashes of records there are."""
    rows = 0
    for path in sorted(home.glob("usage/*/observations/*/[0-9]*.parquet")):
        table = _rehashed_table(pq.ParquetFile(path).read(), link)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS)
        _put(staged, str(path.relative_to(home)), sink.getvalue().to_pybytes())
        rows += table.num_rows
    forgotten = home / _FORGOTTEN
    lines = forgotten.read_text(encoding="ascii").split() if forgotten.exists() else []
    if lines:
        changed = sorted(rehashed(bytes.fromhex(line), link).hex() for line in lines)
        _put(staged, _FORGOTTEN, "".join(f"{line}\n" for line in changed).encode())
    return rows, len(lines)


def _rehashed_table(table: pa.Table, link: bytes) -> pa.Table:
    for name in _COLUMNS:
        known: dict[bytes | None, bytes | None] = {None: None}
        values = table[name].to_pylist()
        for value in set(values) - {None}:
            known[value] = rehashed(value, link)
        column = pa.array([known[value] for value in values], pa.binary(KEY_BYTES))
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(name), column)
    return table


def _put(staged: Path, name: str, content: bytes) -> None:
    path = staged / "files" / name
    write_bytes(path, content)
    path.chmod(0o600)


def _commit(home: Path, staged: Path) -> tuple[int, int]:
    """Let each staged file take its place; safe to repeat after a kill."""
    counts = read_json(staged / READY_NAME)
    files = staged / "files"
    for path in sorted(path for path in files.rglob("*") if path.is_file()):
        target = home / path.relative_to(files)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, path.read_bytes())
        target.chmod(0o600)
    shutil.rmtree(staged)
    return counts["observations"], counts["forgotten"]

"""The catalog file: one writer under a kernel lock, readers that always open a complete file.

A writer never touches the file that readers open. It works on a copy (or, to rebuild, on a new
file), closes it, and renames it into place. Readers attach the file read-only to a database of
their own in memory, because DuckDB would otherwise hand every thread of a process the same, perhaps
older, open file. The cost is one copy per extension: milliseconds per 10 MB.

No connection outlives the call that opened it, so none is ever carried over a fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from compass_core.errors import DataError, ResourceError, StoreError
from compass_core.manifests.indexing import Rows, artifact_rows, run_links, run_rows
from compass_core.manifests.schema import (
    LOCK_DOWN,
    RUN_TABLES,
    SCHEMA_VERSION,
    STAGE_TABLES,
    STAGES,
    TABLES,
    Settings,
    connection_settings,
)
from compass_core.records import ArtifactRef
from compass_core.storage import ArtifactStore, file_lock, fsync_path, read_json, sha256_file

T = TypeVar("T")
Parameters = Sequence[Any] | Mapping[str, Any]

CATALOG_NAME = "catalog.duckdb"
DAMAGED_NAME = "catalog.damaged.duckdb"
_ROWS_PER_INSERT = 100_000
_LOCK_TIMEOUT_SECONDS = 300.0
_HELD_TIMEOUT_SECONDS = 10.0
_log = logging.getLogger(__name__)


class _UnusableCatalogError(Exception):
    """The file is missing, damaged or of another version; a rebuild will do."""


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What an update of the catalog did.

    Attributes:
        n_artifacts: Artefacts indexed.
        n_rows: Rows inserted, over all tables.
        n_runs: Runs indexed.
        skipped: What could not be indexed, and why.
    """

    n_artifacts: int = 0
    n_rows: int = 0
    n_runs: int = 0
    skipped: tuple[str, ...] = ()


class CatalogFile:
    """The catalog under one COMPASS home."""

    def __init__(self, home: Path, store: Callable[[], ArtifactStore] | None = None) -> None:
        """Take the catalog of `home`; nothing is opened yet.

        The file is always this machine's own, wherever the artefacts are: it is a view of them.

        Args:
            home: Folder of the catalog and of the run records.
            store: Opens the artefact store, or says that there is none; None: ``<home>/store``.
        """
        self.home = home.resolve()
        self._store = store or self._own_store
        self.path = self.home / CATALOG_NAME
        self._scratch = self.home / "store" / "tmp" / "duckdb"

    # -- reading

    def query(self, sql: str, parameters: Parameters = ()) -> pa.Table:
        """Run one reading statement; values enter as bound `parameters` only.

        A catalog that is missing, damaged or of another version is rebuilt first.

        Raises:
            StoreError: there is nothing under the home folder yet.
        """
        table: pa.Table = self._reading(lambda connection: _fetch(connection, sql, parameters))
        return table

    def _reading(self, work: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        seen = self._identity()
        try:
            with self._reader() as connection:
                return work(connection)
        except _UnusableCatalogError as error:
            with self._lock():
                if self._identity() == seen:  # else another process repaired it meanwhile
                    self._rebuild(str(error))
        try:
            with self._reader() as connection:
                return work(connection)
        except _UnusableCatalogError as error:
            raise StoreError(
                f"{self.path} was rebuilt and still cannot be read: {error}. Check the disk."
            ) from error

    def _identity(self) -> tuple[int, int] | None:
        """Return what changes whenever the catalog file is replaced."""
        with contextlib.suppress(FileNotFoundError):
            status = self.path.stat()
            return status.st_ino, status.st_mtime_ns
        return None

    @contextlib.contextmanager
    def _reader(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if not self.path.exists():
            raise _UnusableCatalogError("it does not exist yet")
        quoted = str(self.path).replace("'", "''")
        try:
            with duckdb.connect(":memory:", config=self._settings()) as connection:
                _attach(connection, quoted)
                connection.execute("USE catalog")
                _lock_down(connection)
                _require_version(connection)
                yield connection
        except duckdb.Error as error:
            if _is_damage(error):
                raise _UnusableCatalogError(str(error).split("\n", maxsplit=1)[0]) from error
            raise

    # -- writing

    def rebuild(self) -> IndexReport:
        """Write the catalog anew from every artefact and every run record.

        Raises:
            StoreError: there is nothing under the home folder yet, or the disk is full.
        """
        with self._lock():
            return self._rebuild("on request")

    def extend(self, run_record: Path) -> IndexReport:
        """Add one run and what it refers to; what is already there is not added again.

        Args:
            run_record: The ``run.json`` of the run.

        Raises:
            StoreError: an artefact of the run is missing or damaged, or the disk is full.
            DataError: the run record or an artefact cannot be read.
        """
        run, sha256 = _read_run(run_record)
        with self._lock():
            try:
                with self._reader() as connection:
                    known = _known_artifacts(connection)
                    same_run = connection.execute(_KNOWN_RUN, [run["run_id"], sha256]).fetchall()
            except _UnusableCatalogError as error:
                return self._rebuild(str(error))
            new = _unknown((link.ref for link in run_links(run)), known)
            if same_run and not new:
                return IndexReport()
            with self._draft(copy=True) as connection:
                store = self._store()
                n_rows = _insert(connection, _remove_first(connection, store, new))
                for table in RUN_TABLES:
                    connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run["run_id"]])
                n_rows += _insert(connection, [run_rows(run, sha256)])
        return IndexReport(n_artifacts=len(new), n_rows=n_rows, n_runs=1)

    def add(self, refs: Iterable[ArtifactRef]) -> IndexReport:
        """Add artefacts that belong to no run, such as windows of usage; known ones stay.

        Raises:
            StoreError: an artefact is missing or damaged, or the disk is full.
            DataError: an artefact cannot be read.
        """
        with self._lock():
            try:
                with self._reader() as connection:
                    new = _unknown(refs, _known_artifacts(connection))
            except _UnusableCatalogError as error:
                return self._rebuild(str(error))
            if not new:
                return IndexReport()
            with self._draft(copy=True) as connection:
                n_rows = _insert(connection, _remove_first(connection, self._store(), new))
        return IndexReport(n_artifacts=len(new), n_rows=n_rows)

    def _rebuild(self, reason: str) -> IndexReport:
        store = self._store()
        if self.path.exists() and reason != "on request":
            _log.warning("The catalog is rebuilt from the store: %s", reason)
            self.path.replace(self.home / DAMAGED_NAME)
        skipped: list[str] = []
        counts = {"artifacts": 0, "runs": 0}
        with self._draft(copy=False) as connection:
            for table, columns in TABLES.items():
                connection.execute(f"CREATE TABLE {table} ({columns})")
            version = [SCHEMA_VERSION, duckdb.__version__]
            connection.execute("INSERT INTO meta VALUES (?, ?)", version)
            rows = _counted(self._everything(store, skipped), counts)
            n_rows = _insert(connection, rows)
        for problem in skipped:
            _log.warning("Not indexed: %s", problem)
        return IndexReport(counts["artifacts"], n_rows, counts["runs"], tuple(skipped))

    def _everything(self, store: ArtifactStore, skipped: list[str]) -> Iterator[Rows]:
        for kind in STAGES:
            for ref in store.refs(kind):
                try:
                    yield artifact_rows(store, ref)
                except (StoreError, DataError) as error:
                    skipped.append(str(error))
        for record in sorted(self.home.glob("runs/*/run.json")):
            try:
                yield run_rows(*_read_run(record))
            except DataError as error:
                skipped.append(str(error))

    @contextlib.contextmanager
    def _draft(self, *, copy: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a connection to a file that replaces the catalog when the block ends well."""
        for left_over in self.home.glob(f".{CATALOG_NAME}.*"):
            left_over.unlink(missing_ok=True)
        draft = self.home / f".{CATALOG_NAME}.{uuid.uuid4().hex[:8]}"
        owner = os.getpid()
        try:
            if copy:
                shutil.copyfile(self.path, draft)
            with duckdb.connect(str(draft), config=self._settings()) as connection:
                _lock_down(connection)
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
                connection.execute("CHECKPOINT")
            if os.getpid() != owner:
                raise StoreError("A forked process must not write the catalog; spawn it instead.")
            fsync_path(draft)
            # A program that died with the catalog open left its log, which fits no other file.
            self.path.with_name(f"{self.path.name}.wal").unlink(missing_ok=True)
            draft.replace(self.path)
            fsync_path(self.home)
        except (OSError, duckdb.Error) as error:
            raise _disk_problem(error, self.path) from error
        finally:
            for path in (draft, draft.with_name(f"{draft.name}.wal")):
                path.unlink(missing_ok=True)

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        self._store()
        return file_lock(self.home / f"{CATALOG_NAME}.lock", timeout_seconds=_LOCK_TIMEOUT_SECONDS)

    def _own_store(self) -> ArtifactStore:
        if not (self.home / "store").is_dir():
            raise StoreError(
                f"There is nothing under {self.home} yet. Run `compass adapt` first, or point "
                "COMPASS_HOME to the folder of an earlier run."
            )
        return ArtifactStore(self.home / "store")

    def _settings(self) -> Settings:
        return connection_settings(self._scratch)


_KNOWN = "SELECT kind, fingerprint, sha256 FROM artifacts"
_KNOWN_RUN = "SELECT 1 FROM runs WHERE run_id = ? AND sha256 = ?"
_DAMAGE = (
    duckdb.IOException,
    duckdb.SerializationException,
    duckdb.InternalException,
    duckdb.FatalException,
)


def _attach(connection: duckdb.DuckDBPyConnection, quoted: str) -> None:
    """Attach the catalog; wait a little for a program outside of COMPASS that has it open.

    Raises:
        ResourceError: E63, it is still open there.
    """
    deadline = time.monotonic() + _HELD_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute(f"ATTACH '{quoted}' AS catalog (READ_ONLY)")
            return
        except duckdb.IOException as error:
            if "Could not set lock" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"Another program has the catalog open for writing: {error} Close it there, or "
                    "open it read-only, and run again; the store has everything.",
                    code="E63",
                ) from error
            time.sleep(0.2)


def _is_damage(error: duckdb.Error) -> bool:
    """Tell a broken file from a wrong statement (a bad checksum raises the base class itself)."""
    return isinstance(error, _DAMAGE) or type(error) is duckdb.Error


def _lock_down(connection: duckdb.DuckDBPyConnection) -> None:
    for statement in LOCK_DOWN:
        connection.execute(statement)


def _require_version(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        found = connection.execute("SELECT schema_version FROM meta").fetchall()
    except duckdb.CatalogException as error:
        raise _UnusableCatalogError("it is not a catalog of COMPASS") from error
    if found != [(SCHEMA_VERSION,)]:
        raise _UnusableCatalogError(f"it has schema {found}, this COMPASS reads {SCHEMA_VERSION}")


def _fetch(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters) -> pa.Table:
    return connection.sql(sql, params=parameters).to_arrow_table()


def _known_artifacts(connection: duckdb.DuckDBPyConnection) -> set[tuple[str, str, str]]:
    return {(kind, name, sha256) for kind, name, sha256 in connection.execute(_KNOWN).fetchall()}


def _unknown(
    refs: Iterable[ArtifactRef], known: Collection[tuple[str, str, str]]
) -> list[ArtifactRef]:
    """Return the artefacts, each once, that are not in the catalog with this content."""
    once = {(ref.kind, ref.fingerprint): ref for ref in refs}
    return [ref for name, ref in once.items() if (*name, ref.sha256) not in known]


def _remove_first(
    connection: duckdb.DuckDBPyConnection, store: ArtifactStore, refs: Iterable[ArtifactRef]
) -> Iterator[Rows]:
    """Yield the rows of `refs`, after removing what an earlier content left under their name."""
    for ref in refs:
        rows = artifact_rows(store, ref)
        name = [ref.kind, ref.fingerprint]
        connection.execute("DELETE FROM artifacts WHERE kind = ? AND fingerprint = ?", name)
        for table in STAGE_TABLES[ref.kind]:
            connection.execute(f"DELETE FROM {table} WHERE fingerprint = ?", [ref.fingerprint])
        yield rows


def _counted(groups: Iterable[Rows], counts: dict[str, int]) -> Iterator[Rows]:
    for group in groups:
        for table in counts:
            counts[table] += table in group
        yield group


def _insert(connection: duckdb.DuckDBPyConnection, groups: Iterable[Rows]) -> int:
    """Insert `groups` in few large statements; return the number of rows."""
    waiting: dict[str, list[pa.Table]] = {}
    n_waiting = n_rows = 0
    for group in groups:
        for table, rows in group.items():
            waiting.setdefault(table, []).append(rows)
            n_waiting += rows.num_rows
        if n_waiting >= _ROWS_PER_INSERT:
            n_rows += _flush(connection, waiting)
            n_waiting = 0
    return n_rows + _flush(connection, waiting)


def _flush(connection: duckdb.DuckDBPyConnection, waiting: dict[str, list[pa.Table]]) -> int:
    n_rows = 0
    for table, parts in waiting.items():
        incoming = pa.concat_tables(parts)
        connection.register("incoming", incoming)
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
        connection.unregister("incoming")
        n_rows += incoming.num_rows
    waiting.clear()
    return n_rows


def _read_run(path: Path) -> tuple[dict[str, Any], str]:
    try:
        run = read_json(path)
        if not isinstance(run, dict) or not isinstance(run.get("run_id"), str):
            raise ValueError("`run_id` is missing")
        return run, sha256_file(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The run record {path} cannot be read: {error}. Run the same command again."
        ) from error


def _disk_problem(error: Exception, path: Path) -> Exception:
    if "No space left" in str(error):
        return ResourceError(
            f"No space left for {path}. Free some space (`compass clean` helps) and run the same "
            "command again; nothing was lost.",
            code="E64",
        )
    if isinstance(error, OSError | duckdb.IOException):
        return StoreError(f"Cannot write {path}: {error}. Check that the folder is yours.")
    return error

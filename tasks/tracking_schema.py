"""The schema of an MLflow store: made or brought up once, by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compass_core.errors import CompassError, InputError, StoreError, TransientError
from compass_core.storage import file_lock
from tasks.settings import without_password

_INITIALISE_TIMEOUT_SECONDS = 300.0
_SCHEMA_KEY = 0x434F4D50
"""Any number that nobody else locks in the same database."""
_initialised: set[str] = set()


def initialise_store(tracking_uri: str, artifact_root: Path) -> None:
    """Create or migrate the schema of `tracking_uri`, once, under a lock between processes.

    A tracking server (``http…``) looks after its own schema, so nothing happens there. A file is
    copied before an upgrade, whichever command is the first of a newer release.

    Args:
        tracking_uri: As MLflow takes it.
        artifact_root: Folder of the lock, where the store is no file.

    Raises:
        StoreError: another process held the lock for minutes, or the database is of another
            MLflow version and cannot be migrated.
    """
    if tracking_uri.startswith(("http://", "https://")) or tracking_uri in _initialised:
        return
    with file_lock(
        _schema_lock(tracking_uri, artifact_root), timeout_seconds=_INITIALISE_TIMEOUT_SECONDS
    ):
        if tracking_uri in _initialised:
            return
        import sqlalchemy
        from mlflow.store.db import utils

        _make_parent(tracking_uri)
        engine = _engine(sqlalchemy, tracking_uri)
        try:
            with _locked_database(engine):
                _migrate(utils, engine)
        except CompassError:
            raise
        except sqlalchemy.exc.OperationalError as error:
            raise TransientError(
                f"The MLflow store {without_password(tracking_uri)} does not answer: {error.orig}."
            ) from error
        except Exception as error:
            raise StoreError(
                f"Cannot open the MLflow store {without_password(tracking_uri)}: {error}. "
                "If it belongs to another MLflow version, use that version or a new COMPASS_HOME."
            ) from error
        finally:
            engine.dispose()
        _initialised.add(tracking_uri)


def _engine(sqlalchemy: Any, tracking_uri: str) -> Any:
    try:
        return sqlalchemy.create_engine(tracking_uri)
    except (ImportError, sqlalchemy.exc.ArgumentError) as error:
        raise InputError(
            f"MLFLOW_TRACKING_URI={without_password(tracking_uri)} cannot be used: {error}. For "
            'PostgreSQL: pip install "compass-adapt[postgres]" and write '
            "postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE.",
            code="E91",
        ) from error


@contextlib.contextmanager
def _locked_database(engine: Any) -> Iterator[None]:
    """Let one machine at a time make the schema of a PostgreSQL that several start with at once."""
    if engine.dialect.name != "postgresql":
        yield
        return
    from sqlalchemy import text

    with engine.begin() as transaction:  # the lock ends with it, and with its connection
        transaction.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_KEY})
        yield


def _migrate(utils: Any, engine: Any) -> None:
    found = utils._get_schema_version(engine)
    if found is None:
        utils._initialize_tables(engine)
    elif found != utils._get_latest_schema_revision():
        _copy_before_upgrade(engine, found)
        utils._upgrade_db(engine)
    elif not utils._all_tables_exist(engine):  # a first start that was killed half way
        utils._initialize_tables(engine)


def _copy_before_upgrade(engine: Any, revision: str) -> None:
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return
    database = Path(engine.url.database)
    name = f"{database.stem}-{revision}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}{database.suffix}"
    copy_database(database, database.parent / "before-upgrade" / name)


def newest_copy(database: Path, revision: str) -> Path | None:
    """Return the copy of a registry's file that was made before its `revision` was upgraded."""
    name = f"{database.stem}-{revision}-*{database.suffix}"
    return max((database.parent / "before-upgrade").glob(name), default=None)


def copy_database(path: Path, target: Path) -> None:
    """Copy an SQLite database as a whole, though it is in use; `target` appears when it is done."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(path, timeout=60)) as source,
        contextlib.closing(sqlite3.connect(part)) as copy,
    ):
        source.backup(copy)
    part.replace(target)


def _schema_lock(tracking_uri: str, artifact_root: Path) -> Path:
    if tracking_uri.startswith("sqlite:///"):
        return Path(f"{tracking_uri.removeprefix('sqlite:///')}.schema.lock")
    name = hashlib.sha256(tracking_uri.encode()).hexdigest()[:16]
    return artifact_root / ".locks" / f"schema-{name}.lock"


def _make_parent(tracking_uri: str) -> None:
    if tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)

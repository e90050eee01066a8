"""A usage log in a database, read through DuckDB: its own files, or SQLite, Postgres and MySQL.

The database is attached read-only, nothing is installed and no other file can be opened. An address
may hold a password, and what DuckDB says of a failed query may hold a row: no message repeats them,
and no error has one that does as its cause.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from compass_core.config import UsageLogConfig
from compass_core.errors import ConfigError, DataError
from compass_core.manifests.schema import LOCK_DOWN, connection_settings
from compass_core.monitoring.log_files import Found, python_rows
from compass_core.monitoring.records import RecordReader, Rejected
from compass_core.reading.files import expand_home

_BATCH_ROWS: Final = 4096
_FROM_ENVIRONMENT: Final = "env:"
_SLACK: Final = timedelta(days=1)
"""A column without a zone may be up to this far from UTC."""

_ABOUT_THE_DATABASE: Final = (
    duckdb.CatalogException,
    duckdb.PermissionException,
    duckdb.IOException,
)
"""Errors whose words are of files and tables; those of others (a failed cast) may be of rows."""

_ZONED: Final = "TIMESTAMP WITH TIME ZONE"


def table_rows(
    config: UsageLogConfig, base_folder: Path, reader: RecordReader, watermark: datetime | None
) -> Iterator[Found]:
    """Yield (row number, row) of the table in the order of its time column.

    Args:
        config: The database and the table.
        base_folder: Folder that the path of a DuckDB or SQLite file starts from.
        reader: Says which columns are needed.
        watermark: Older rows are left out, where the time column is a timestamp; else all are read.

    Raises:
        ConfigError: no table is named, or the variable of ``env:NAME`` is not set.
        DataError: the extension is not installed, or the database or table cannot be opened.
    """
    if not config.table:
        raise ConfigError(
            "monitoring.log.table: name the table or view of monitoring.log.database."
        )
    with tempfile.TemporaryDirectory() as scratch, _connection(Path(scratch)) as connection:
        _attach(connection, config, base_folder)
        try:
            query, values = _query(connection, config, reader, watermark)
            number = 0
            for batch in connection.sql(query, params=values).to_arrow_reader(_BATCH_ROWS):
                for row in python_rows(batch):
                    number += 1
                    yield (number, row) if isinstance(row, dict) else Rejected(number, row)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise _unreadable(config, error) from None


def _query(
    connection: duckdb.DuckDBPyConnection,
    config: UsageLogConfig,
    reader: RecordReader,
    watermark: datetime | None,
) -> tuple[str, list[Any]]:
    """Return the query for the columns that are needed, and its values."""
    table = _quoted_table(config.table)
    found = connection.sql(f"SELECT * FROM {table} LIMIT 0")
    kinds = {n: str(k) for n, k in zip(found.columns, found.types, strict=True)}
    names = reader.columns(list(kinds))
    if not names:
        listed = ", ".join(list(kinds)[:20])
        raise DataError(
            f"no usable column: table {config.table} has {listed} - map the columns under "
            "monitoring.log.columns",
            code="E15",
        )
    time = reader.time_column(list(kinds))
    where, values = _since(time, kinds, watermark)
    order = f" ORDER BY {_quoted(time)}" if time else ""
    columns = ", ".join(_quoted(name) for name in names)
    return f"SELECT {columns} FROM {table}{where}{order}", values


def _connection(scratch: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:", config=connection_settings(scratch))
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _address(config: UsageLogConfig) -> str:
    """Return what to attach; a variable is looked up here and its value is kept nowhere."""
    if not config.database.startswith(_FROM_ENVIRONMENT):
        return config.database
    name = config.database.removeprefix(_FROM_ENVIRONMENT)
    found = os.environ.get(name, "")
    if not found:
        raise ConfigError(
            f"monitoring.log.database is env:{name[:80]}, and that environment variable is not "
            "set - set it where COMPASS runs (for a deployment, in the worker's environment)"
        )
    return found


def _attach(
    connection: duckdb.DuckDBPyConnection, config: UsageLogConfig, base_folder: Path
) -> None:
    kind = config.database_type
    address = _address(config)
    if kind in ("duckdb", "sqlite"):
        path = base_folder / expand_home(address)
        if "://" in address or not path.is_file():
            raise DataError(
                f"file not found: monitoring.log.database ({kind}) - check the path (relative "
                "paths start from the configuration file)",
                code="E01",
            )
        address = str(path)
    if kind != "duckdb":
        try:
            connection.execute(f"LOAD {kind}")
        except duckdb.Error:
            raise DataError(
                f"monitoring.log.database_type is {kind}, and DuckDB's extension {kind!r} is "
                "not installed on this machine. COMPASS downloads none by itself. Install it once: "
                f"python -c \"import duckdb; duckdb.sql('INSTALL {kind}')\", or export the "
                "table to JSONL or Parquet files.",
                code="E66",
            ) from None
    options = "READ_ONLY" if kind == "duckdb" else f"TYPE {kind}, READ_ONLY"
    quoted = address.replace("'", "''")
    try:
        connection.execute(f"ATTACH '{quoted}' AS usage_log ({options})")
        connection.execute("USE usage_log")
        for statement in LOCK_DOWN:
            connection.execute(statement)
    except duckdb.Error as error:
        raise _unreadable(config, error) from None


def _since(column: str, kinds: dict[str, str], watermark: datetime | None) -> tuple[str, list[Any]]:
    """Return a condition on the time column, where it can be compared, and its values."""
    kind = kinds.get(column, "")
    if watermark is None or not kind.startswith("TIMESTAMP"):
        return "", []
    if kind == _ZONED:
        return f" WHERE {_quoted(column)} >= ?", [watermark]
    earliest = (watermark - _SLACK).replace(tzinfo=None)
    return f" WHERE {_quoted(column)} >= ?", [earliest]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted_table(name: str) -> str:
    return ".".join(_quoted(part) for part in name.split("."))


def _unreadable(config: UsageLogConfig, error: Exception) -> DataError:
    """Return the error without the address and without anything that a row may say."""
    local = config.database_type in ("duckdb", "sqlite")
    told = local and isinstance(error, _ABOUT_THE_DATABASE)
    said = f": {str(error).splitlines()[0][:160]}" if told and str(error) else ""
    kind = type(error).__name__.removesuffix("Exception")
    if isinstance(error, _ABOUT_THE_DATABASE) or not local:
        advice = "check that the database is there, is not locked by a writer and has that table"
    else:
        advice = "its query fails, on some row or as a whole: run it in DuckDB, which says where"
    return DataError(
        f"cannot be read: table {config.table[:80]!r} of monitoring.log.database "
        f"({config.database_type}, {kind}){said} - {advice}",
        code="E20",
    )

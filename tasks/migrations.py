"""Which release a COMPASS home was written by, and how it is brought to this one.

| part | version in | this release | brought up by |
|---|---|---|---|
| layout of the home | ``HOME.json`` (none: 0) | `HOME_VERSION` | `MIGRATIONS` |
| artefact store | ``store/STORE.json`` | `STORE_VERSION` | `MIGRATIONS` |
| catalogue | its table ``meta`` | `SCHEMA_VERSION` | built anew |
| MLflow's database | ``alembic_version`` | of the installed MLflow | MLflow |
| Prefect's database | ``alembic_version`` | of the installed Prefect | Prefect |

What is newer than this release is refused, never guessed at. What a migration changes is copied to
``before-upgrade/`` first.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compass_core.errors import StoreError, TransientError
from compass_core.files import file_lock, read_json, write_json
from compass_core.manifests.schema import SCHEMA_VERSION
from compass_core.storage import STORE_VERSION
from compass_core.version import __version__
from tasks.settings import (
    compass_home,
    open_catalog,
    store_address,
    tracking_uri,
    without_password,
)
from tasks.tracking_schema import copy_database, newest_copy

HOME_FILE = "HOME.json"
HOME_VERSION = 1
"""Raise with any change to usage/, runs/ or the layout, and add a `Migration` that makes it."""

_LOCKED = ("prefect", "mlflow", "duckdb", "torch", "transformers", "peft", "pyarrow")
_MISSING = "none"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of one part, from a version to the next.

    Attributes:
        part: ``home`` or ``store``.
        before: Version that it starts from; it leads to the next.
        what: What it does, in words.
        touches: Files and folders that it changes, for the copy.
        run: Does it; safe to repeat after a kill.
    """

    part: str
    before: int
    what: str
    touches: Callable[[Path], Sequence[Path]]
    run: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class PartState:
    """One part of a home: its version, the one of this release, and whether anything is to do.

    Attributes:
        name: Part.
        found: Version on disk.
        wanted: Version of this release.
        todo: What an upgrade does; empty where nothing is to do.
    """

    name: str
    found: str
    wanted: str
    todo: str = ""


def _lines_of_runs(home: Path) -> None:
    """Make the short line of every run that an earlier release left."""
    del home
    from tasks.run_index import run_lines

    run_lines(rebuild=True)


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        part="home",
        before=0,
        what="write the version down, and a short line of every run",
        touches=lambda home: [],
        run=_lines_of_runs,
    ),
)


def home_states() -> list[PartState]:
    """Return every part of the home; nothing is opened for writing.

    Raises:
        StoreError: a part is newer than this release.
    """
    home = compass_home()
    states = [_numbered("home", _home_version(home), HOME_VERSION)]
    if store_address() == str(home / "store") and (home / "store").is_dir():
        states.append(_numbered("store", _store_version(home), STORE_VERSION))
    if (home / "catalog.duckdb").is_file():
        states.append(_catalogue(home))
    states += [*_registry(), *_prefect(home)]
    return states


def pending() -> list[PartState]:
    """Return the parts that an upgrade would change; none in a home that is empty."""
    if not any((compass_home() / name).exists() for name in ("store", "runs", "mlflow.db")):
        return []
    return [state for state in home_states() if state.todo]


def files_pending() -> list[PartState]:
    """Return what waits among the parts that are cheap to look at: the home and the store.

    Raises:
        StoreError: a part is newer than this release.
    """
    home = compass_home()
    if not (home / "runs").exists():
        return []
    states = [_numbered("home", _home_version(home), HOME_VERSION)]
    if store_address() == str(home / "store"):
        states.append(_numbered("store", _store_version(home), STORE_VERSION))
    return [state for state in states if state.todo]


def require_readable() -> None:
    """Refuse a home of a later release; note the version in a new one.

    Raises:
        StoreError: the home was written by a later release.
    """
    home = compass_home()
    _numbered("home", _home_version(home), HOME_VERSION)
    if not (home / HOME_FILE).exists() and not (home / "runs").exists():
        _write_version(home)


def upgrade(now: datetime) -> list[str]:
    """Bring every part to this release; return what was done.

    Raises:
        StoreError: a part is newer than this release, or another upgrade is at work.
    """
    home = compass_home()
    done: list[str] = []
    with file_lock(home / ".upgrade.lock"):
        copies = home / "before-upgrade" / f"{now:%Y%m%dT%H%M%S}"
        for state in pending():
            done += [f"{state.name}: {text}" for text in _bring_up(state, home, copies)]
        _write_version(home)
    return done


def _bring_up(state: PartState, home: Path, copies: Path) -> Iterator[str]:
    if state.name in ("home", "store"):
        for step in _steps(state.name, int(state.found)):
            for path in step.touches(home):
                _copy(path, copies / path.relative_to(home))
            step.run(home)
            yield step.what
    elif state.name == "catalogue":
        found = open_catalog().rebuild()
        yield f"built anew from {found.n_artifacts} artefacts and {found.n_runs} runs"
    elif state.name == "MLflow":
        from tasks import tracking

        tracking.configure(tracking_uri(), home / "mlartifacts")  # copies a file before
        yield f"{state.found} to {state.wanted}"
        database = _sqlite_file(tracking_uri())
        if database is not None:
            yield f"copied to {newest_copy(database, state.found)}"
    else:
        copy_database(home / "prefect" / "prefect.db", copies / "prefect.db")
        _prefect_upgrade()
        yield f"{state.found} to {state.wanted}, copied to {copies / 'prefect.db'}"


def _steps(part: str, found: int) -> list[Migration]:
    return sorted(
        (step for step in MIGRATIONS if step.part == part and step.before >= found),
        key=lambda step: step.before,
    )


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    elif path.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def _write_version(home: Path) -> None:
    write_json(home / HOME_FILE, {"home_version": HOME_VERSION, "compass": __version__})


# ------------------------------------------------------------------ what is there
def _numbered(part: str, found: int, wanted: int) -> PartState:
    if found > wanted:
        raise StoreError(
            f"{compass_home()} was written by a later COMPASS ({part} version {found}; this is "
            f"{__version__} with version {wanted}). Install that release, or restore the back-up "
            "made before its upgrade into another COMPASS_HOME.",
            code="E62",
        )
    todo = "; ".join(step.what for step in _steps(part, found)) if found < wanted else ""
    return PartState(part, str(found), str(wanted), todo)


def _home_version(home: Path) -> int:
    path = home / HOME_FILE
    try:
        return int(read_json(path)["home_version"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be read: {error}. Restore it from a back-up; it says "
            f'{{"home_version": {HOME_VERSION}}} for this release.'
        ) from error


def _store_version(home: Path) -> int:
    path = home / "store" / "STORE.json"
    try:
        return int(read_json(path)["store_version"])
    except FileNotFoundError:
        return STORE_VERSION
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be read: {error}. Restore it from a back-up.") from error


def _catalogue(home: Path) -> PartState:
    """Return the state of the catalogue; of whatever version, it is built anew, never refused."""
    import duckdb

    wanted = str(SCHEMA_VERSION)
    try:
        with duckdb.connect(str(home / "catalog.duckdb"), read_only=True) as connection:
            rows = connection.execute("SELECT schema_version FROM meta").fetchall()
        found = str(rows[0][0])
    except (duckdb.Error, IndexError):
        found = _MISSING
    return PartState("catalogue", found, wanted, "" if found == wanted else "build it anew")


def _registry() -> list[PartState]:
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        return []  # its server looks after its own database
    database = _sqlite_file(uri)
    if database is not None and not database.is_file():
        return []
    import sqlalchemy
    from mlflow.store.db import utils

    engine = sqlalchemy.create_engine(uri)
    try:
        found = str(utils._get_schema_version(engine))
        wanted = str(utils._get_latest_schema_revision())
    except sqlalchemy.exc.OperationalError as error:
        raise TransientError(f"{without_password(uri)} does not answer: {error.orig}") from error
    finally:
        engine.dispose()
    if found == "None":
        return []  # an empty database: the first run makes the tables
    todo = "" if found == wanted else "mlflow db upgrade"
    return [PartState("MLflow", found, wanted, todo)]


def _prefect(home: Path) -> list[PartState]:
    """Return the state of Prefect's own database where it is the file under this home."""
    path = home / "prefect" / "prefect.db"
    if not path.is_file():
        return []
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.Error:
            rows = []
    found = rows[0][0] if rows else _MISSING
    wanted = _prefect_head()
    todo = "" if found == wanted else "prefect server database upgrade"
    return [PartState("Prefect", found, wanted, todo)]


def _prefect_head() -> str:
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from prefect.server.database import alembic_commands

    folder = Path(alembic_commands.__file__).parent / "_migrations"
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("version_locations", str(folder / "versions" / "sqlite"))
    return str(ScriptDirectory.from_config(config).get_current_head())


def _prefect_upgrade() -> None:
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if found.returncode:
        raise StoreError(
            f"Prefect could not upgrade its database: {found.stderr.strip()[-300:]} Stop the "
            "server and run this again."
        )


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def lock_drift(constraints: Path) -> list[tuple[str, str, str]]:
    """Return (package, installed, locked) of the main packages that differ from the lock file."""
    locked = _locked(constraints)
    found = []
    for name in _LOCKED:
        with contextlib.suppress(PackageNotFoundError):
            have = version(name).partition("+")[0]
            if name in locked and have != locked[name]:
                found.append((name, have, locked[name]))
    return found


def _locked(constraints: Path) -> Mapping[str, str]:
    if not constraints.is_file():
        return {}
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith((" ", "#"))]
    return {name.strip(): text.split()[0].rstrip("\\;").strip() for name, text in pairs}

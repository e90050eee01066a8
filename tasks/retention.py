"""What may be deleted: everything that neither a kept run nor a champion's lineage needs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compass_core.errors import StoreError
from compass_core.monitoring.history import History
from compass_core.object_store import is_url
from compass_core.records import ArtifactRef
from compass_core.storage import (
    MANIFEST_NAME,
    NOT_ARTEFACTS,
    ArtifactStore,
    canonical_json,
    file_lock,
    read_json,
    write_text,
)
from tasks import registry
from tasks.lineage import LINEAGE_TAG
from tasks.promotion import configure_tracking
from tasks.settings import (
    compass_home,
    open_store,
    runs_folder,
    store_address,
    store_is_shared,
    store_root,
    usage_folder,
)

_LINEAGE_TAGS = (
    "selection_fingerprint",
    "training_fingerprint",
    "evaluation_fingerprint",
    LINEAGE_TAG,
)


_STAY = (
    "Finished artefacts stay in the shared store, because other homes may need them; "
    "--shared deletes them, where this home is the only one."
)
_SPACE_NAME = "space.json"
"""The space that usage of a language is watched in, beside its history."""


@dataclass(frozen=True, slots=True)
class CleanPlan:
    """What a cleaning would delete.

    Attributes:
        runs: Folders of runs.
        artefacts: Folders of artefacts and of adapters that no longer serve.
        bytes: Their size together.
        for_all: Whether artefacts go from a shared store, or only this home's copies of them.
        note: What stays and why, for people.
    """

    runs: list[Path]
    artefacts: list[Path]
    bytes: int
    for_all: bool = True
    note: str = ""

    def is_empty(self) -> bool:
        """Tell whether there is nothing to do (of object storage that is not known before)."""
        return not (self.runs or self.artefacts or is_url(store_address()))


def plan_clean(keep_runs: int, *, shared: bool = False) -> CleanPlan:
    """Return what can go when the newest `keep_runs` runs stay.

    A champion pins its adapter, its selection and its evaluation, and whatever they were made of,
    because those are named in the record of the run that made it.

    Args:
        keep_runs: Newest runs that stay.
        shared: Delete from a store that other homes may use, too; safe only where none does,
            because nobody here knows what their runs need.
    """
    store = open_store()
    runs = sorted((p.parent for p in runs_folder().glob("*/run.json")), reverse=True)
    kept, pinned = set(runs[:keep_runs]), _champion_fingerprints()
    needed: set[str] = set()
    for run in runs:
        record = read_json(run / "run.json")
        paths = {ref["path"] for ref in _refs(record)}
        if run in kept or any(Path(path).name in pinned for path in paths):
            kept.add(run)
            needed |= paths
    # A lineage that `compass forget` repaired is named by its version alone, in no run's record.
    needed |= {f"lineage/{name}" for name in pinned}
    # What was said about a window stays: its history names it, and it is a few kilobytes.
    needed |= {window["ref"]["path"] for window in _windows()}
    # Usage is compared within one space: made again with one byte changed, it would be another.
    needed |= _watched_spaces()
    needed |= _parts(store, needed)
    gone = [run for run in runs if run not in kept]
    others_may_need = store_is_shared() and not shared
    sizes = {} if others_may_need and not is_url(store_address()) else _unneeded(store, needed)
    if shared and is_url(store_address()):
        refs = (ref for kind in store.kinds() for ref in store.refs(kind))
        sizes |= {store.root / ref.path: ref.bytes for ref in refs if ref.path not in needed}
    since = _oldest_open_run(keep_runs)
    sizes = {folder: size for folder, size in sizes.items() if _made(folder) < since}
    size = sum(_size(run) for run in gone) + sum(sizes.values())
    note = _STAY if others_may_need else ""
    return CleanPlan(gone, sorted(sizes), size, not others_may_need, note)


def _oldest_open_run(keep_runs: int) -> float:
    """Return since when newest runs go on, or were killed, without a record of what they need."""
    newest = sorted((p.parent for p in runs_folder().glob("*/config.yaml")), reverse=True)
    begun = [
        (run / "config.yaml").stat().st_mtime
        for run in newest[:keep_runs]
        if not (run / "run.json").exists()
    ]
    return min(begun, default=math.inf)


def _made(folder: Path) -> float:
    """Return when an artefact was finished; of one that is not here in full, long ago."""
    try:
        return (folder / MANIFEST_NAME).stat().st_mtime
    except OSError:
        return 0.0


def _unneeded(store: ArtifactStore, needed: set[str]) -> dict[Path, int]:
    """Return size in bytes by folder of what lies in this home's folder and nobody needs."""
    return {
        folder: _size(folder)
        for stage in store.root.iterdir()
        if stage.is_dir() and stage.name not in NOT_ARTEFACTS
        for folder in stage.iterdir()
        if str(folder.relative_to(store.root)) not in needed
    }


def apply_clean(plan: CleanPlan) -> None:
    """Delete what `plan` lists; the catalogue is rebuilt by the caller."""
    store = open_store()
    delete = store.remove if plan.for_all else store.drop_copy
    with file_lock(store_root() / "locks" / "clean.lock"):
        for run in plan.runs:
            shutil.rmtree(run, ignore_errors=True)
        for folder in plan.artefacts:
            delete(folder.parent.name, folder.name)
    store.sweep_attempts()
    newest = sorted(path.parent.name for path in runs_folder().glob("*/run.json"))
    if newest:
        write_text(runs_folder() / "LAST", newest[-1] + "\n")


def _parts(store: ArtifactStore, paths: set[str]) -> set[str]:
    """Return the artefacts that those at `paths` are made of and still point to, at any depth."""
    found: set[str] = set()
    waiting = list(paths)
    while waiting:
        ref = store.find(*waiting.pop().split("/", 1))
        if ref is not None:
            inside = set(store.manifest(ref)["provenance"].get("parts", ())) - found
            found |= inside
            waiting += inside
    return found


def _windows() -> list[dict[str, Any]]:
    """Return the decided windows of all languages."""
    paths = (compass_home() / "usage").glob("*/history.json")
    return [window for path in paths for window in History(path).entries()]


def keep_space(language: str, space: ArtifactRef) -> None:
    """Keep the space that usage of a language is watched in, instead of the one before.

    That of a first champion is made when its usage is looked at, so no run and no lineage names it.
    """
    path = usage_folder(language) / _SPACE_NAME
    text = canonical_json({"space": space.to_dict()})
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def _watched_spaces() -> set[str]:
    """Return where the spaces lie that usage is watched in, of all languages.

    Raises:
        StoreError: a file that names one cannot be read.
    """
    found = set()
    for path in (compass_home() / "usage").glob(f"*/{_SPACE_NAME}"):
        try:
            found.add(str(read_json(path)["space"]["path"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}). Run `compass monitor`, which writes it again, "
                "before anything is deleted."
            ) from error
    return found


def _champion_fingerprints() -> set[str]:
    configure_tracking()
    pinned: set[str] = set()
    for serving in registry.list_serving():
        for version in (serving.champion, serving.previous, serving.challenger):
            if version is not None:
                pinned |= {version.tags[tag] for tag in _LINEAGE_TAGS if tag in version.tags}
    return pinned


def _refs(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every artefact reference inside a run's record."""
    if isinstance(value, Mapping):
        if {"kind", "fingerprint", "path", "sha256"} <= value.keys():
            yield value
            return
        for item in value.values():
            yield from _refs(item)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""What may be deleted: everything that neither a kept run nor a champion's lineage needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compass_core.monitoring.history import History
from compass_core.storage import MANIFEST_NAME, file_lock, read_json, write_text
from tasks import registry
from tasks.lineage import LINEAGE_TAG
from tasks.promotion import configure_tracking
from tasks.settings import compass_home, open_store, runs_folder

_NOT_ARTEFACTS = {"tmp", "locks", "keys", "checkpoints"}
_LINEAGE_TAGS = (
    "selection_fingerprint",
    "training_fingerprint",
    "evaluation_fingerprint",
    LINEAGE_TAG,
)


@dataclass(frozen=True, slots=True)
class CleanPlan:
    """What a cleaning would delete.

    Attributes:
        runs: Folders of runs.
        artefacts: Folders of artefacts and of adapters that no longer serve.
        bytes: Their size together.
    """

    runs: list[Path]
    artefacts: list[Path]
    bytes: int


def plan_clean(keep_runs: int) -> CleanPlan:
    """Return what can go when the newest `keep_runs` runs stay.

    A champion pins its adapter, its selection and its evaluation, and whatever they were made of,
    because those are named in the record of the run that made it.
    """
    runs = sorted((p.parent for p in runs_folder().glob("*/run.json")), reverse=True)
    kept, pinned = set(runs[:keep_runs]), _champion_fingerprints()
    needed: set[str] = set()
    for run in runs:
        record = read_json(run / "run.json")
        paths = {ref["path"] for ref in _refs(record)}
        if run in kept or any(Path(path).name in pinned for path in paths):
            kept.add(run)
            needed |= paths
    root = open_store().root
    # A lineage that `compass forget` repaired is named by its version alone, in no run's record.
    needed |= {f"lineage/{name}" for name in pinned}
    # What was said about a window stays: its history names it, and it is a few kilobytes.
    needed |= {window["ref"]["path"] for window in _windows()}
    needed |= _parts(root, needed)
    artefacts = [
        folder
        for stage in root.iterdir()
        if stage.is_dir() and stage.name not in _NOT_ARTEFACTS
        for folder in stage.iterdir()
        if str(folder.relative_to(root)) not in needed
    ]
    gone = [run for run in runs if run not in kept]
    return CleanPlan(gone, sorted(artefacts), sum(_size(p) for p in [*gone, *artefacts]))


def apply_clean(plan: CleanPlan) -> None:
    """Delete what `plan` lists; the catalogue is rebuilt by the caller."""
    with file_lock(compass_home() / "store" / "locks" / "clean.lock"):
        for folder in [*plan.runs, *plan.artefacts]:
            shutil.rmtree(folder, ignore_errors=True)
    newest = sorted(path.parent.name for path in runs_folder().glob("*/run.json"))
    if newest:
        write_text(runs_folder() / "LAST", newest[-1] + "\n")


def _parts(root: Path, paths: set[str]) -> set[str]:
    """Return the artefacts that those at `paths` are made of and still point to, at any depth."""
    found: set[str] = set()
    waiting = list(paths)
    while waiting:
        manifest = root / waiting.pop() / MANIFEST_NAME
        if manifest.is_file():
            inside = set(read_json(manifest)["provenance"].get("parts", ())) - found
            found |= inside
            waiting += inside
    return found


def _windows() -> list[dict[str, Any]]:
    """Return the decided windows of all languages."""
    paths = (compass_home() / "usage").glob("*/history.json")
    return [window for path in paths for window in History(path).entries()]


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

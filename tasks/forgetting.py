"""Forgetting ids: out of observations, artefacts, buffers, records and databases, and kept out.

Artefacts are immutable, so those that hold an id are removed; whoever needs them makes them anew
from the sources, where the id is passed over from then on. What an adapter in service stands on
cannot be made anew, so it is copied without the rows, and the adapter's lineage names the copies.
Weights that were trained on a row are not changed: they are named, to be trained again.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compass_core.errors import InputError
from compass_core.forgotten import Forgotten
from compass_core.manifests import CATALOG_NAME
from compass_core.manifests.catalog import DAMAGED_NAME
from compass_core.object_store import is_url
from compass_core.records import ArtifactRef
from compass_core.redaction import (
    Needles,
    copy_without,
    file_holds,
    folder_holds,
    is_sqlite,
    redact_file,
    redact_sqlite,
    sqlite_cells,
)
from compass_core.storage import (
    MANIFEST_NAME,
    NOT_ARTEFACTS,
    ArtifactStore,
    file_lock,
    fingerprint,
    read_array,
    read_json,
    write_json,
)
from tasks import registry
from tasks.lineage import LINEAGE_TAG, Lineage, lineage_of, write_lineage
from tasks.manifests import catalog
from tasks.monitoring import open_log
from tasks.pools import SHARDS_FILE, VECTORS_FILE, Corpus, pool_shards
from tasks.promotion import configure_tracking
from tasks.settings import compass_home, open_store, store_address, store_root, tracking_uri

_DERIVED = frozenset({"embed", "sketch"})
"""Kinds with an entry for every row of what they are made of."""

_WEIGHTS = frozenset({"adapter-train", "update-train", "continual-train"})
_TRAINED_ON = frozenset({"coverage", "sample", "history", "replay"})
_ROLES = ("previous", "challenger", "champion")
_NO_TEXT = NOT_ARTEFACTS - {"tmp"}


@dataclass
class ForgetPlan:
    """Where the ids are.

    Attributes:
        ids: What to forget.
        hashes: Their keyed hashes; all that a receipt may say.
        needles: Ids and texts of their rows.
        observations: By language, observations of usage.
        artefacts: Folders of the store that go.
        files: Other files that lose rows or text.
        databases: SQLite databases that lose text.
        trained: Adapters in the registry that were trained on one of the rows, with their role.
        lineages: Adapters whose lineage gets copies without the rows.
        left: What could not be cleaned, after the removal.
    """

    ids: list[str]
    hashes: list[str]
    needles: Needles
    observations: dict[str, int] = field(default_factory=dict)
    artefacts: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    databases: list[Path] = field(default_factory=list)
    trained: list[tuple[registry.RegisteredAdapter, str]] = field(default_factory=list)
    lineages: list[registry.RegisteredAdapter] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def is_empty(self) -> bool:
        """Tell whether nothing holds any of the ids."""
        return not (self.observations or self.artefacts or self.files or self.databases)


def plan_forget(ids: Iterable[str]) -> ForgetPlan:
    """Find everything under the home that holds one of `ids`.

    Raises:
        InputError: no id, or an empty one.
    """
    wanted = sorted(set(ids))
    if not wanted or not all(text.strip() for text in wanted):
        raise InputError("Name at least one id to forget, and no empty one.", code="E15")
    home = compass_home()
    forgotten = Forgotten(home)
    plan = ForgetPlan(wanted, [forgotten.hash_of(text).hex() for text in wanted], Needles(wanted))
    for language in _observed_languages(home):
        if count := open_log(language).count(wanted):
            plan.observations[language] = count
    if is_url(store_address()) or store_root().is_dir():
        _find_artefacts(plan, open_store())
    plan.files, plan.databases = _other_files(home, plan.needles)
    if _has_registry(home):
        _find_adapters(plan)
    return plan


def apply_forget(plan: ForgetPlan) -> ForgetPlan:
    """Remove what `plan` lists and keep it out; safe to repeat after a kill.

    The list of forgotten ids comes first, so that nothing comes back; the rows themselves go last,
    because what else has to go is known from them.
    """
    home = compass_home()
    Forgotten(home).add(plan.ids)
    for language in plan.observations:
        open_log(language).forget(plan.ids)
    for adapter in plan.lineages:
        _repair_lineage(adapter, plan)
    for path in plan.files:
        redact_file(path, plan.needles)
    for path in plan.databases:
        try:
            redact_sqlite(path, plan.needles)
        except sqlite3.OperationalError as error:
            plan.left.append(f"{path.name} ({error}): stop what uses it and run this again")
    if is_url(store_address()) or store_root().is_dir():
        store = open_store()
        with file_lock(store.root / "locks" / "clean.lock"):
            for folder in plan.artefacts:
                store.remove(folder.parent.name, folder.name)
        (home / DAMAGED_NAME).unlink(missing_ok=True)
        if (home / CATALOG_NAME).exists():
            catalog().rebuild()
    plan.left += [
        f"{path.relative_to(home)} still holds it"
        for found in _other_files(home, plan.needles)
        for path in found
        if not any(path.name in text for text in plan.left)
    ]
    return plan


# ------------------------------------------------------------------ finding
def _observed_languages(home: Path) -> list[str]:
    return sorted(path.parent.name for path in (home / "usage").glob("*/observations"))


def _find_artefacts(plan: ForgetPlan, store: ArtifactStore) -> None:
    """List the artefacts that hold an id or a text of its row, and what has an entry for it."""
    store.mirror(set(store.kinds()) - _WEIGHTS)  # what only object storage has may hold it, too
    folders = list(_artefact_folders(store.root))
    holding = {folder for folder in folders if folder_holds(folder, plan.needles)}
    texts = {text for folder in holding for text in _texts_in(folder, plan.needles)}
    plan.needles = Needles(plan.ids, texts)
    if plan.needles.texts:
        holding |= {f for f in folders if f not in holding and folder_holds(f, plan.needles)}
    hashes = {_sha256(folder) for folder in holding} - {""}
    derived = {
        folder for folder in folders if folder.parent.name in _DERIVED and hashes & _inputs(folder)
    }
    plan.artefacts = sorted(holding | derived)


def _artefact_folders(root: Path) -> Iterator[Path]:
    for stage in sorted(root.iterdir()):
        if stage.is_dir() and stage.name not in _NO_TEXT | _WEIGHTS:
            yield from (folder for folder in sorted(stage.iterdir()) if folder.is_dir())


def _texts_in(folder: Path, needles: Needles) -> set[str]:
    found: set[str] = set()
    for path in folder.rglob("*.parquet"):
        found |= needles.texts_in(path)
    return found


def _manifest(folder: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = read_json(folder / MANIFEST_NAME)
    except (OSError, ValueError):
        return {}
    return found


def _sha256(folder: Path) -> str:
    return str(_manifest(folder).get("sha256", ""))


def _inputs(folder: Path) -> set[str]:
    """Return the content of everything that an artefact was made of."""
    provenance = _manifest(folder).get("provenance", {})
    return set(_hashes(provenance.get("inputs", {})))


def _hashes(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if {"kind", "sha256"} == value.keys():
            yield str(value["sha256"])
        for inner in value.values():
            yield from _hashes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _hashes(inner)


def _other_files(home: Path, needles: Needles) -> tuple[list[Path], list[Path]]:
    """Return files and databases outside the store (observations have their own way out)."""
    files, databases = [], []
    for path in sorted(home.rglob("*")):
        inside = path.relative_to(home).parts
        if inside[0] == "store" or "observations" in inside or not path.is_file():
            continue
        with contextlib.suppress(FileNotFoundError):
            if path.suffix in (".db", ".sqlite") and is_sqlite(path):
                if sqlite_cells(path, needles):
                    databases.append(path)
            elif file_holds(path, needles):
                files.append(path)
    return files, databases


def _has_registry(home: Path) -> bool:
    uri = tracking_uri()
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()


def _find_adapters(plan: ForgetPlan) -> None:
    """List adapters that were trained on a row, and those that stand on what goes."""
    configure_tracking()
    gone = {str(folder.relative_to(open_store().root)) for folder in plan.artefacts}
    lost = {_sha256(folder) for folder in plan.artefacts}
    for serving in registry.list_serving():
        by_role = {name: getattr(serving, name) for name in _ROLES}
        roles = {found.version: role for role, found in by_role.items() if found is not None}
        for adapter in registry.versions(serving.name):
            lineage = _lineage(adapter)
            named = _named(lineage) if lineage is not None else {}
            touched = {name for name, ref in named.items() if _touches(ref, gone)}
            if touched & _TRAINED_ON or _trained_on(adapter, lost):
                plan.trained.append((adapter, roles.get(adapter.version, "")))
            if touched and adapter.version in roles:
                plan.lineages.append(adapter)


def _lineage(adapter: registry.RegisteredAdapter) -> Lineage | None:
    with contextlib.suppress(InputError):
        return lineage_of(adapter)
    return None


def _named(lineage: Lineage) -> dict[str, ArtifactRef]:
    return dict(lineage.refs) | {f"slice {k}": ref for k, ref in lineage.slices.items()}


def _touches(ref: ArtifactRef, gone: set[str]) -> bool:
    if ref.path in gone:
        return True
    if ref.kind != "pool":
        return False
    parts = _manifest(open_store().root / ref.path).get("provenance", {}).get("parts", [])
    return not gone.isdisjoint(parts)


def _trained_on(adapter: registry.RegisteredAdapter, lost: set[str]) -> bool:
    name = adapter.tags.get("training_fingerprint", "")
    store = open_store()
    found = [store.find(kind, name) for kind in sorted(_WEIGHTS)] if name else []
    made_of = (store.manifest(ref)["provenance"].get("inputs", {}) for ref in found if ref)
    return any(lost & set(_hashes(inputs)) for inputs in made_of)


# ------------------------------------------------------------------ what adapters stand on
def _repair_lineage(adapter: registry.RegisteredAdapter, plan: ForgetPlan) -> None:
    """Let a lineage name copies without the rows; the version's tag follows."""
    lineage = _lineage(adapter)
    if lineage is None:
        return
    store = open_store()
    gone = {str(folder.relative_to(store.root)) for folder in plan.artefacts}
    refs, moved = dict(lineage.refs), np.zeros(0, dtype=np.int64)
    if "pool" in refs and _touches(refs["pool"], gone):
        refs["pool"], moved = _pool_without(refs["pool"], gone, plan)
    for name, ref in lineage.refs.items():
        if name == "sample" and len(moved):
            refs[name] = _without(ref, plan, moved)
        elif name != "pool" and ref.path in gone:
            refs[name] = _without(ref, plan)
    slices = [
        (name, _without(ref, plan) if ref.path in gone else ref)
        for name, ref in lineage.slices.items()
    ]
    made = write_lineage(
        language=lineage.language,
        embedded_by=lineage.embedded_by,
        refs=refs,
        slices=slices,
        facts=dict(lineage.facts),
    )
    registry.set_version_tags(adapter.name, adapter.version, {LINEAGE_TAG: made.fingerprint})


def _without(
    ref: ArtifactRef, plan: ForgetPlan, moved: np.ndarray[Any, Any] | None = None
) -> ArtifactRef:
    """Return a copy of an artefact without the rows.

    `moved` are the positions that left the pool: those of a selection (``indices.npy``) follow.
    """
    store = open_store()
    key = fingerprint("forgotten", ref.fingerprint, plan.hashes)
    found = store.find(ref.kind, key)
    if found is not None:
        return found
    source = store.folder(ref)
    provenance = store.manifest(ref)["provenance"] | {"inputs": {}, "forgotten_from": key}
    with store.build(ref.kind, key, provenance) as draft:
        gone = copy_without(source, draft.folder, plan.needles)
        (draft.folder / MANIFEST_NAME).unlink(missing_ok=True)
        draft.rows = ref.rows - len(gone)
        if moved is not None:
            path = draft.folder / "indices.npy"
            indices = read_array(path)
            np.save(path, indices - np.searchsorted(moved, indices), allow_pickle=False)
    return store.put(ref.kind, key, draft)


def _pool_without(
    pool: ArtifactRef, gone: set[str], plan: ForgetPlan
) -> tuple[ArtifactRef, np.ndarray[Any, Any]]:
    """Return a copy of a pool without the rows, and their positions in the whole of it."""
    store = open_store()
    shards, moved, start = [], [], 0
    for shard in pool_shards(pool):
        rows = shard["rows"]
        if rows.path not in gone:
            shards.append(shard)
        else:
            mask = plan.needles.mask_of(store.folder(rows) / "rows.parquet")
            positions = np.flatnonzero(mask)
            moved.append(start + positions)
            vectors = _vectors_without(shard["vectors"], positions, plan)
            shards.append(Corpus(rows=_without(rows, plan), vectors=vectors))
        start += rows.rows
    key = fingerprint("forgotten", pool.fingerprint, plan.hashes)
    found = store.find(pool.kind, key)
    if found is None:
        provenance = dict(store.manifest(pool)["provenance"]) | {"inputs": {}}
        provenance["parts"] = [ref.path for s in shards for ref in (s["rows"], s["vectors"])]
        with store.build(pool.kind, key, provenance) as draft:
            draft.rows = sum(shard["rows"].rows for shard in shards)
            named = [{n: s[n].to_dict() for n in ("rows", "vectors")} for s in shards]
            write_json(draft.folder / SHARDS_FILE, named)
        found = store.put(pool.kind, key, draft)
    return found, np.sort(np.concatenate([np.zeros(0, np.int64), *moved]))


def _vectors_without(
    ref: ArtifactRef, positions: np.ndarray[Any, Any], plan: ForgetPlan
) -> ArtifactRef:
    store = open_store()
    key = fingerprint("forgotten", ref.fingerprint, plan.hashes)
    found = store.find(ref.kind, key)
    if found is None:
        vectors = read_array(store.folder(ref) / VECTORS_FILE, mmap=True)
        provenance = dict(store.manifest(ref)["provenance"]) | {"inputs": {}}
        with store.build(ref.kind, key, provenance) as draft:
            np.save(draft.folder / VECTORS_FILE, np.delete(vectors, positions, axis=0))
            draft.rows = ref.rows - len(positions)
        found = store.put(ref.kind, key, draft)
    return found

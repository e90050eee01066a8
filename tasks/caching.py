"""Stages: cached tasks whose key is the content of their inputs.

A stage's key hashes its name, its explicit version, its own configuration, the sha256 of its inputs
and the versions of the libraries that change its result. The same key is the Prefect cache key and
the artefact's folder in the store. A hit needs both Prefect's record and a whole artefact; a record
whose artefact is gone is a miss, and a body that finds its artefact already there returns it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.metadata
import inspect
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, cast

import anyio.to_thread
from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE, CacheKeyFnPolicy
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.filesystems import LocalFileSystem
from prefect.locking.protocol import LockManager
from prefect.runtime import task_run
from prefect.settings import get_current_settings
from prefect.states import Completed
from prefect.transactions import IsolationLevel
from prefect.utilities.annotations import quote

from compass_core.config import Config
from compass_core.errors import StoreError
from compass_core.faults import fault_point
from compass_core.records import ArtifactRef
from compass_core.storage import ArtifactStore, Draft, fingerprint
from tasks.interruption import sleep_or_stop
from tasks.progress import note_work, pieces_of_work
from tasks.retries import RETRIED
from tasks.settings import compass_home, open_store, real_path, store_root

P = ParamSpec("P")

REHASHED = frozenset({"ingest", "embed", "sketch", "assign"})
"""Kinds whose arrays are used as they lie, memory-mapped: a flipped bit would go unnoticed."""
_PARTS = "compass_parts"
_rehashed: set[tuple[object, ...]] = set()
"""Folders, with the times of their files, that this process has hashed already."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model by where it is (never part of a key) and what it is (always part of it).

    Attributes:
        path: Local folder or hub id.
        sha256: Fingerprint of its content, or id and commit of a hub model.
    """

    path: str
    sha256: str


def key_value(value: Any) -> Any:
    """Return what identifies `value` in a key, as plain JSON.

    Raises:
        TypeError: an object whose identity is not its content (a path, a client, an array).
    """
    if isinstance(value, ArtifactRef):
        return {"kind": value.kind, "sha256": value.sha256}
    if isinstance(value, ModelRef):
        return {"model": value.sha256}
    if isinstance(value, Config):
        return value.key_values()
    if isinstance(value, (list, tuple)):
        return [key_value(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): key_value(item) for name, item in value.items()}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a cache key; pass its fingerprint.")


def stage_key(
    kind: str, version: int, params: Mapping[str, Any], libraries: tuple[str, ...]
) -> str:
    """Return the fingerprint of a stage's output."""
    versions = {name: _library_version(name) for name in libraries}
    return fingerprint(kind, version, key_value(params), versions)


@functools.cache
def _library_version(name: str) -> str:
    return importlib.metadata.version(name)


class FlockLockManager(LockManager):
    """Locks held by the kernel: they vanish with their process, so none is ever stale."""

    def __init__(self, poll_seconds: float = 0.05) -> None:
        self.poll_seconds = poll_seconds
        self._held: dict[str, tuple[str, int]] = {}
        self._guard = threading.Lock()

    def __getstate__(self) -> dict[str, float]:
        return {"poll_seconds": self.poll_seconds}

    def __setstate__(self, state: dict[str, float]) -> None:
        FlockLockManager.__init__(self, **state)

    def __deepcopy__(self, memo: dict[int, Any]) -> FlockLockManager:
        return self

    def _path(self, key: str) -> Path:
        folder = store_root() / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{key}.lock"

    def _try(self, key: str, holder: str) -> bool:
        with self._guard:
            if key in self._held:
                return self._held[key][0] == holder
            descriptor = os.open(self._path(key), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._held[key] = (holder, descriptor)
            return True

    def acquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        """Wait for the lock, at most `acquire_timeout` seconds; it is held until released.

        Raises:
            CompassError: the run was asked to stop while it waited.
        """
        deadline = None if acquire_timeout is None else time.monotonic() + acquire_timeout
        while not self._try(key, holder):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            sleep_or_stop(self.poll_seconds)
        return True

    async def aacquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        """Wait for the lock in a thread."""
        return await anyio.to_thread.run_sync(
            functools.partial(self.acquire_lock, key, holder, acquire_timeout, hold_timeout)
        )

    def release_lock(self, key: str, holder: str) -> None:
        """Give the lock back; the file stays, because unlinking it would race with a waiter."""
        with self._guard:
            if key in self._held and self._held[key][0] == holder:
                os.close(self._held.pop(key)[1])

    def is_locked(self, key: str) -> bool:
        """Return whether this or another process holds the lock."""
        probe = f"probe-{threading.get_ident()}"
        if self._try(key, probe):
            self.release_lock(key, probe)
            return False
        return True

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Return whether `holder` holds the lock."""
        with self._guard:
            return key in self._held and self._held[key][0] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until the lock is free, at most `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.is_locked(key):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(self.poll_seconds)
        return True

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait in a thread until the lock is free."""
        return await anyio.to_thread.run_sync(self.wait_for_lock, key, timeout)


class VerifyingKeyStore(LocalFileSystem):
    """Prefect's cache records, believed only while the artefact they speak of is whole."""

    _block_type_name = "COMPASS Key Store"
    _block_type_slug = "compass-key-store"

    def _resolve_path(self, path: str) -> Path:
        base, name = compass_home() / "store" / "keys", Path(path).name
        if name in ("", "..") or (base / name).is_symlink():
            raise ValueError(f"{path!r} is not a cache key")
        if not base.is_dir():
            base.mkdir(parents=True, exist_ok=True, mode=0o700)
        return base / name

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]
        """Return the record of key `path`; fail like a missing file without its artefact.

        A record names its result by an absolute path. Where another process, such as a worker,
        keeps its results elsewhere, the record is of no use here, and the stage finds the artefact.
        """
        kind, _, key = Path(path).name.rpartition("-")
        if _whole(open_store(), kind, key) is None:
            raise FileNotFoundError(path)
        record = self._resolve_path(path).read_bytes()
        results = real_path(get_current_settings().results.local_storage_path)
        named = Path(os.path.normpath(results / json.loads(record)["storage_key"]))
        if named.is_symlink() or not (named.is_relative_to(results) and named.is_file()):
            raise FileNotFoundError(path)
        return record


def part(
    kind: str, version: int, *, libraries: tuple[str, ...] = (), alone: bool = False
) -> Callable[[Callable[Concatenate[Draft, P], None]], Callable[P, ArtifactRef]]:
    """Turn ``body(draft, **params)`` into a function that makes its artefact once.

    A stage is such a function run as a task. Stages use parts for what several of them share and
    for pieces, such as one shard, that stay as they are when others are added.

    Args:
        kind: Name of the artefact's folder in the store.
        version: Raise it when the body's result changes.
        libraries: Distributions whose version is part of the key.
        alone: Whether everybody else who wants this artefact waits while it is made.
    """

    def decorate(body: Callable[Concatenate[Draft, P], None]) -> Callable[P, ArtifactRef]:
        parameters = list(inspect.signature(body).parameters.values())[1:]
        public = inspect.signature(body).replace(parameters=parameters)

        @functools.wraps(body)
        def produce(*args: P.args, **kwargs: P.kwargs) -> ArtifactRef:
            bound = public.bind(*args, **kwargs)
            bound.apply_defaults()
            store = open_store()
            key = stage_key(kind, version, bound.arguments, libraries)
            found = _known(store, kind, key) if alone else _whole(store, kind, key)
            if found is not None:
                return found
            provenance = {
                "stage_version": version,
                "inputs": cast(dict[str, Any], key_value(bound.arguments)),
            }
            language = str(bound.arguments.get("language", ""))
            with _lock_of(kind, key) if alone else contextlib.nullcontext():
                found = _whole(store, kind, key) if alone else None
                if found is not None:
                    return found
                with store.build(kind, key, provenance) as draft:
                    fault_point(f"{kind}.begin", language)
                    body(draft, *args, **kwargs)
                    fault_point(f"{kind}.built", language)
                found = store.put(kind, key, draft)
            note_work()
            fault_point(f"{kind}.published", language)
            _log(found)
            return found

        return produce

    return decorate


@contextlib.contextmanager
def _lock_of(kind: str, key: str) -> Iterator[None]:
    """Hold the lock that Prefect holds while the stage of this key runs."""
    locks, name = FlockLockManager(), f"{kind}-{key}"
    locks.acquire_lock(name, "part")
    try:
        yield
    finally:
        locks.release_lock(name, "part")


def _whole(store: ArtifactStore, kind: str, key: str) -> ArtifactRef | None:
    """Return the finished artefact; of a kind that is read as it lies, its content is re-hashed.

    A damaged one is moved aside, so that it is made anew and never used.
    """
    found = store.find(kind, key)
    if found is None:
        return None
    try:
        state = _unhashed(store, found)
        if state is None:
            return found
        store.verify(found)
    except (StoreError, OSError) as error:
        _say(logging.WARNING, "%s It is made anew.", error)
        store.set_aside(found)
        return store.find(kind, key)  # object storage may have a good one; a folder has none
    _rehashed.add(state)
    return found


def _known(store: ArtifactStore, kind: str, key: str) -> ArtifactRef | None:
    """Return the finished artefact if nothing has to be hashed, which is for one at a time."""
    found = store.find(kind, key)
    try:
        return None if found is None or _unhashed(store, found) is not None else found
    except OSError:  # somebody is moving a damaged one aside
        return None


def _unhashed(store: ArtifactStore, found: ArtifactRef) -> tuple[object, ...] | None:
    """Return what tells the files of an artefact from others, if they have to be hashed first."""
    folder = store.root / found.path
    if found.kind not in REHASHED or not folder.is_dir():
        return None  # only object storage has it: a download is verified
    state = (str(folder), *sorted(path.stat().st_mtime_ns for path in folder.iterdir()))
    return None if state in _rehashed else state


class Stage(Task[P, dict[str, Any]]):
    """A cached task that returns an artefact's reference.

    Attributes:
        part: Makes or finds the same artefact without a task run.
    """

    part: Callable[P, ArtifactRef]

    def with_options(self, *args: Any, **kwargs: Any) -> Stage[P]:
        """Return the stage with other options of its task; its part stays as it is."""
        changed = cast(Stage[P], super().with_options(*args, **kwargs))
        changed.part = self.part
        return changed


def stage(
    kind: str, version: int, *, libraries: tuple[str, ...] = ()
) -> Callable[[Callable[Concatenate[Draft, P], None]], Stage[P]]:
    """Turn ``body(draft, **params)`` into a cached task that returns an artefact's reference.

    Args:
        kind: Name of the stage and of its folder in the store.
        version: Raise it when the body's result changes; reviewed like a migration.
        libraries: Distributions whose version is part of the key.
    """

    def decorate(body: Callable[Concatenate[Draft, P], None]) -> Stage[P]:
        signature = inspect.signature(body)
        parameters = list(signature.parameters.values())[1:]
        public = signature.replace(parameters=parameters, return_annotation=dict[str, Any])
        produce = part(kind, version, libraries=libraries)(body)

        @functools.wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
            return produce(*args, **kwargs).to_dict()

        run.__signature__ = public  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}

        def cache_key(_context: TaskRunContext, params: dict[str, Any]) -> str:
            return f"{kind}-{stage_key(kind, version, params, libraries)}"

        policy = CacheKeyFnPolicy(cache_key_fn=cache_key).configure(
            key_storage=VerifyingKeyStore(),
            isolation_level=IsolationLevel.SERIALIZABLE,
            lock_manager=FlockLockManager(),
        )
        made: Stage[P] = Stage(
            fn=cast(Callable[P, dict[str, Any]], run),
            name=kind,
            task_run_name=_name_of_run,
            cache_policy=policy,
            persist_result=True,
            result_serializer="json",
            **RETRIED,
        )
        made.part = part(kind, version, libraries=libraries, alone=True)(body)
        return made

    return decorate


def stage_of_parts(
    name: str,
) -> Callable[
    [Callable[P, Iterator[tuple[str, ArtifactRef]]]], Task[P, State[dict[str, dict[str, Any]]]]
]:
    """Turn a generator of parts, by name, into one task; it ends *Cached* if it made none.

    A task run costs Prefect more than finding an artefact does, so what a language always needs
    together is one run. Prefect keeps no record of it: every part looks in the store. An exception
    names the parts that were done before it: see `parts_before`.

    Args:
        name: Name of the stage.
    """

    def decorate(
        body: Callable[P, Iterator[tuple[str, ArtifactRef]]],
    ) -> Task[P, State[dict[str, dict[str, Any]]]]:
        @functools.wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> State[dict[str, dict[str, Any]]]:
            before, refs = pieces_of_work(), {}
            try:
                for part, ref in body(*args, **kwargs):
                    refs[part] = ref.to_dict()
            except Exception as error:
                error.__dict__[_PARTS] = refs
                raise
            context = TaskRunContext.get()
            repeated = context is not None and context.task_run.run_count > 1
            if repeated or pieces_of_work() > before:
                return Completed(data=refs)
            return Completed(name="Cached", data=refs)

        return Task(
            fn=run,
            name=name,
            task_run_name=_name_of_run,
            cache_policy=NO_CACHE,
            **RETRIED,
        )

    return decorate


def _log(made: ArtifactRef) -> None:
    kilobytes = made.bytes / 1000
    _say(
        logging.INFO, "%s: %d rows, %.1f kB in store/%s", made.kind, made.rows, kilobytes, made.path
    )


def _say(level: int, message: str, *values: Any) -> None:
    with contextlib.suppress(MissingContextError):  # a stage called outside of any run
        get_run_logger().log(level, message, *values)


def _name_of_run() -> str:
    """Return what the interface calls this task run: stage, part and language."""
    given = {name: _unquoted(value) for name, value in task_run.parameters.items()}
    part = given.get("role") or getattr(given.get("config"), "strategy", "")
    words = (task_run.task_name, part, given.get("language") or "all languages")
    return " ".join(str(word) for word in words if word)


def as_it_is(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's parameters marked as holding nothing that Prefect has to wait for.

    It would search every reference and setting for futures, several times per run, which costs
    more than everything else about a cached stage.
    """
    plain = (str, int, float, type(None))
    return {n: v if isinstance(v, plain) else quote(v) for n, v in parameters.items()}


def _unquoted(value: Any) -> Any:
    return value.unquote() if isinstance(value, quote) else value


def as_ref(value: Mapping[str, Any]) -> ArtifactRef:
    """Return a stage's result as a reference."""
    return ArtifactRef.from_dict(value)


def as_refs(state: State[dict[str, dict[str, Any]]]) -> dict[str, ArtifactRef]:
    """Return the result of a stage of parts as references."""
    return {name: as_ref(value) for name, value in state.result().items()}


def parts_before(error: BaseException) -> dict[str, ArtifactRef]:
    """Return what a stage of parts had done when it failed with `error`."""
    return {name: as_ref(value) for name, value in error.__dict__.get(_PARTS, {}).items()}


__all__ = [
    "FlockLockManager",
    "ModelRef",
    "Stage",
    "VerifyingKeyStore",
    "as_it_is",
    "as_ref",
    "as_refs",
    "key_value",
    "part",
    "parts_before",
    "stage",
    "stage_key",
    "stage_of_parts",
]

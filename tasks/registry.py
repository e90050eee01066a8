"""MLflow's model registry: adapters as versions, and which of them serves.

A version is registered from the raw files of one adapter (safetensors, no base, no code), checked
after the upload, and addressed by three aliases: ``champion`` serves, ``challenger`` is the last
candidate, ``previous`` is what a rollback returns to. Aliases have no compare-and-set, so what
moves one holds a kernel lock per model and names the champion it expects. Every function may be
called again after a crash and finishes what was begun. An alias is never trusted by itself: files
are hashed at registration, promotion and download.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compass_core.adapter_files import adapter_file_hashes, combined_sha256
from compass_core.errors import ModelError, StoreError, TransientError
from compass_core.faults import fault_point
from compass_core.storage import file_lock
from tasks import tracking
from tasks.registry_files import (
    download_adapter,
    fetch_adapter,
    fetched,
    require_same,
    restore_if_damaged,
    verify,
)
from tasks.registry_reading import (
    CHALLENGER,
    CHAMPION,
    GATE_TAG,
    MODEL_TAG,
    NO_CHAMPION,
    NOTE_TAG,
    OVER_TAG,
    PREVIOUS,
    ROLLED_BACK_TAG,
    SCORE_TAGS,
    SHA_TAG,
    SINCE_TAG,
    VERDICT_TAG,
    RegisteredAdapter,
    Serving,
    by_alias,
    challenger,
    champion,
    get_version,
    list_serving,
    model_name,
    require_name,
    require_version,
    search_versions,
    versions,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "NOTE_TAG",
    "SCORE_TAGS",
    "RegisteredAdapter",
    "Serving",
    "by_alias",
    "challenger",
    "champion",
    "download_adapter",
    "fetch_adapter",
    "get_version",
    "list_serving",
    "model_name",
    "promote",
    "record_verdict",
    "register_adapter",
    "rollback",
    "says_verdict",
    "set_challenger",
    "set_version_tags",
    "verify",
    "versions",
]

_ALIAS_TIMEOUT_SECONDS = 60.0
_REGISTER_TIMEOUT_SECONDS = 1_800.0


def register_adapter(
    name: str,
    adapter_folder: Path,
    *,
    run_id: str,
    tags: Mapping[str, Any],
    check: Callable[[Path], None] | None = None,
) -> str:
    """Register the adapter in `adapter_folder` and return its version.

    The same files under the same name are one version, however often this is called; files of that
    version that were damaged meanwhile are restored.

    Args:
        name: From `model_name`.
        adapter_folder: Only adapter files, see `compass_core.adapter_files`.
        run_id: Run that trained it; the version belongs to the run's experiment.
        tags: Lineage (fingerprints, base id, revision and hash, strategy, budget, flow run).
        check: Called with a folder read back from MLflow; raises to refuse the adapter. This is
            the place to reload it and compare logits.

    Raises:
        ModelError: the folder is no whole adapter, or what MLflow gives back differs (E29).
        TransientError: MLflow or the lock is busy.
    """
    require_name(name)
    hashes = adapter_file_hashes(adapter_folder)
    sha256 = combined_sha256(hashes)
    all_tags = {**_tag_values(tags), SHA_TAG: sha256, MODEL_TAG: name}
    with _model_lock(name, _REGISTER_TIMEOUT_SECONDS):
        version = _only_version(name, sha256)
        if version is not None:
            restore_if_damaged(version, adapter_folder)
            return version.version
        with tracking.mlflow_errors(f"log the adapter {name}"):
            model_id = _logged_model(name, adapter_folder, run_id, all_tags, check)
        fault_point("promote.uploaded")
        with tracking.mlflow_errors(f"register {name}"):
            return _create_version(name, model_id, run_id, all_tags)


def _logged_model(
    name: str,
    folder: Path,
    run_id: str,
    tags: Mapping[str, str],
    check: Callable[[Path], None] | None,
) -> str:
    """Upload and check the files; READY means checked. Continues what a killed call left."""
    client = tracking.client()
    experiment = client.get_run(run_id).info.experiment_id
    model = _unfinished_model(client, experiment, tags)
    if model is None:
        model = client.create_logged_model(
            experiment,
            name=name.replace(".", "-"),
            source_run_id=run_id,
            tags=dict(tags),
            model_type="adapter",
        )
    if str(model.status) != "READY":
        client.log_model_artifacts(model.model_id, str(folder))
        try:
            with fetched(model.artifact_location) as copy:
                require_same(copy, tags[SHA_TAG], name)
                if check is not None:
                    check(copy)
        except BaseException:
            client.finalize_logged_model(model.model_id, "FAILED")
            raise
        client.finalize_logged_model(model.model_id, "READY")
    _link_to_run(client, run_id, model.model_id)
    return str(model.model_id)


def _unfinished_model(client: Any, experiment: str, tags: Mapping[str, str]) -> Any | None:
    found = client.search_logged_models(
        [experiment],
        f"tags.{SHA_TAG} = '{tags[SHA_TAG]}' AND tags.{MODEL_TAG} = '{tags[MODEL_TAG]}'",
    )
    usable = [model for model in found if str(model.status) in ("READY", "PENDING")]
    return min(usable, key=lambda model: model.creation_timestamp) if usable else None


def _link_to_run(client: Any, run_id: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    linked = [output.model_id for output in (outputs.model_outputs if outputs else [])]
    if model_id not in linked:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _create_version(name: str, model_id: str, run_id: str, tags: Mapping[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    client = tracking.client()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run_id,
        tags={tag: value for tag, value in tags.items() if tag != NOTE_TAG},
        description=tags.get(NOTE_TAG),
        model_id=model_id,
    )
    made = _only_version(name, tags[SHA_TAG])
    if made is None:
        raise TransientError(f"The version of {name} that was registered cannot be found.")
    return made.version


def _only_version(name: str, sha256: str) -> RegisteredAdapter | None:
    """Return the version of these files, or None; take away twins of it that nobody judged.

    An answer that is lost makes the client, and then the task, ask again: each makes one.
    """
    found = search_versions(f"name = '{name}' AND tags.{SHA_TAG} = '{sha256}'")
    if not found:
        return None
    first, *others = sorted(found, key=lambda entry: int(entry.version))
    for twin in others:
        if twin.run_id == first.run_id and GATE_TAG not in twin.tags:
            _take_away(name, twin.version)
    return first


def _take_away(name: str, version: str) -> None:
    """Delete a version that nobody points at; the answer to this may be lost as well."""
    from mlflow.exceptions import MlflowException

    known = get_version(name, version)  # a search tells no aliases
    if known is None or known.aliases:
        return
    with tracking.mlflow_errors(f"take away version {version} of {name}"):
        try:
            tracking.client().delete_model_version(name, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def record_verdict(
    name: str,
    version: str,
    *,
    promote: bool,
    reasons: Sequence[str],
    tags: Mapping[str, Any] | None = None,
) -> None:
    """Keep the gate's decision and its reasons as tags of the version."""
    set_version_tags(name, version, _verdict_tags(promote, reasons, tags))


def says_verdict(
    version: RegisteredAdapter,
    *,
    promote: bool,
    reasons: Sequence[str],
    tags: Mapping[str, Any] | None = None,
) -> bool:
    """Return whether `record_verdict` with these values would change nothing."""
    wanted = _tag_values(_verdict_tags(promote, reasons, tags))
    return all(version.tags.get(key) == value for key, value in wanted.items())


def _verdict_tags(
    promote: bool, reasons: Sequence[str], tags: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        GATE_TAG: "passed" if promote else "failed",
        VERDICT_TAG: "; ".join(reasons),
        **(tags or {}),
    }


def set_version_tags(name: str, version: str, tags: Mapping[str, Any]) -> None:
    """Set tags of one version; those that already have the value are left alone."""
    known = require_version(name, version)
    client = tracking.client()
    with tracking.mlflow_errors(f"tag version {version} of {name}"):
        for key, value in _tag_values(tags).items():
            if known.tags.get(key) != value:
                client.set_model_version_tag(name, version, key, value)


def set_challenger(name: str, version: str) -> None:
    """Make `version` the challenger."""
    require_version(name, version)
    with _model_lock(name):
        _point(name, CHALLENGER, version)


def promote(
    name: str, version: str, *, expected_champion: str | None, again: bool = False
) -> RegisteredAdapter:
    """Make `version` the champion and the champion of now the previous one.

    The champion's alias moves last, after the files were hashed. Promoting the champion changes
    nothing.

    Args:
        name: Registered model.
        version: Version to promote.
        expected_champion: Version that the candidate was compared with; None for the base alone.
        again: Promote a version that was rolled back before.

    Raises:
        TransientError: the champion is not the expected one any more; compare again.
        ModelError: the version does not exist or was rolled back (E53), or its files are not the
            registered ones (E29).
    """
    with _model_lock(name):
        candidate = require_version(name, version)
        verify(candidate)
        current = champion(name)
        if current is None or current.version != version:
            _require_expected(name, current, expected_champion)
            if candidate.rolled_back and not again:
                raise ModelError(
                    f"Version {version} of {name} was rolled back. Train a new adapter, or promote "
                    "it on purpose with `again`.",
                    code="E53",
                )
            over = _version_of(current)
            marks = {OVER_TAG: over or NO_CHAMPION, ROLLED_BACK_TAG: "false"}
            set_version_tags(name, version, marks | _since_now())
            _point(name, PREVIOUS, over)
            fault_point("promote.previous")
            _point(name, CHAMPION, version)
            fault_point("promote.champion")
        candidate_now = challenger(name)
        if candidate_now is not None and candidate_now.version == version:
            _point(name, CHALLENGER, None)
    return require_version(name, version)


def rollback(name: str, *, expected_champion: str | None = None) -> RegisteredAdapter | None:
    """Take the champion out of service and bring back the one it replaced.

    Versions that were rolled back themselves are passed over.

    Args:
        name: Registered model.
        expected_champion: Version to take out. With it the call may be repeated safely; without
            it every call goes back one more step.

    Returns:
        The champion afterwards; None when the first champion was taken out, so the base serves.

    Raises:
        ModelError: there is no champion or the earlier one is gone (E53), or its files are
            damaged (E29). Nothing has changed then.
        TransientError: the champion is not the expected one.
    """
    with _model_lock(name):
        current = champion(name)
        found = _version_of(current)
        if expected_champion is not None and found != expected_champion:
            left = require_version(name, expected_champion)
            if not left.rolled_back or found != _version_of(_before(name, left)):
                _require_expected(name, current, expected_champion)
            return _settle_previous(name, current)
        if current is None:
            raise ModelError(
                f"{name} has no champion, so there is nothing to roll back; the base serves. "
                "`compass adapt` trains and promotes one.",
                code="E53",
            )
        target = _before(name, current)
        if target is not None:
            verify(target)
            set_version_tags(name, target.version, _since_now())
        set_version_tags(name, current.version, {ROLLED_BACK_TAG: "true"})
        _point(name, CHAMPION, _version_of(target))
        return _settle_previous(name, target)


def _since_now() -> dict[str, str]:
    return {SINCE_TAG: datetime.now(UTC).isoformat(timespec="seconds")}


def _before(name: str, current: RegisteredAdapter) -> RegisteredAdapter | None:
    """Return what `current` replaced; None where that was the base."""
    seen = {current.version}
    over = current.tags.get(OVER_TAG, NO_CHAMPION)
    while over != NO_CHAMPION and over not in seen:
        target = get_version(name, over)
        if target is None:
            raise ModelError(
                f"Version {current.version} of {name} replaced version {over}, which is gone from "
                "the registry, so there is nothing to roll back to. Promote another version; the "
                "champion stays until then.",
                code="E53",
            )
        if not target.rolled_back:
            return target
        seen.add(over)
        over = target.tags.get(OVER_TAG, NO_CHAMPION)
    return None


def _settle_previous(name: str, current: RegisteredAdapter | None) -> RegisteredAdapter | None:
    previous = None
    if current is not None:
        with contextlib.suppress(ModelError):
            previous = _before(name, current)
    _point(name, PREVIOUS, _version_of(previous))
    return None if current is None else get_version(name, current.version)


def _version_of(adapter: RegisteredAdapter | None) -> str | None:
    return None if adapter is None else adapter.version


def _require_expected(name: str, current: RegisteredAdapter | None, expected: str | None) -> None:
    found = _version_of(current)
    if found != expected:
        raise TransientError(
            f"The champion of {name} is {_spoken(found)}, not {_spoken(expected)} as expected: "
            "another run promoted meanwhile. Evaluate against the new champion and decide again."
        )


def _spoken(version: str | None) -> str:
    return "the base alone" if version is None else f"version {version}"


def _point(name: str, alias: str, version: str | None) -> None:
    """Make `alias` point at `version`, or at nothing; a call that changes nothing is no write."""
    client = tracking.client()
    now = by_alias(name, alias)
    if _version_of(now) == version:
        return
    with tracking.mlflow_errors(f"move {name}@{alias}"):
        if version is None:
            client.delete_registered_model_alias(name, alias)
        else:
            client.set_registered_model_alias(name, alias, version)


@contextlib.contextmanager
def _model_lock(name: str, timeout_seconds: float = _ALIAS_TIMEOUT_SECONDS) -> Iterator[None]:
    """Hold the kernel lock of one registered model; contention may be retried."""
    require_name(name)
    path = tracking.connection().artifact_root / ".locks" / f"{name}.lock"
    lock = file_lock(path, timeout_seconds=timeout_seconds)
    try:
        lock.__enter__()
    except StoreError as error:
        raise TransientError(f"Another process is changing {name}: {error.message}") from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _tag_values(tags: Mapping[str, Any]) -> dict[str, str]:
    return {
        str(name): tracking.as_text(value, tracking.MAX_TAG_LENGTH) for name, value in tags.items()
    }

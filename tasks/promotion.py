"""Register what was trained, decide, and move the champion: uncached and safe to repeat.

A cached "registered" would survive a wiped registry, so nothing here is cached but the decision,
which depends on scores alone.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from compass_core.adaptation.bases import base_slug
from compass_core.adaptation.checks import check_adapter_job
from compass_core.adapter_files import adapter_sha256
from compass_core.config import BaseConfig, ExecutionConfig, PromotionConfig
from compass_core.errors import ModelError, RegistrationPendingError, TransientError
from compass_core.evaluation.gate import decide as decide_gate
from compass_core.faults import fault_point
from compass_core.records import ArtifactRef
from compass_core.storage import Draft, file_lock, fingerprint, read_json, read_table, write_json
from tasks import registry, tracking
from tasks.caching import ModelRef, stage
from tasks.compute import run_job
from tasks.evaluation import covered_mask
from tasks.lineage import LINEAGE_TAG
from tasks.retries import RETRIED, with_retries
from tasks.settings import compass_home, open_store, tracking_uri


def configure_tracking() -> None:
    """Point this process at the MLflow store and create its schema once."""
    tracking.configure(tracking_uri(), compass_home() / "mlartifacts")


_OF_ONE_RUN = frozenset({"prefect_flow_run_id", registry.NOTE_TAG})
"""Tags of an attempt that say where it was made; repeated by another run it is still the same."""


def registered_name(base_name: str, base: ModelRef, language: str) -> str:
    """Return the registered model of a language on a base (`base_name` as the user wrote it)."""
    slug = base_slug(base.path, "starter" if base_name == "starter" else "")
    return registry.model_name(slug, language)


@task(name="check-registry", cache_policy=NO_CACHE)
def check_registry() -> None:
    """Refuse to train for hours towards a registry that nobody can reach.

    Raises:
        TransientError: E95, the registry does not answer.
    """
    try:
        with _loading():
            configure_tracking()
            with tracking.mlflow_errors("answer"):
                tracking.client().search_registered_models(max_results=1)
    except TransientError as error:
        raise TransientError(
            f"{error.message} Nothing was trained. Start the server, or correct "
            "MLFLOW_TRACKING_URI; without it a file under COMPASS_HOME is the registry.",
            code="E95",
        ) from error


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Let Python's collector leave alone what is loaded before and in the block.

    Prefect's and MLflow's objects stay until the process ends. Looking at all 400,000 of them again
    and again is a tenth of a run that finds everything cached. What is garbage at that moment stays
    too, so it is done once.
    """
    if "mlflow" in sys.modules:
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.freeze()


@contextlib.contextmanager
def pending_without_registry(language: str) -> Iterator[None]:
    """Say that what is trained is kept when the registry cannot be told about it.

    Raises:
        RegistrationPendingError: the registry was busy or unreachable for longer than the retries.
    """
    try:
        yield
    except TransientError as error:
        if error.code != TransientError.code:
            raise  # a trainer that died, say: nothing that the registry could be blamed for
        raise RegistrationPendingError(
            f"The adapter of {language} is trained, scored and kept, but its registration is "
            f"pending: {error.message} Run the same command again: it registers without training."
        ) from error


def find_champion(name: str) -> dict[str, str] | None:
    """Return version, hash and verified folder of the adapter in service, or None."""
    return with_retries(functools.partial(_find_champion, name))


def _find_champion(name: str) -> dict[str, str] | None:
    configure_tracking()
    champion = registry.champion(name)
    if champion is None:
        return None
    folder = compass_home() / "serving" / champion.adapter_sha256[:32]
    registry.fetch_adapter(champion, folder)
    return {
        "version": champion.version,
        "adapter_sha256": champion.adapter_sha256,
        "path": str(folder),
        "lineage": champion.tags.get(LINEAGE_TAG, ""),
        "half_moved": "yes" if registry.CHALLENGER in champion.aliases else "",
    }


def finish_promotion(name: str, version: str) -> None:
    """Finish what a killed process may have left of the promotion of the champion `version`."""
    configure_tracking()
    registry.promote(name, version, expected_champion=version)


def is_settled(champion: dict[str, str]) -> bool:
    """Return whether nothing is left to do for a champion: see `settle_champion`."""
    return not champion["half_moved"] and _has_lineage(champion)


def _has_lineage(champion: dict[str, str]) -> bool:
    named = champion["lineage"]
    return bool(named) and open_store().find("lineage", named) is not None


@task(
    name="settle-champion",
    task_run_name="settle-champion-{language}",
    cache_policy=NO_CACHE,
    **RETRIED,
)
def settle_champion(
    language: str, name: str, champion: dict[str, str], lineage: ArtifactRef
) -> None:
    """Finish a promotion that was interrupted, and name what the champion stands on.

    The lineage is written where the version does not say it, or names what is gone.
    """
    configure_tracking()
    version = champion["version"]
    if champion["half_moved"]:
        finish_promotion(name, version)
    if not _has_lineage(champion):
        registry.set_version_tags(name, version, {LINEAGE_TAG: lineage.fingerprint})


def was_rolled_back(name: str, adapter_sha256: str) -> str | None:
    """Return the version of this very adapter that was taken out of service, or None."""

    def versions() -> list[registry.RegisteredAdapter]:
        configure_tracking()
        return registry.versions(name)

    found = [
        v.version
        for v in with_retries(versions)
        if v.rolled_back and v.adapter_sha256 == adapter_sha256
    ]
    return found[0] if found else None


@stage("decision", 1)
def decide(
    draft: Draft,
    language: str,
    before: ArtifactRef,
    after: ArtifactRef,
    groups: dict[str, ArtifactRef],
    config: PromotionConfig,
) -> None:
    """Compare the challenger with what serves now, item by item: ``decision.json``."""
    store = open_store()
    verdict = decide_gate(
        read_table(store.folder(before) / "items.parquet"),
        read_table(store.folder(after) / "items.parquet"),
        covered_mask(groups),
        config,
    )
    draft.rows = verdict.n_items
    draft.provenance |= {"language": language}
    write_json(draft.folder / "decision.json", verdict.to_dict() | {"language": language})


def read_decision(ref: ArtifactRef) -> dict[str, Any]:
    """Return the verdict that `decide` wrote."""
    decision: dict[str, Any] = read_json(open_store().folder(ref) / "decision.json")
    return decision


@task(
    name="promote",
    task_run_name="promote-{language}",
    cache_policy=NO_CACHE,
    **RETRIED,
)
def register_and_promote(
    language: str,
    name: str,
    attempt: dict[str, Any],
    verdict: dict[str, Any],
    base: ModelRef,
    base_config: BaseConfig,
    execution: ExecutionConfig,
) -> dict[str, str]:
    """Log the attempt, register its adapter, and make it the champion if the verdict says so.

    Args:
        language: Canonical code.
        name: Registered model.
        attempt: ``experiment``, ``run_name``, ``params``, ``tags``, ``metrics``, ``datasets``,
            ``history`` (rows with step), ``adapter`` (folder) and, of an update, ``files`` (kept
            with the run).
        verdict: ``promote``, ``reasons`` and ``champion`` (version in service, or None).
        base: The base model, for the reload check.
        base_config: Its dtype and device.
        execution: Where the reload check runs.

    Returns:
        ``run_id``, ``version`` and ``status`` (promoted or kept).
    """
    configure_tracking()
    identity = fingerprint(name, attempt["params"], attempt["metrics"], verdict["champion"] or "")
    known = None if verdict["promote"] else _kept_before(name, identity, attempt, verdict)
    if known is not None:
        return known
    run_id = tracking.start_run(
        attempt["experiment"],
        attempt["run_name"],
        tags=attempt["tags"],
        params=attempt["params"],
        attempt=identity,
    )
    fault_point("promote.run", language)
    if not tracking.is_finished(run_id):  # one that is was told in full by an earlier run
        _log_attempt(run_id, attempt)

    def check(folder: Path) -> None:
        spec = {
            "base": base_config.model_dump(mode="json") | {"model": base.path},
            "trained_folder": attempt["adapter"],
            "stored_folder": str(folder),
        }
        run_job(check_adapter_job, spec, execution, language=language, stage="register")

    fault_point("promote.logged", language)
    version = registry.register_adapter(
        name, Path(attempt["adapter"]), run_id=run_id, tags=attempt["tags"], check=check
    )
    fault_point("promote.registered", language)
    # The same files may have been tried before: what this attempt stands on is what counts now.
    registry.record_verdict(
        name,
        version,
        promote=verdict["promote"],
        reasons=verdict["reasons"],
        tags=_version_tags(attempt),
    )
    fault_point("promote.judged", language)
    registry.set_challenger(name, version)
    # Before the champion moves: a later run that finds it in service looks no further.
    tracking.finish_run(run_id)
    if verdict["promote"]:
        registry.promote(name, version, expected_champion=verdict["champion"])
    else:
        registry.set_version_tags(name, version, {tracking.ATTEMPT_TAG: f"{identity} {run_id}"})
    fault_point("promote.moved", language)
    return {
        "run_id": run_id,
        "version": version,
        "status": "promoted" if verdict["promote"] else "kept",
    }


def _kept_before(
    name: str, identity: str, attempt: dict[str, Any], verdict: dict[str, Any]
) -> dict[str, str] | None:
    """Return what this very attempt came to when it was told before.

    None if anything is new, or if the version's files are damaged and have to be restored.
    """
    version = registry.challenger(name)
    if version is None:
        return None
    told_as, _, run_id = version.tags.get(tracking.ATTEMPT_TAG, "").partition(" ")
    if told_as != identity or version.adapter_sha256 != adapter_sha256(Path(attempt["adapter"])):
        return None
    told = {tag: value for tag, value in _version_tags(attempt).items() if tag not in _OF_ONE_RUN}
    if not registry.says_verdict(version, promote=False, reasons=verdict["reasons"], tags=told):
        return None
    try:
        registry.verify(version)
    except ModelError:
        return None
    return {"run_id": run_id, "version": version.version, "status": "kept"}


def _version_tags(attempt: dict[str, Any]) -> dict[str, Any]:
    """Return the tags of an attempt's version, with its scores: who asks them reads no run."""
    scores = {name: attempt["metrics"].get(name) for name in registry.SCORE_TAGS}
    return {**attempt["tags"], **{name: v for name, v in scores.items() if v is not None}}


def _log_attempt(run_id: str, attempt: dict[str, Any]) -> None:
    # The pool is the same data set in every language: MLflow inserts it twice when two ask at once.
    with file_lock(compass_home() / "mlartifacts" / ".locks" / "inputs.lock"):
        tracking.log_inputs(run_id, attempt["datasets"])
    tracking.log_history(run_id, attempt["history"])
    tracking.log_metrics(run_id, attempt["metrics"])
    for path in attempt.get("files", ()):
        tracking.log_file(run_id, Path(path), "update")

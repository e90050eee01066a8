"""How a run over several languages ends, decided on purpose."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed

from tasks.progress import beat
from tasks.reporting import failed_languages, failed_outcome, named

Key = TypeVar("Key", str, tuple[str, int])
COMPLETED_WITH_FAILURES = "CompletedWithFailures"


def collect(
    futures: Mapping[Key, PrefectFuture[Any]], refused: Collection[tuple[str, int]] = ()
) -> dict[Key, dict[str, Any]]:
    """Wait for every language; a failure becomes that language's outcome and nobody else's.

    Args:
        futures: By language, or by language and seed.
        refused: Languages and seeds whose failure was reported when it was found.
    """
    return {key: outcome_of(key, future, refused) for key, future in futures.items()}


def outcome_of(
    key: Key, future: PrefectFuture[Any], refused: Collection[tuple[str, int]] = ()
) -> dict[str, Any]:
    """Wait for one language and return its outcome; see `collect`."""
    try:
        found = future.result(raise_on_failure=False)
    except Exception as error:  # its worker process died, and the engine gave it up
        found = error
    if not isinstance(found, BaseException):
        outcome: dict[str, Any] = found
        return outcome
    language = language_of(key)
    if language not in {code for code, _seed in refused}:
        beat(language, "adapt", "failed", detail=str(found))
    return failed_outcome(language, found)


def language_of(key: Key) -> str:
    """Return the language of a cell."""
    return key if isinstance(key, str) else key[0]


def run_state(record: Mapping[str, Any]) -> State[Any]:
    """Return the final state of a run: Completed, CompletedWithFailures or Failed."""
    failed = failed_languages(record)
    n_languages = len(record["languages"])
    if not failed:
        done = "1 language" if n_languages == 1 else f"{n_languages} languages"
        return Completed(message=f"{done} done", data=record["run_id"])
    reasons = "; ".join(f"{code}: {error}" for code, error in failed.items())
    message = f"{len(failed)} of {n_languages} languages failed: {named(list(failed))}. {reasons}"
    if len(failed) == n_languages:
        return Failed(message=message[:2000])
    return Completed(name=COMPLETED_WITH_FAILURES, message=message[:2000], data=record["run_id"])

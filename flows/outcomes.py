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
    told = {language for language, _seed in refused}
    outcomes: dict[Key, dict[str, Any]] = {}
    for key, future in futures.items():
        found = future.result(raise_on_failure=False)
        if isinstance(found, BaseException):
            language = key if isinstance(key, str) else key[0]
            if language not in told:
                beat(language, "adapt", "failed", detail=str(found))
            found = failed_outcome(language, found)
        outcomes[key] = found
    return outcomes


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

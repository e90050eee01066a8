"""Update the adapter of one language for what its users ask now."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from compass_core.config import AdaptConfig
from compass_core.errors import DataError, InputError, StoreError, TransientError
from compass_core.languages import canonical_language, language_name
from flows.update_dag import RETRAINED, UPDATED, Update
from tasks.baseline import Baseline, open_baseline
from tasks.dashboard import write_dashboard
from tasks.events import open_outbox
from tasks.exclusion import language_slot
from tasks.ingestion import check_sources
from tasks.limits import check_training_limit
from tasks.monitoring import decided_samples
from tasks.promotion import find_champion, finish_promotion
from tasks.reporting import start_run
from tasks.retries import with_retries
from tasks.update_records import EVENT_TAG, finish_update
from tasks.updating import check_update, refused_in_a_row
from tasks.waiting import wait_in_line

ALREADY_DONE = "AlreadyDone"


@flow(name="update-adapter", flow_run_name="update-{language}")
def update_adapter(language: str, event: str = "", *, config: AdaptConfig) -> State[Any]:
    """Train the champion on for new usage without losing the old, and promote it if it is better.

    Args:
        language: Language to update: BCP-47, ISO 639 or English name (`sw`, `swh_Latn`, `Swahili`).
        event: Drift event to answer; empty: update for the newest windows, whatever they say.
        config: The same configuration that adapts and monitors the language.
    """
    code = canonical_language(language)
    check_update(config)
    check_training_limit(config.execution)
    outbox = open_outbox(code)
    if outbox.busy():
        wait_in_line(f"Another update of {language_name(code)} ({code}) is at work.")
    if not event:
        with outbox.exclusive():
            outcome = _update(config, code, "")
        write_dashboard()
        return Completed(message=_told(code, outcome), data=outcome["status"])
    with outbox.take(event, now=datetime.now(UTC)) as taken:
        if taken is None:
            message = f"The drift event {event} was answered before; nothing was done."
            return Completed(name=ALREADY_DONE, message=message)
        try:
            outcome = _update(config, code, event)
        except InputError as error:
            # Sending it again cannot help. A full disk or a lock may pass: the event stays pending.
            if not isinstance(error, StoreError):
                outbox.finish(event, {"status": "failed", "reasons": [str(error)]})
            raise
        outbox.finish(event, _kept(outcome))
    write_dashboard()
    return Completed(message=_told(code, outcome), data=outcome["status"])


def _update(config: AdaptConfig, language: str, event: str) -> dict[str, Any]:
    run = start_run("update-adapter", config)
    with language_slot(language):
        baseline = open_baseline(config, language, str(Path.cwd()))
        if baseline is None:
            raise DataError(
                f"No adapter serves {language_name(language)} ({language}), so there is nothing to "
                "update. Run `compass adapt` first.",
                code="E53",
            )
        outcome = _known(baseline, event) or _run(config, language, baseline, event)
    finish_update(run, language, config, outcome)
    return outcome


def _known(baseline: Baseline, event: str) -> dict[str, Any] | None:
    """Return the outcome of an event that another champion answered already."""
    if not event:
        return None
    asked = open_outbox(baseline.lineage.language).get(event)
    if baseline.tags.get(EVENT_TAG) == event:
        with_retries(functools.partial(finish_promotion, baseline.name, baseline.version))
        return _settled(baseline, "promoted", "This very event was answered by the champion.")
    if asked.champion_version != baseline.version:
        reason = (
            f"Version {asked.champion_version} drifted, but version {baseline.version} serves by "
            "now. Its own usage is watched from here on."
        )
        return _settled(baseline, "superseded", reason)
    return None


def _settled(baseline: Baseline, status: str, reason: str) -> dict[str, Any]:
    return {
        "language": baseline.lineage.language,
        "status": status,
        "registry": {"name": baseline.name, "version": baseline.version, "run_id": ""},
        "verdict": {"promote": False, "champion": baseline.version, "reasons": [reason]},
        "artifacts": {},
        "timings": {},
    }


def _run(config: AdaptConfig, language: str, baseline: Baseline, event: str) -> dict[str, Any]:
    sources = check_sources(config, str(Path.cwd()))
    champion = find_champion(baseline.name)
    if champion is None or champion["version"] != baseline.version:
        raise TransientError("Another champion came into service; run the update again.")
    update = Update(config, sources, baseline, champion, event)
    update.gather(decided_samples(baseline, config, event))
    update.examine()
    update.select()
    update.score("champion", update.champion)
    adapter = update.train()
    update.score(UPDATED, adapter)
    outcome = update.settle(UPDATED, adapter, update.decide(UPDATED))
    limit = config.update.escalate_after
    if outcome["status"] == "refused" and limit and refused_in_a_row(language) + 1 >= limit:
        adapter = update.retrain()
        update.score(RETRAINED, adapter)
        outcome = update.settle(RETRAINED, adapter, update.decide(RETRAINED))
    return outcome | {
        "language": language,
        "event": event,
        "artifacts": {name: ref.to_dict() for name, ref in update.line.artifacts.items()},
        "timings": update.line.timings,
    }


def _kept(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return what the event's file keeps of its outcome."""
    verdict = outcome["verdict"]
    kept = ("promote", "reasons", "accuracy_before", "accuracy_after", "forgetting", "champion")
    return {
        "status": outcome["status"],
        "arm": outcome.get("arm", ""),
        "version": outcome["registry"]["version"],
        "finished": datetime.now(UTC).isoformat(),
        **{name: verdict[name] for name in kept if name in verdict},
    }


def _told(language: str, outcome: dict[str, Any]) -> str:
    reasons = " ".join(outcome["verdict"]["reasons"])
    return f"{language_name(language)} ({language}): {outcome['status']}. {reasons}"[:2000]

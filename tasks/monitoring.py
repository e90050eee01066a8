"""Watch the usage of one language: read, place, cut into windows, decide, announce.

    log ─► observations ─► windows ─► drift artefact ─► outbox ─► history ─► decided ─► event

Each arrow may be the last thing that happens before a kill: the next monitor finds what is there
and goes on behind it. One monitor works on a language at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compass_core.config import AdaptConfig, Recipe
from compass_core.errors import DataError, StoreError, TransientError
from compass_core.languages import canonical_language, language_name
from compass_core.monitoring.drift import Sample
from compass_core.monitoring.history import History, comparison_start
from compass_core.monitoring.observations import ObservationLog
from compass_core.monitoring.outbox import Outbox
from compass_core.monitoring.privacy import open_key
from compass_core.monitoring.records import UsageRecord
from compass_core.monitoring.reports import AppendReport
from compass_core.monitoring.windows import Window
from compass_core.storage import file_lock, read_json, write_json
from tasks.baseline import Baseline, open_baseline
from tasks.drift_windows import Watch, event_of, is_enough, judge
from tasks.events import open_outbox, send_event, server_address
from tasks.monitoring_report import LAST_NAME, open_history
from tasks.progress import beat
from tasks.settings import compass_home, usage_folder

__all__ = ["append_usage", "decided_samples", "monitor_language"]

_LOG = logging.getLogger(__name__)
WAIT_SECONDS = 5.0
"""How long a second monitor of a language waits for the first."""


def monitor_language(language: str, config: AdaptConfig, base_folder: str) -> dict[str, Any]:
    """Read what is new, decide on every window that has closed, and send what is pending.

    Args:
        language: Canonical code.
        config: The configuration; its `languages` share the level of the test.
        base_folder: Where relative paths start from.

    Returns:
        The outcome as plain values. ``status`` is ``no champion``, ``busy`` (another monitor is at
        work), ``waiting`` (no window has closed since the last time), ``insufficient``, ``stable``,
        ``alarm`` or ``drift``: the last window that was decided, except that a drift stays one.

    Raises:
        InputError: the log or the champion's lineage cannot be used; E50 the encoder changed.
    """
    outcome: dict[str, Any] = {"language": language, "name": language_name(language)}
    outcome |= {"unit": config.monitoring.drift.unit, "windows": [], "notes": []}
    with contextlib.ExitStack() as stack:
        lock = usage_folder(language) / "monitor.lock"
        try:
            stack.enter_context(file_lock(lock, timeout_seconds=WAIT_SECONDS))
        except StoreError:
            return outcome | {"status": "busy"}
        baseline = open_baseline(config, language, base_folder)
        if baseline is None:
            return outcome | {"status": "no champion"}
        watch = Watch(language, config, len(config.languages), baseline, datetime.now(UTC))
        history = open_history(language)
        outcome |= {"champion": baseline.version, "space": baseline.fingerprint}
        outcome |= _observe(watch, history, Path(base_folder), outcome)
        outcome["windows"] = list(_decide(watch, history))
        outcome |= _send(language, config)
        outcome["status"] = _status(outcome)
        write_json(usage_folder(language) / LAST_NAME, outcome)
    return outcome


def open_log(language: str) -> ObservationLog:
    """Return the observations of a language (canonical code)."""
    key = open_key(compass_home() / "usage", os.environ)
    return ObservationLog(usage_folder(language), key)


def _observe(
    watch: Watch, history: History, base_folder: Path, outcome: Mapping[str, Any]
) -> dict[str, Any]:
    """Take in what is new in the log."""
    beat(watch.language, "read", "running")
    since = comparison_start(history.entries(), watch.baseline.fingerprint)
    notes = list(outcome["notes"])
    last = usage_folder(watch.language) / LAST_NAME
    told = last.is_file() and read_json(last).get("space") == watch.baseline.fingerprint
    if since is not None and not told:
        notes.append(
            f"The space is another one than before (encoder or champion changed): what was "
            f"observed until {since:%Y-%m-%d %H:%MZ} stays aside, and a new comparison starts."
        )
    report = AppendReport()
    if watch.config.log is not None:
        report = open_log(watch.language).take_in(
            watch.config,
            base_folder=base_folder,
            observe=watch.baseline.observe,
            space=watch.baseline.fingerprint,
            now=watch.now,
            since=since,
        )
    beat(watch.language, "read", "done", 1.0, f"{report.n_new:,} new prompts")
    return {"read": report.to_dict(), "notes": [*notes, *report.warnings]}


def _decide(watch: Watch, history: History) -> Iterator[dict[str, Any]]:
    """Decide on every closed window, oldest first; yield what is told about each of them.

    Of windows that are caught up on in one run only the newest may declare a drift.
    """
    log, outbox = open_log(watch.language), open_outbox(watch.language)
    listed = log.windows(watch.config, watch.now, watch.baseline.fingerprint)
    undecided = [window for window in listed if not window.decided]
    last = _newest_enough(watch, undecided)
    for window in undecided:
        if window.n_empty or not window.closed:
            yield _untested(window)
            continue
        entry = history.find(window.space, window.name)
        if entry is None:
            entry = _conclude(watch, window, history, outbox, last)
        log.mark_decided(window)
        beat(watch.language, "decide", "done", 1.0, f"{window.name} {entry['status']}")
        yield entry


def _newest_enough(watch: Watch, windows: Sequence[Window]) -> str:
    """Return the name of the newest closed window that is large enough for a decision."""
    for window in reversed(windows):
        if window.closed and window.n_prompts and is_enough(watch, window):
            return window.name
    return ""


def _conclude(
    watch: Watch, window: Window, history: History, outbox: Outbox, last: str
) -> dict[str, Any]:
    """Test one window, write the event of a drift, and remember what was said: in this order."""
    earlier = history.entries()
    own = (window.space, window.name)
    others = [e for e in outbox.pending() if (e.space, e.windows[-1]) != own]
    entry = judge(watch, window, earlier, others[-1].id if others else "", last)
    known = [e for e in outbox.all() if (e.space, e.windows[-1]) == own]
    if known:
        # Announced before a kill, and decided anew since (another setting, the next champion).
        entry |= {"drift_detected": True, "event": known[0].id}
    elif entry["drift_detected"]:
        entry["event"] = outbox.put(event_of(entry, earlier)).id
    history.add(entry)
    return entry


def _untested(window: Window) -> dict[str, Any]:
    """Return what is told about a window that is open or has no prompts."""
    return {
        "name": window.name,
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "status": "empty" if window.n_empty else "open",
        "n_prompts": window.n_prompts,
        "n_empty": window.n_empty,
    }


def _send(language: str, config: Recipe) -> dict[str, Any]:
    """Send every event that no update has finished; what cannot be sent stays pending."""
    outbox = open_outbox(language)
    pending = outbox.pending()
    sent: list[str] = []
    unsent = ""
    if pending and not config.monitoring.emit_events:
        unsent = "monitoring.emit_events is off"
    elif pending and server_address() is None:
        unsent = "no Prefect server is configured (PREFECT_API_URL)"
    elif pending and outbox.busy():
        unsent = "an update of this language is at work"
    else:
        for event in pending:
            try:
                send_event(language, event.id, config.project)
                sent.append(event.id)
            except TransientError as error:
                _LOG.warning("%s", error)
                unsent = str(error)
    return {"pending": [event.id for event in pending], "sent": sent, "unsent": unsent}


def _status(outcome: Mapping[str, Any]) -> str:
    decided = [w for w in outcome["windows"] if w["status"] not in ("open", "empty")]
    if any(window["drift_detected"] for window in decided):
        return "drift"
    return str(decided[-1]["status"]) if decided else "waiting"


def append_usage(
    config: Recipe,
    language: str,
    records: Iterable[UsageRecord | Mapping[str, Any]],
    *,
    base_folder: str | Path = ".",
) -> dict[str, Any]:
    """Keep an observation of each record, without a log file: the Python door to the monitor.

    Durable when it returns, and safe to repeat: a record is known by its id. Give many records at
    once, because every call opens the encoder. Windows are decided by `compass monitor`.

    Args:
        config: Its `monitoring.log` says how columns are named and whether texts are kept; without
            it the usual names hold and no text is kept.
        language: BCP-47, ISO 639, or English name.
        records: `UsageRecord`s, or mappings with the columns of a log.
        base_folder: Where relative paths of the configuration start from.

    Returns:
        Numbers of new, known, refused (with reasons) and late records.

    Raises:
        DataError: no adapter serves the language yet, so there is nothing to compare with.
        InputError: the champion's lineage or the log cannot be used.
    """
    code = canonical_language(language)
    baseline = open_baseline(config, code, str(Path(base_folder).resolve()))
    if baseline is None:
        raise DataError(
            f"No adapter serves {language_name(code)} ({code}), so its usage cannot be placed. Run "
            "`compass adapt` first, or write the records to a log and set `monitoring.log`.",
            code="E53",
        )
    since = comparison_start(open_history(code).entries(), baseline.fingerprint)
    log = open_log(code)
    report = log.append(
        records,
        baseline.observe,
        baseline.fingerprint,
        now=datetime.now(UTC),
        config=config.monitoring.log,
        since=since,
    )
    return report.to_dict()


def decided_samples(baseline: Baseline, config: Recipe, event: str) -> list[Sample]:
    """Return the usage that an update is for: a sample of each window of the event.

    Each window is sampled by itself, as later windows are that will be compared with them: equal
    prompts count once and a user is capped within a window, never over several.

    Without an event, or where its windows are gone (cut otherwise since, or another space), the
    newest closed windows count, as many as make a drift.

    Args:
        baseline: What the usage was compared with.
        config: The configuration that the windows were cut with.
        event: Id of a drift event, or empty.
    """
    language = baseline.lineage.language
    log = open_log(language)
    listed = log.windows(config.monitoring, datetime.now(UTC), baseline.fingerprint)
    closed = [window for window in listed if window.closed and window.n_prompts]
    names = open_outbox(language).get(event).windows if event else ()
    chosen: Sequence[Window] = [window for window in closed if window.name in names]
    if not chosen:
        if names:
            _LOG.warning("The windows %s of the event %s are gone", ", ".join(names), event)
        chosen = closed[-config.monitoring.drift.consecutive :]
    return [window.sample(config.monitoring.drift) for window in chosen]

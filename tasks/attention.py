"""What somebody should look at, found from what is known of a language.

Each finding has a code of `compass_core.report.status_data.ATTENTION` and says what to do next;
docs/handbook.md tells the rest under the same code.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from compass_core.adapter_files import WEIGHTS_NAME
from compass_core.errors import CompassError, RegistrationPendingError
from compass_core.monitoring.outbox import DriftEvent
from compass_core.report.monitoring_data import WatchedLanguage
from compass_core.report.monitoring_state import closed_windows
from compass_core.report.status_data import Attention, LanguageStatus
from tasks import registry
from tasks.events import open_outbox
from tasks.lineage import LINEAGE_TAG
from tasks.migrations import files_pending
from tasks.registry_files import local_path, location, verify
from tasks.settings import compass_home, open_store

_WAIT = timedelta(days=1)
"""How long a drift may wait for its update."""

MIN_FREE_BYTES = 2 * 2**30
"""Less free disk than this needs somebody."""
_MAX_TEXT = 300


def general_attention(rows: Sequence[LanguageStatus]) -> Iterator[Attention]:
    """Yield what concerns no single language."""
    home = compass_home()
    if home.exists():
        disk = shutil.disk_usage(home)
        if disk.free < MIN_FREE_BYTES:
            text = (
                f"{disk.free / 2**30:.1f} GiB of {disk.total / 2**30:.0f} GiB are free for {home}"
            )
            yield Attention("disk-low", text, "compass clean --yes")
    waiting = files_pending()
    if waiting:
        text = "; ".join(f"{part.name}: {part.todo}" for part in waiting)
        yield Attention("upgrade-pending", text, "compass upgrade")
    if rows and not any(row.model for row in rows):
        promoted = [row for row in rows if row.last_run_status == "promoted"]
        if promoted:
            text = f"{len(promoted)} languages were promoted by runs here, and nothing serves"
            yield Attention("no-registry", text, "compass restore, or compass adapt again")


def language_attention(
    status: LanguageStatus,
    entry: registry.Serving | None,
    watched: WatchedLanguage,
    last_error: str,
    now: datetime,
    *,
    verify: bool,
) -> Iterator[Attention]:
    """Yield what needs attention in one language.

    Args:
        status: What is known of it.
        entry: What the registry says; None without any adapter.
        watched: What monitors left.
        last_error: Of its last run.
        now: The time.
        verify: Whether to hash the champion's files, not only to look for them.
    """
    code = status.language
    if entry is not None:
        yield from _registry(status, entry, verify_files=verify)
    if status.last_run_status == "failed":
        waits = last_error.startswith(RegistrationPendingError.code)
        text = f"run {status.last_run}: {_cut(last_error)}"
        advice = "the same command again" if waits else "the same command again, after the remedy"
        yield Attention("not-registered" if waits else "run-failed", text, advice)
    if watched.error:
        yield Attention("unreadable", _cut(watched.error), "compass restore")
    else:
        yield from _usage(code, status, watched, now)


def _registry(
    status: LanguageStatus, entry: registry.Serving, *, verify_files: bool
) -> Iterator[Attention]:
    code = status.language
    for alias in entry.broken:
        text = f"{entry.name}@{alias} points to a version that was deleted"
        yield Attention("alias-broken", text, f"compass rollback -l {code}, or compass adapt")
    champion = entry.champion
    if champion is None:
        return
    problem = _damage(champion, verify_files=verify_files)
    if problem:
        advice = f"compass adapt again, or compass rollback -l {code}"
        yield Attention("adapter-damaged", _cut(problem), advice)
    named = champion.tags.get(LINEAGE_TAG, "")
    if named and open_store().find("lineage", named) is None:
        text = f"version {champion.version} stands on {named[:12]}, which the store does not hold"
        yield Attention("lineage-missing", text, "compass restore, or compass adapt")


def _damage(champion: registry.RegisteredAdapter, *, verify_files: bool) -> str:
    """Return what is wrong with the champion's files; empty where nothing is."""
    try:
        if verify_files:
            verify(champion)
            return ""
        if _lies_here(champion):
            return ""
        folder = local_path(location(champion))
        if folder is not None and not (folder / WEIGHTS_NAME).is_file():
            return f"{folder} holds no adapter"
    except (CompassError, OSError) as error:
        return str(error)
    return ""


def _lies_here(champion: registry.RegisteredAdapter) -> bool:
    """Tell without asking the registry, which takes its time, where the layout is our own."""
    model = champion.source.removeprefix("models:/")
    where = f"*/models/{model}/artifacts/{WEIGHTS_NAME}"
    return bool(model) and any((compass_home() / "mlartifacts").glob(where))


def _usage(
    code: str, status: LanguageStatus, watched: WatchedLanguage, now: datetime
) -> Iterator[Attention]:
    outbox = open_outbox(code)
    waiting = [] if status.updating else outbox.pending()
    for event in waiting:
        finding = _event(code, event, now)
        if finding is not None:
            yield finding
            break
    if not waiting and status.drift in ("drift", "alarm", "update-refused"):
        yield Attention(status.drift, _window_text(status), f"compass status -l {code}")
    failed = [note for note in watched.notes if note.startswith("The monitor of ")]
    if failed:
        yield Attention("monitor-failed", _cut(failed[0]), "compass monitor, after the remedy")
    late = _overdue(watched, now)
    if late:
        yield Attention("monitor-overdue", late, "prefect deployment inspect, compass monitor")


def _event(code: str, event: DriftEvent, now: datetime) -> Attention | None:
    command = f"compass update CONFIG -l {code} --event {event.id}"
    if event.last_error:
        text = f"event {event.id[:8]}: {_cut(event.last_error)}"
        return Attention("event-failed", text, command)
    waited = now - _when(event.occurred)
    if waited > _WAIT:
        text = f"event {event.id[:8]} waits for {waited.days} days, sent {len(event.sent)} times"
        return Attention("event-waiting", text, command)
    return Attention("drift", f"event {event.id[:8]}, p = {event.p_value:.2g}", command)


def _window_text(status: LanguageStatus) -> str:
    p = "" if status.p_value is None else f", p = {status.p_value:.2g}"
    return f"window {status.window}: {status.window_status}{p}"


def _overdue(watched: WatchedLanguage, now: datetime) -> str:
    """Tell for how long nobody has looked, where windows are cut by time."""
    windows = [w for w in closed_windows(watched) if "/" in w.name and not w.name.startswith("n")]
    if not windows or not watched.checked:
        return ""
    length = _when(windows[-1].end) - _when(windows[-1].start)
    since = now - _when(watched.checked)
    if since <= 2 * length + timedelta(hours=1):
        return ""
    return f"the last monitor was {since.days} d {since.seconds // 3600} h ago"


def _when(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TEXT else f"{line[: _MAX_TEXT - 1]}…"

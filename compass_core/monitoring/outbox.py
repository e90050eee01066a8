"""Drift events as files: written before anything is sent, finished after the update.

    pending ──take──► taken ──finish──► done
       ▲                │
       └─ the update failed, or its process died (the kernel then frees the lock)

An event has an identity of its own (language, champion, space, windows), so announcing it twice
makes one file, and sending it twice makes one update: whoever comes second finds it done. What is
not done is sent again by every later monitor. So a kill at any point loses nothing and does nothing
twice, provided that the update leaves the event's id in what it promotes: one that was killed
between the promotion and `finish` sees by it that only `finish` is left to do.

One kernel lock per folder guards the updates of one language; it vanishes with its process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from compass_core.errors import DataError, StoreError
from compass_core.storage import file_lock, fingerprint, read_json, write_json

EventState = Literal["pending", "taken", "done"]
_UPDATE_LOCK = "update.lock"
_FILE_LOCK = "events.lock"
_PROBE_SECONDS = 0.0
DEFAULT_WAIT_SECONDS = 60.0
"""How long an update waits for another one of the same language."""


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """One drift of one language, and what became of it.

    Attributes:
        language: Canonical code.
        champion_version: Version of the adapter that was in service.
        space: Fingerprint of the monitoring space; windows are named within one.
        windows: Names of the windows that made the drift, oldest first.
        p_value: Of the last of them, in (0, 1].
        drift_score: Of the last of them, in bits.
        occurred: When it was decided, ISO 8601 with zone.
        state: ``pending``, ``taken`` or ``done``.
        sent: Times at which it was sent, ISO 8601.
        attempts: Times at which an update took it, ISO 8601.
        last_error: Why the last attempt did not finish; empty otherwise.
        outcome: What the update came to; empty until it is done.
    """

    language: str
    champion_version: str
    space: str
    windows: tuple[str, ...]
    p_value: float
    drift_score: float
    occurred: str
    state: EventState = "pending"
    sent: tuple[str, ...] = ()
    attempts: tuple[str, ...] = ()
    last_error: str = ""
    outcome: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Identity: 32 hex digits of language, champion, space and windows."""
        made_of = (self.language, self.champion_version, self.space, list(self.windows))
        return fingerprint("drift-event", *made_of)

    def payload(self) -> dict[str, Any]:
        """Return what is sent with the event."""
        return {
            "language": self.language,
            "event": self.id,
            "p_value": self.p_value,
            "drift_score": self.drift_score,
            "windows": list(self.windows),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with the identity."""
        return {"id": self.id} | asdict(self) | {"outcome": dict(self.outcome)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DriftEvent:
        """Rebuild an event from `to_dict`."""
        fields = {name: value for name, value in values.items() if name != "id"}
        for name in ("windows", "sent", "attempts"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


class Outbox:
    """The drift events of one language, one file each, in one folder."""

    def __init__(self, folder: Path) -> None:
        """Take `folder`; it is made when the first event is written."""
        self.folder = folder

    def put(self, event: DriftEvent) -> DriftEvent:
        """Write a new event; return the one that is there already if it, or its window, is known.

        A window makes one event at most: a decision repeated after a kill, perhaps by the side of
        the next champion, finds the event of the first time.
        """
        with self._files():
            for known in self.all():
                if (known.space, known.windows[-1]) == (event.space, event.windows[-1]):
                    return known
            self._write(event)
        return event

    def get(self, event_id: str) -> DriftEvent:
        """Return one event.

        Raises:
            DataError: there is none of that id.
        """
        path = self._path(event_id)
        try:
            return DriftEvent.from_dict(read_json(path))
        except FileNotFoundError:
            known = [event.id for event in self.all()][-3:]
            raise DataError(
                f"There is no drift event {event_id!r} in {self.folder}. "
                f"Known ones, newest last: {', '.join(known) or 'none'}.",
                code="E51",
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"The drift event {path} cannot be read: {error}. Restore it or delete it; a "
                "deleted one is announced again only by a later drift."
            ) from error

    def all(self) -> list[DriftEvent]:
        """Return every event, oldest first."""
        events = [self.get(path.stem) for path in self.folder.glob("*.json")]
        return sorted(events, key=lambda event: (event.occurred, event.id))

    def pending(self) -> list[DriftEvent]:
        """Return the events that are not done, oldest first; also those whose update died."""
        return [event for event in self.all() if event.state != "done"]

    def busy(self) -> bool:
        """Return whether an update of this language is at work right now, in any process."""
        if not self.folder.is_dir():
            return False
        try:
            with file_lock(self.folder / _UPDATE_LOCK, timeout_seconds=_PROBE_SECONDS):
                return False
        except StoreError:
            return True

    @contextlib.contextmanager
    def exclusive(self, *, timeout_seconds: float = DEFAULT_WAIT_SECONDS) -> Iterator[None]:
        """Be the only update of this language while the block runs (by hand, without an event).

        Raises:
            StoreError: E63, another update is still at work after `timeout_seconds`.
        """
        with file_lock(self.folder / _UPDATE_LOCK, timeout_seconds=timeout_seconds):
            yield

    @contextlib.contextmanager
    def take(
        self, event_id: str, *, now: datetime, timeout_seconds: float = DEFAULT_WAIT_SECONDS
    ) -> Iterator[DriftEvent | None]:
        """Be the only update of this language while the block runs, for this event.

        Gives None when the event is done already. A block that ends without `finish` leaves the
        event pending, so that it is sent again.

        Raises:
            DataError: there is no such event.
            StoreError: E63, another update is still at work after `timeout_seconds`.
        """
        self.get(event_id)
        with self.exclusive(timeout_seconds=timeout_seconds):
            event = self.get(event_id)
            if event.state == "done":
                yield None
                return
            attempts = (*event.attempts, now.isoformat())
            taken = self._change(event_id, state="taken", attempts=attempts, last_error="")
            error = "ended without an outcome"
            try:
                yield taken
            except BaseException as failure:
                error = f"{type(failure).__name__}: {failure}"[:1000]
                raise
            finally:
                if self.get(event_id).state != "done":
                    self._change(event_id, state="pending", last_error=error)

    def finish(self, event_id: str, outcome: Mapping[str, Any]) -> DriftEvent:
        """Close an event with what the update came to (plain JSON values)."""
        return self._change(event_id, state="done", last_error="", outcome=dict(outcome))

    def mark_sent(self, event_id: str, now: datetime) -> DriftEvent:
        """Note that the event was sent; it stays pending until an update takes it."""
        with self._files():
            event = self.get(event_id)
            sent = replace(event, sent=(*event.sent, now.isoformat()))
            self._write(sent)
        return sent

    def _change(self, event_id: str, **changes: Any) -> DriftEvent:
        with self._files():
            changed = replace(self.get(event_id), **changes)
            self._write(changed)
        return changed

    def _files(self) -> contextlib.AbstractContextManager[None]:
        return file_lock(self.folder / _FILE_LOCK)

    def _write(self, event: DriftEvent) -> None:
        write_json(self._path(event.id), event.to_dict())

    def _path(self, event_id: str) -> Path:
        if not event_id.isalnum():
            raise DataError(
                f"{event_id!r} is not the id of a drift event: 32 hex digits.", code="E51"
            )
        return self.folder / f"{event_id}.json"

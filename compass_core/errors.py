"""Errors people see, and the one question a scheduler asks of them: is a retry worth it?

    CompassError
    ├── InputError              the caller must change something; retrying cannot help
    │   ├── ConfigError         a configuration file, override or flow parameter
    │   ├── DataError           a corpus: missing, unreadable, wrongly mapped, overlapping
    │   ├── LanguageError       a language code that is unknown or ambiguous
    │   ├── ModelError          a base model, encoder or adapter that cannot be used
    │   ├── InsufficientPoolError  the pool cannot fill the budget
    │   ├── ScriptGuardError    clusters follow the language, not the meaning
    │   └── StoreError          the artefact store: other version, damaged, not writable
    │       └── ResourceError   a full disk, a lock that is held: not the caller's input (exit 1)
    └── TransientError          the outside world failed; retrying may help
        └── RegistrationPendingError trained and kept, but the registry could not be told

Every message says what was asked, what was found and what to change, and carries a stable code
(``E17 …``) that documentation and tests can name.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_PROBLEMS_SHOWN = 20
"""Problems printed in one message; the rest are counted (a bad file must still fit one screen)."""


class CompassError(Exception):
    """Base of everything COMPASS raises on purpose."""

    code: str = "E00"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        """Keep `message` and, where given, replace the class's default `code`."""
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        """Return the message with its code in front."""
        return f"{self.code} {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the code and what was noted, so that errors survive a process boundary."""
        return (_rebuild, (type(self), self.message, self.code), dict(self.__dict__))


def _rebuild(kind: type[CompassError], message: str, code: str) -> CompassError:
    return kind(message, code=code)


class InputError(CompassError):
    """The caller must change something; retrying cannot help."""


class ConfigError(InputError):
    """A configuration file, an override or a flow parameter cannot be used."""

    code = "E42"


class DataError(InputError):
    """A corpus is missing, unreadable, wrongly mapped or inconsistent."""

    code = "E15"


class LanguageError(InputError):
    """A language code is unknown or ambiguous."""

    code = "E43"


class ModelError(InputError):
    """A base model, an encoder or an adapter cannot be used as given."""

    code = "E26"


class InsufficientPoolError(InputError):
    """The pool cannot fill the budget."""

    code = "E60"


class ScriptGuardError(InputError):
    """The clusters follow language or script instead of meaning."""

    code = "E61"


class StoreError(InputError):
    """The artefact store is of another version, damaged or not writable."""

    code = "E62"


class ResourceError(StoreError):
    """The disk is full, or another process holds a lock for too long.

    Nothing is wrong with what was asked, but another attempt at once would not help either.
    """


class TransientError(CompassError):
    """The outside world failed; the same call may work later."""

    code = "E90"


class RegistrationPendingError(TransientError):
    """An adapter is trained and kept, but the registry could not be told; the next run does it."""

    code = "E94"


def is_wrong_input(error: BaseException) -> bool:
    """Return whether it is the caller's input that has to change (exit code 2)."""
    return isinstance(error, InputError) and not isinstance(error, ResourceError)


def bounded_list(problems: Sequence[str], *, limit: int = MAX_PROBLEMS_SHOWN) -> str:
    """Join `problems` one per line, at most `limit` of them, and count the rest."""
    shown = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        shown.append(f"  … and {len(problems) - limit} more")
    return "\n".join(shown)

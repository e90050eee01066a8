"""What the model registry holds: one record per version, looked up by alias or number.

Names, tags and aliases are defined here; `tasks.registry` changes what this module reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from compass_core.errors import ModelError
from tasks import tracking

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"
SHA_TAG = "adapter_sha256"
NOTE_TAG = "mlflow.note.content"
"""MLflow shows it as a description: of a run where it is a tag, of a version as a field."""
MODEL_TAG = "registered_model"
OVER_TAG = "promoted_over"
GATE_TAG = "gate"
VERDICT_TAG = "verdict"
ROLLED_BACK_TAG = "rolled_back"
SINCE_TAG = "serving_since"
"""When a version last came into service, ISO 8601."""
SCORE_TAGS = ("accuracy", "accuracy_low", "accuracy_high")
"""Accuracy that a version was judged by, with its interval; versions from before have none."""
NO_CHAMPION = "base"
"""Value of `OVER_TAG` for the first champion: before it, the base alone served."""

_NAME = re.compile(r"compass\.(?P<slug>[a-z0-9][a-z0-9-]*)\.(?P<language>[a-z]{3}_[A-Z][a-z]{3})")
_ABSENT = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
"""A missing model gives the first code, a missing alias the second; both mean "none"."""


@dataclass(frozen=True, slots=True)
class RegisteredAdapter:
    """One version in the registry.

    Attributes:
        name: Registered model, ``compass.<slug>.<language>``.
        version: MLflow's version number, as text.
        run_id: Run that trained it.
        adapter_sha256: Identity of its files.
        aliases: Aliases that point at it.
        tags: All tags of the version.
        created: Milliseconds since 1970 (UTC).
        source: Where MLflow says that it came from, ``models:/m-…``.
    """

    name: str
    version: str
    run_id: str
    adapter_sha256: str
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    created: int = 0
    source: str = ""

    @property
    def language(self) -> str:
        """The language it serves."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def rolled_back(self) -> bool:
        """Whether it was champion once and was taken out of service."""
        return self.tags.get(ROLLED_BACK_TAG) == "true"

    @property
    def scores(self) -> dict[str, float]:
        """Accuracy and its interval as far as the version names them, in [0, 1]."""
        return {name: float(self.tags[name]) for name in SCORE_TAGS if name in self.tags}


@dataclass(frozen=True, slots=True)
class Serving:
    """What serves one language on one base; `champion` None means the base alone.

    `broken` names the aliases whose version is gone: MLflow keeps them.
    """

    name: str
    slug: str
    language: str
    champion: RegisteredAdapter | None
    challenger: RegisteredAdapter | None
    previous: RegisteredAdapter | None
    broken: tuple[str, ...] = ()


def model_name(slug: str, language: str) -> str:
    """Return the registered model of `language` on the base called `slug`.

    Raises:
        ModelError: the parts do not make a valid name.

    Examples:
        >>> model_name("qwen2-5-7b", "swh_Latn")
        'compass.qwen2-5-7b.swh_Latn'
    """
    name = f"compass.{slug}.{language}"
    require_name(name)
    return name


def require_name(name: str) -> re.Match[str]:
    """Return the parts of `name`; raise ModelError (E53) where it is not a name of ours."""
    match = _NAME.fullmatch(name)
    if match is None or len(name) > 200:
        raise ModelError(
            f"{name[:80]!r} is not a registered model of COMPASS. Names look like "
            "compass.<base>.<language>, for example compass.starter.swh_Latn.",
            code="E53",
        )
    return match


def champion(name: str) -> RegisteredAdapter | None:
    """Return the version that serves, or None when the base alone does."""
    return by_alias(name, CHAMPION)


def challenger(name: str) -> RegisteredAdapter | None:
    """Return the last candidate, or None."""
    return by_alias(name, CHALLENGER)


def by_alias(name: str, alias: str) -> RegisteredAdapter | None:
    """Return the version behind `alias`; None when the alias or the model does not exist."""
    require_name(name)
    client = tracking.client()
    return _or_none(
        lambda: client.get_model_version_by_alias(name, alias), f"look up {name}@{alias}"
    )


def get_version(name: str, version: str) -> RegisteredAdapter | None:
    """Return one version, or None when it does not exist."""
    require_name(name)
    client = tracking.client()
    return _or_none(
        lambda: client.get_model_version(name, version), f"look up version {version} of {name}"
    )


def versions(name: str) -> list[RegisteredAdapter]:
    """Return every version of `name`, newest first."""
    require_name(name)
    return search_versions(f"name = '{name}'")


def _or_none(call: Callable[[], Any], action: str) -> RegisteredAdapter | None:
    from mlflow.exceptions import MlflowException

    with tracking.mlflow_errors(action):
        try:
            return _adapter(call())
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return None
            raise


def search_versions(query: str) -> list[RegisteredAdapter]:
    """Return every version that MLflow's filter `query` finds, newest first."""
    client = tracking.client()
    found: list[RegisteredAdapter] = []
    token = None
    with tracking.mlflow_errors("search the registry"):
        while True:
            page = client.search_model_versions(
                query, max_results=200, order_by=["version_number DESC"], page_token=token
            )
            found += [_adapter(entry) for entry in page]
            token = page.token
            if not token:
                return found


def _adapter(entry: Any) -> RegisteredAdapter:
    tags = {str(name): str(value) for name, value in (entry.tags or {}).items()}
    return RegisteredAdapter(
        name=entry.name,
        version=str(entry.version),
        run_id=entry.run_id or "",
        adapter_sha256=tags.get(SHA_TAG, ""),
        aliases=tuple(sorted(entry.aliases or ())),
        tags=tags,
        created=int(entry.creation_timestamp or 0),
        source=str(entry.source or ""),
    )


def list_serving(languages: Sequence[str] | None = None) -> list[Serving]:
    """Return what serves, per registered model of COMPASS, sorted by language and base.

    Args:
        languages: Canonical codes to keep; None keeps all.
    """
    client = tracking.client()
    models: list[Any] = []
    token = None
    with tracking.mlflow_errors("list the registry"):
        while True:
            page = client.search_registered_models(
                "name LIKE 'compass.%'", max_results=200, page_token=token
            )
            models += page
            token = page.token
            if not token:
                break
    rows = []
    for model in models:
        match = _NAME.fullmatch(model.name)
        if match is None or (languages is not None and match["language"] not in languages):
            continue
        aliases = {alias: get_version(model.name, str(v)) for alias, v in model.aliases.items()}
        rows.append(
            Serving(
                name=model.name,
                slug=match["slug"],
                language=match["language"],
                champion=aliases.get(CHAMPION),
                challenger=aliases.get(CHALLENGER),
                previous=aliases.get(PREVIOUS),
                broken=tuple(sorted(alias for alias, found in aliases.items() if found is None)),
            )
        )
    return sorted(rows, key=lambda row: (row.language, row.slug))


def require_version(name: str, version: str) -> RegisteredAdapter:
    """Return one version; raise ModelError (E53) where it does not exist."""
    found = get_version(name, version)
    if found is None:
        raise ModelError(
            f"{name} has no version {version[:20]}. `compass status` lists what is registered.",
            code="E53",
        )
    return found


def resolve(name: str, alias_or_version: str) -> RegisteredAdapter:
    """Return the version behind an alias or a number; raise ModelError (E53) with advice."""
    if alias_or_version.isdigit():
        return require_version(name, alias_or_version)
    found = by_alias(name, alias_or_version)
    if found is None:
        known = versions(name)
        have = (
            f"It has {len(known)} versions; give a number (the newest is {known[0].version}), or "
            "run `compass adapt` again"
            if known
            else f"Nothing is registered for {name.rsplit('.', 1)[-1]} on this base; "
            "run `compass adapt` first"
        )
        raise ModelError(f"{name} has no {alias_or_version[:40]}. {have}.", code="E53")
    return found

"""What serves each language, since when, from which data, and whether it drifts: one collection.

Asked by `compass status`, `compass metrics` and the index page. Nothing is kept for it: it is put
together from the registry, the runs, the store and what monitors left. What cannot be read of one
language is told in its place and hides no other.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from compass_core.errors import CompassError, TransientError
from compass_core.languages import language_name
from compass_core.report.monitoring_data import WatchedLanguage
from compass_core.report.monitoring_state import closed_windows, state_of, window_name
from compass_core.report.status_data import (
    Attention,
    DataPart,
    LanguageStatus,
    StatusReport,
    in_order,
    most_pressing_first,
)
from compass_core.storage import read_json
from compass_core.version import __version__
from tasks import registry
from tasks.attention import general_attention, language_attention
from tasks.lineage import lineage_of
from tasks.promotion import configure_tracking
from tasks.registry_reading import SINCE_TAG, VERDICT_TAG
from tasks.run_index import RunLine, run_lines
from tasks.settings import compass_home, open_store, runs_folder, tracking_uri
from tasks.watched import metrics_of_runs, newest_champions, watch_languages, watched_codes

_PROBE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class _Sources:
    """What all languages are told from."""

    lines: Sequence[RunLine]
    usage: Mapping[str, WatchedLanguage]
    watched_versions: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, float]]
    now: datetime
    verify: bool


def collect_status(
    now: datetime,
    *,
    languages: Sequence[str] | None = None,
    lines: Sequence[RunLine] | None = None,
    verify: bool = False,
) -> StatusReport:
    """Return what serves, and what needs somebody.

    Args:
        now: The time.
        languages: Canonical codes; None for all that are served, watched or were run.
        lines: Of all runs, where they are known already.
        verify: Whether to hash the files of every champion.
    """
    found = run_lines() if lines is None else lines
    serving, problem = _serving(languages)
    champions = newest_champions(serving)
    served = {entry.language for entry in serving}
    ran = {code for line in found for code in line.languages}
    codes = sorted({*watched_codes(), *served, *ran}) if languages is None else list(languages)
    sources = _Sources(
        lines=found,
        usage={item.language: item for item in watch_languages(codes, champions, scores=False)},
        watched_versions={code: item.name for code, item in champions.items()},
        metrics=_metrics(serving),
        now=now,
        verify=verify,
    )
    rows = [status for code in codes for status in _language(code, serving, sources)]
    return StatusReport(
        created=now.isoformat(timespec="seconds"),
        compass=__version__,
        languages=in_order(rows),
        attention=most_pressing_first([*problem, *general_attention(rows)]),
    )


def has_registry() -> bool:
    """Return whether there is a registry to ask; asking makes a new one where there is none."""
    uri = tracking_uri()
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()


def _serving(
    languages: Sequence[str] | None,
) -> tuple[list[registry.Serving], list[Attention]]:
    if not has_registry():
        return [], []
    try:
        _require_answer(tracking_uri())
        configure_tracking()
        return registry.list_serving(languages), []
    except CompassError as error:
        advice = "start the MLflow server, or check MLFLOW_TRACKING_URI"
        return [], [Attention("registry-unreachable", str(error), advice)]


def _metrics(serving: Sequence[registry.Serving]) -> dict[str, dict[str, float]]:
    """Return the scores of the champions' runs where the versions do not name them."""
    champions = [entry.champion for entry in serving if entry.champion is not None]
    runs = [champion.run_id for champion in champions if not champion.scores]
    return metrics_of_runs(runs) if runs else {}


def _require_answer(uri: str) -> None:
    """Find out soon whether a tracking server is there: MLflow itself would try for minutes."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https") or address.hostname is None:
        return
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), _PROBE_SECONDS).close()
    except OSError as error:
        raise TransientError(
            f"The MLflow server at {address.hostname}:{port} does not answer: {error}."
        ) from error


def _language(
    code: str, serving: Sequence[registry.Serving], sources: _Sources
) -> Iterator[LanguageStatus]:
    """Yield one status for each base the language has adapters on, or one without any."""
    own = [entry for entry in serving if entry.language == code]
    plain = LanguageStatus(language=code, name=language_name(code))
    plain = replace(plain, **_last_run(code, sources.lines))
    if not own:
        yield _with_usage(plain, None, sources)
    for entry in own:
        status = replace(plain, model=entry.name, base=entry.slug)
        yield _with_usage(_with_champion(status, entry, sources), entry, sources)


def _with_champion(
    status: LanguageStatus, entry: registry.Serving, sources: _Sources
) -> LanguageStatus:
    status = replace(
        status,
        challenger=entry.challenger.version if entry.challenger else "",
        previous=entry.previous.version if entry.previous else "",
    )
    champion = entry.champion
    if champion is None:
        return status
    scores = champion.scores or sources.metrics.get(champion.run_id, {})
    trained = datetime.fromtimestamp(champion.created / 1000, UTC).isoformat(timespec="seconds")
    status = replace(
        status,
        champion=champion.version,
        base=champion.tags.get("base", entry.slug),
        adapter_sha256=champion.adapter_sha256,
        since=champion.tags.get(SINCE_TAG, trained),
        trained=trained,
        verdict=champion.tags.get(VERDICT_TAG, ""),
        strategy=champion.tags.get("strategy", ""),
        licences=champion.tags.get("licences", ""),
        accuracy=scores.get("accuracy"),
        accuracy_low=scores.get("accuracy_low"),
        accuracy_high=scores.get("accuracy_high"),
    )
    line = _deciding_run(champion, sources.lines)
    if line is not None:
        outcome = line.languages[champion.language]
        status = replace(
            status,
            run_id=line.run_id,
            flow=line.flow,
            decision=outcome["decision"],
            **_training(outcome),
        )
    return replace(status, data=_data(champion, line))


def _decision(line: RunLine, language: str) -> str:
    return str(line.languages.get(language, {}).get("decision") or "")


def _deciding_run(champion: registry.RegisteredAdapter, lines: Sequence[RunLine]) -> RunLine | None:
    """Return the newest run that decided about this version; without one, that names it."""
    for line in sorted(lines, key=lambda line: not _decision(line, champion.language)):
        outcome = line.languages.get(champion.language, {})
        promoted = outcome.get("status") == "promoted"
        if promoted and (outcome["model"], outcome["version"]) == (champion.name, champion.version):
            return line
    return None


def _training(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the training that made the champion cost, as far as it was kept."""
    store = open_store()
    for kind in ("adapter-train", "update-train"):
        found = store.find(kind, outcome["training"]) if outcome["training"] else None
        if found is not None:
            facts = read_json(store.folder(found) / "training.json")
            return {
                "trained_tokens": facts.get("tokens"),
                "training_seconds": outcome["training_seconds"],
            }
    return {}


def _data(champion: registry.RegisteredAdapter, line: RunLine | None) -> list[DataPart]:
    """Return what the champion stands on, as its lineage names it."""
    try:
        refs = lineage_of(champion).refs
    except (CompassError, OSError, ValueError, KeyError):
        return []
    sources = _sources(line) if line else {}
    return [
        DataPart(role, ref.rows, ref.fingerprint, sources.get(role, ""))
        for role, ref in refs.items()
    ]


def _sources(line: RunLine) -> Mapping[str, str]:
    """Return where each body of data came from, as the run's configuration says."""
    return _sources_named(runs_folder() / line.run_id / "config.yaml")


@functools.lru_cache(256)
def _sources_named(path: Path) -> Mapping[str, str]:
    """Return what a run's configuration says, which never changes and all its languages share."""
    import yaml

    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        data = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("data") or {}
        roles = ("usage", "coverage", "test", "pool")
        if data.get("kind", "starter") == "starter":
            return dict.fromkeys(roles, "starter")
        return {role: _path(data[role]) for role in roles if data.get(role)}
    return {}


def _path(corpus: Mapping[str, Any]) -> str:
    path = corpus.get("path", "")
    return ", ".join(map(str, path)) if isinstance(path, list) else str(path)


def _last_run(code: str, lines: Sequence[RunLine]) -> dict[str, Any]:
    for line in lines:
        outcome = line.languages.get(code)
        if outcome is not None:
            return {
                "last_run": line.run_id,
                "last_run_flow": line.flow,
                "last_run_status": outcome["status"],
                "last_run_finished": line.finished,
                "last_run_seconds": outcome["seconds"],
            }
    return {}


def _with_usage(
    status: LanguageStatus, entry: registry.Serving | None, sources: _Sources
) -> LanguageStatus:
    """Return the status with how usage does; on several bases the newest champion's is watched."""
    watched = sources.usage[status.language]
    newest = sources.watched_versions.get(status.language)
    if newest is not None and status.model != newest:
        watched = WatchedLanguage(language=status.language, name=status.name)
    windows = closed_windows(watched)
    last = windows[-1] if windows else None
    status = replace(
        status,
        drift=state_of(watched),
        checked=watched.checked,
        events_pending=watched.n_pending,
        updating=watched.event_state == "taken",
    )
    if last is not None:
        status = replace(
            status,
            window=window_name(last),
            window_end=last.end,
            window_status=last.status,
            p_value=last.p_value,
            drift_score=last.score,
            drift_threshold=last.threshold,
        )
    error = _last_error(status, sources.lines)
    found = language_attention(status, entry, watched, error, sources.now, verify=sources.verify)
    return replace(status, attention=most_pressing_first(found))


def _last_error(status: LanguageStatus, lines: Sequence[RunLine]) -> str:
    for line in lines:
        if line.run_id == status.last_run:
            return str(line.languages[status.language]["error"])
    return ""


def home_is_empty() -> bool:
    """Return whether there is nothing to tell about."""
    return not any((compass_home() / name).exists() for name in ("runs", "usage", "mlflow.db"))

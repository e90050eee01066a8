"""One window: tested against the reference, decided on, and kept as an artefact that never changes.

``drift.json`` says what was found and decided, ``counts.parquet`` how many users each cluster had;
clusters with fewer users than `monitoring.min_shown` are merged in both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compass_core.config import MonitoringConfig, Recipe
from compass_core.monitoring.decisions import Check, DriftDecision, decide_drift
from compass_core.monitoring.drift import (
    DriftReport,
    MovedCluster,
    Sample,
    Status,
    detect_drift,
)
from compass_core.monitoring.history import Entry
from compass_core.monitoring.outbox import DriftEvent
from compass_core.monitoring.samples import count_units, resampled, shortfall
from compass_core.monitoring.shown import cluster_counts, counts_table, may_be_shown
from compass_core.monitoring.windows import Window, share_without_unit
from compass_core.records import ArtifactRef
from compass_core.seeding import derive_rng, derive_seed
from compass_core.storage import fingerprint, read_json, write_json, write_table
from tasks.baseline import Baseline
from tasks.settings import open_store

KIND = "drift"
_VERSION = 2
MANY_WITHOUT_UNIT = 0.05
"""Above this share of prompts without a user (or session) the notes of a window say so."""
_FIRST = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Watch:
    """What the windows of one language are decided with.

    Attributes:
        language: Canonical code.
        recipe: The configuration.
        n_languages: Languages watched together; the level is shared among them.
        baseline: The champion's space and its reference.
        now: When the monitor runs.
    """

    language: str
    recipe: Recipe
    n_languages: int
    baseline: Baseline
    now: datetime

    @property
    def config(self) -> MonitoringConfig:
        """Settings of the monitoring."""
        return self.recipe.monitoring


def judge(
    watch: Watch, window: Window, earlier: Sequence[Entry], pending: str, last: str
) -> dict[str, Any]:
    """Return what is said about a closed window, as plain values; the artefact is made once.

    Args:
        watch: The language and what it is compared with.
        window: The window.
        earlier: The windows decided before, in the order of the decisions.
        pending: Id of an event whose update is still to come; empty if there is none.
        last: Name of the newest of the windows that are decided together; it alone may declare a
            drift, because an update is for what is asked now.
    """
    store = open_store()
    key = _key(watch, window)
    ref = store.find(KIND, key)
    if ref is None:
        provenance = {
            "stage_version": _VERSION,
            "language": watch.language,
            "space": watch.baseline.fingerprint,
        }
        with store.build(KIND, key, provenance) as draft:
            draft.rows = window.n_prompts
            _write(draft.folder, watch, window, earlier, (pending, last))
        ref = store.put(KIND, key, draft)
    return read_window(ref)


def is_enough(watch: Watch, window: Window) -> bool:
    """Tell whether a closed window is large enough for a decision; nothing is tested."""
    config = watch.config.drift
    sample = window.sample(config)
    rng = derive_rng(watch.recipe.seed, "drift")
    groups, *_ = resampled(watch.baseline.reference, sample, config, rng)
    return not shortfall(groups, (count_units(groups[0]), count_units(groups[1])), config)


def read_window(ref: ArtifactRef) -> dict[str, Any]:
    """Return what the artefact says, and where it is."""
    values: dict[str, Any] = read_json(open_store().folder(ref) / "drift.json")
    return values | {"ref": ref.to_dict()}


def event_of(entry: Entry, earlier: Sequence[Entry]) -> DriftEvent:
    """Return the event of a window that made a drift: it names the alarms in a row up to it."""
    n_before = int(entry["n_consecutive"]) - 1
    alarms = [e["name"] for e in earlier if e["status"] == "alarm" and e["space"] == entry["space"]]
    windows = (*(alarms[-n_before:] if n_before > 0 else ()), entry["name"])
    return DriftEvent(
        language=entry["language"],
        champion_version=entry["champion"],
        space=entry["space"],
        windows=windows,
        p_value=entry["p_value"],
        drift_score=entry["score"],
        occurred=entry["decided"],
    )


def _key(watch: Watch, window: Window) -> str:
    table = window.table.select(["record_key", "cluster", "outside"])
    digest = hashlib.sha256()
    for row in sorted(zip(*(table[name].to_pylist() for name in table.column_names), strict=True)):
        digest.update(b"%b %d %d\n" % row)
    return fingerprint(
        KIND,
        _VERSION,
        {"language": watch.language, "window": window.name, "observations": digest.hexdigest()},
        {"space": watch.baseline.fingerprint, "champion": watch.baseline.adapter_sha256},
        {"version": watch.baseline.version, "n_languages": watch.n_languages},
        watch.config.drift.key_values() | {"min_shown": watch.config.min_shown},
        watch.recipe.seed,
    )


def _write(
    folder: Path, watch: Watch, window: Window, earlier: Sequence[Entry], limits: tuple[str, str]
) -> None:
    baseline, config = watch.baseline, watch.config
    sample = window.sample(config.drift)
    seed = derive_seed(watch.recipe.seed, "drift", watch.language, window.name) % 2**32
    report = detect_drift(
        baseline.reference,
        sample,
        baseline.n_clusters,
        config.drift,
        n_languages=watch.n_languages,
        seed=seed,
    )
    decision = _decide(watch, report, earlier, window.name, limits)
    told = [decision.reason] if report.status == "alarm" and not decision.drift_detected else []
    counts = counts_table(baseline.reference, sample, baseline.labels, config.min_shown)
    write_table(folder / "counts.parquet", counts)
    facts = report.to_dict() | {
        "language": watch.language,
        "space": baseline.fingerprint,
        "champion": baseline.version,
        "name": window.name,
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "decided": watch.now.isoformat(),
        "n_prompts": window.n_prompts,
        "n_counted": len(sample),
        "n_units": None if sample.units is None else count_units(sample),
        "n_late": window.n_late,
        "moved": shown_moves(report.moved, baseline, sample, config.min_shown),
        "notes": [*report.notes, *_notes(window, sample, config), *told],
        "drift_detected": decision.drift_detected,
        "in_cooldown": decision.in_cooldown,
        "n_consecutive": decision.n_consecutive,
        "reason": decision.reason,
        "n_languages": watch.n_languages,
        "n_clusters": baseline.n_clusters,
        "min_shown": config.min_shown,
        "settings": config.drift.model_dump(mode="json"),
        "seed": seed,
    }
    write_json(folder / "drift.json", facts)


def _decide(
    watch: Watch, report: DriftReport, earlier: Sequence[Entry], name: str, limits: tuple[str, str]
) -> DriftDecision:
    pending, last = limits
    checks = [_check(place, entry, watch.baseline) for place, entry in enumerate(earlier)]
    newest = Check(_moment(len(checks)), report.status, report.p_value, report.level)
    decision = decide_drift([*checks, newest], watch.config.drift)
    if not decision.drift_detected or not (pending or last != name):
        return decision
    reason = f"Newer windows were waiting, and {last}, the newest of them, says whether it lasts."
    if pending:
        reason = f"The update of the drift {pending[:12]} is still to come, so none is declared."
    return DriftDecision(False, decision.in_cooldown, decision.n_consecutive, reason)


def _check(place: int, entry: Entry, baseline: Baseline) -> Check:
    """Return what an earlier window counts as; alarms against another reference end no row."""
    same = (entry["space"], entry["champion"]) == (baseline.fingerprint, baseline.version)
    status: Status = entry["status"]
    if status == "alarm" and not same and not entry["drift_detected"]:
        status = "stable"
    return Check(
        _moment(place), status, entry["p_value"], entry["level"], bool(entry["drift_detected"])
    )


def _moment(place: int) -> datetime:
    """Return a time that puts checks in the order of the decisions, whatever the clocks said."""
    return _FIRST + timedelta(seconds=place)


def shown_moves(
    moved: Sequence[MovedCluster], baseline: Baseline, sample: Sample, min_shown: int
) -> list[dict[str, Any]]:
    """Return the clusters that moved with their labels; counts of few users are left out.

    So are z and p where a count is: it would follow from them and the count of the other side.
    """
    counts = [cluster_counts(s, baseline.n_clusters) for s in (baseline.reference, sample)]
    shown = [may_be_shown(c, min_shown) for c in counts]
    rows = []
    for move in moved:
        k = move["cluster"]
        before, after = (bool(mask[k]) for mask in shown)
        if (before and counts[0][k]) or (after and counts[1][k]):
            rows.append(
                {
                    "cluster": k,
                    "label": baseline.labels[k],
                    "reference_share": move["reference_share"] if before else None,
                    "current_share": move["current_share"] if after else None,
                    "n_reference": int(counts[0][k]) if before else None,
                    "n_current": int(counts[1][k]) if after else None,
                    "z": move["z"] if before and after else None,
                    "p": move["p"] if before and after else None,
                }
            )
    return rows


def _notes(window: Window, sample: Sample, config: MonitoringConfig) -> list[str]:
    notes = []
    unit = config.drift.unit
    nobody = share_without_unit(window.table, unit)
    if MANY_WITHOUT_UNIT < nobody < 1:
        treated = f"so the {unit}s of this window count as unknown."
        if sample.units is not None:
            treated = "and each of them counts as one more: the level holds only if it is."
        what = "user and no session" if unit == "user" else unit
        notes.append(f"{nobody:.0%} of the prompts have no {what}, {treated}")
    if len(sample) < window.n_prompts:
        once = "equal ones once, " if config.drift.duplicates == "collapse" else ""
        notes.append(
            f"{len(sample):,} of {window.n_prompts:,} prompts count: {once}at most "
            f"{config.drift.max_prompts_per_unit} of one {unit}."
        )
    return notes

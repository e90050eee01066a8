"""What serves each language, on what it stands, and what needs somebody: plain values.

    StatusReport ── LanguageStatus ── DataPart
                 │                 └─ Attention
                 └─ Attention (of no language)

`compass status --json` prints this and nothing else; docs/handbook.md describes every field. Times
are ISO 8601 with a zone, accuracies fractions, durations seconds; ``None`` means unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from compass_core.report.monitoring_state import STATE_TEXT
from compass_core.report.values import dump

STATUS_VERSION = 1
"""Version of the JSON; raised when a field changes its meaning or goes, not when one comes."""

ATTENTION = {
    "registry-unreachable": ("act", "the registry cannot be asked who serves"),
    "no-registry": ("act", "adapters were trained here, and the registry knows none"),
    "alias-broken": ("act", "an alias of the registry points to a version that is gone"),
    "adapter-damaged": ("act", "the files of the champion are not the registered ones"),
    "lineage-missing": ("act", "the store lost what the champion was made of"),
    "unreadable": ("act", "a file under usage/ cannot be read"),
    "event-failed": ("act", "the update that answered a drift ended with an error"),
    "event-waiting": ("act", "a drift waits for its update for more than a day"),
    "run-failed": ("act", "the last run of the language failed"),
    "not-registered": ("act", "a trained adapter could not be registered yet"),
    "monitor-failed": ("act", "the last monitor failed for this language"),
    "monitor-overdue": ("act", "usage is watched, and nobody has looked for two windows"),
    "upgrade-pending": ("act", "files of an earlier release wait for `compass upgrade`"),
    "disk-low": ("act", "less than 2 GiB of the disk is free"),
    "drift": ("watch", "usage has drifted; an update is due"),
    "update-refused": ("watch", "the gate refused the last update; usage is not stable since"),
    "alarm": ("watch", "the last window differs, which by itself is not a drift"),
}
"""Code: severity (act: somebody has to do something; watch: it may come to that), meaning."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One thing that somebody should look at.

    Attributes:
        code: A key of `ATTENTION`.
        text: What was found.
        command: What to run or read next.
    """

    code: str
    text: str
    command: str

    @property
    def severity(self) -> str:
        """Return ``act`` or ``watch``."""
        return ATTENTION[self.code][0]


@dataclass(frozen=True, slots=True)
class DataPart:
    """One body of data that the champion stands on.

    Attributes:
        role: usage, coverage, test, pool, sample, or of an update history, reference, ….
        rows: Its rows.
        fingerprint: Its artefact in the store.
        source: Where it came from as the configuration says: ``starter`` or a path.
    """

    role: str
    rows: int
    fingerprint: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageStatus:
    """Everything asked of one language; docs/handbook.md has the same list.

    Attributes:
        language: Canonical code.
        name: Name people know.
        base: Base model, as the configuration named it.
        model: Registered model.
        champion: Version that serves; empty: the base alone.
        adapter_sha256: Identity of its files.
        since: When it came into service.
        trained: When it was registered.
        run_id: Run that decided for it.
        flow: Flow of that run.
        decision: Fingerprint of the decision in the store.
        verdict: The reasons of the decision.
        strategy: How its data was selected.
        accuracy: Accuracy on the test items of its promotion.
        accuracy_low: Lower end of the interval.
        accuracy_high: Upper end of the interval.
        data: What it stands on.
        licences: Licences of the selected rows with their counts.
        challenger: Version tried last and not promoted, empty where there is none.
        previous: Version that a rollback brings back, empty: the base.
        drift: A key of `monitoring_state.STATE_TEXT`.
        window: Newest closed window, empty where there is none.
        window_end: Its end.
        window_status: stable, alarm, insufficient or empty.
        p_value: Of that window.
        drift_score: Of that window, bits.
        drift_threshold: Of that window, bits.
        checked: When a monitor looked last.
        events_pending: Drift events that no update has finished.
        updating: Whether an update works right now.
        last_run: Newest run of the language.
        last_run_flow: Its flow.
        last_run_status: What it came to for the language.
        last_run_finished: When it ended.
        last_run_seconds: Time spent in the stages of the language; stages taken from the store
            cost next to nothing.
        trained_tokens: Tokens that the champion's training read, once per pass.
        training_seconds: Time of that training.
        attention: What somebody should look at, most pressing first.
    """

    language: str
    name: str
    base: str = ""
    model: str = ""
    champion: str = ""
    adapter_sha256: str = ""
    since: str = ""
    trained: str = ""
    run_id: str = ""
    flow: str = ""
    decision: str = ""
    verdict: str = ""
    strategy: str = ""
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    data: list[DataPart] = field(default_factory=list)
    licences: str = ""
    challenger: str = ""
    previous: str = ""
    drift: str = "no-champion"
    window: str = ""
    window_end: str = ""
    window_status: str = ""
    p_value: float | None = None
    drift_score: float | None = None
    drift_threshold: float | None = None
    checked: str = ""
    events_pending: int = 0
    updating: bool = False
    last_run: str = ""
    last_run_flow: str = ""
    last_run_status: str = ""
    last_run_finished: str = ""
    last_run_seconds: float | None = None
    trained_tokens: int | None = None
    training_seconds: float | None = None
    attention: list[Attention] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """Every language that is served, watched or was run.

    Attributes:
        created: When it was put together.
        compass: Version of COMPASS.
        languages: Those that need something first.
        attention: What concerns no single language.
    """

    created: str
    compass: str = ""
    languages: list[LanguageStatus] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)


def to_json(report: StatusReport) -> str:
    """Return `report` as JSON; what is unknown becomes null."""
    return dump(report, STATUS_VERSION)


def most_pressing_first(found: Iterable[Attention]) -> list[Attention]:
    """Return what needs attention in the order of `ATTENTION`."""
    rank = {code: place for place, code in enumerate(ATTENTION)}
    return sorted(found, key=lambda item: rank[item.code])


def in_order(languages: Iterable[LanguageStatus]) -> list[LanguageStatus]:
    """Return languages: what needs something first, then by state of usage, then by name."""
    ranks = {code: place for place, code in enumerate(ATTENTION)}
    states = {state: place for place, state in enumerate(STATE_TEXT)}

    def order(item: LanguageStatus) -> tuple[int, int, str, str]:
        first = min((ranks[a.code] for a in item.attention), default=len(ranks))
        return (first, states.get(item.drift, 0), item.name, item.language)

    return sorted(languages, key=order)


def all_attention(report: StatusReport) -> list[tuple[str, Attention]]:
    """Return (name of the language or empty, what), the most pressing first."""
    rank = {code: place for place, code in enumerate(ATTENTION)}
    found = [("", item) for item in report.attention]
    found += [(lang.name, item) for lang in report.languages for item in lang.attention]
    return sorted(found, key=lambda pair: rank[pair[1].code])

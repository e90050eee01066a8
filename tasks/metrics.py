"""What Prometheus is told: the status as text, for a textfile collector or a scrape by hand.

    compass metrics --out /var/lib/node_exporter/compass.prom

Nothing runs in the background, so nothing has to be kept alive or secured. Times are stamps, not
ages, so that a file that is written rarely still says the right thing. Labels take few values: the
languages of this home, and words of our own.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from compass_core.report.status_data import LanguageStatus, StatusReport
from compass_core.storage import write_text
from compass_core.version import __version__
from tasks.run_index import RunLine, run_lines
from tasks.settings import compass_home, store_root
from tasks.status import collect_status

MAX_LANGUAGES = 1_000
"""Languages that are told apart; more would make too many series for a small Prometheus."""

_READABLE = 0o644
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass
class Family:
    """One metric: its name, what it is, and its samples.

    Attributes:
        name: With unit, as Prometheus wants it.
        help: One line.
        kind: gauge or counter.
        samples: Labels and value.
    """

    name: str
    help: str
    kind: str = "gauge"
    samples: list[tuple[Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float | None, **labels: str) -> None:
        """Add a sample; what is unknown is left out."""
        if value is not None and math.isfinite(value):
            self.samples.append((labels, float(value)))

    def lines(self) -> Iterator[str]:
        """Yield the family in the text format, version 0.0.4; nothing without samples."""
        if not self.samples:
            return
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples:
            inside = ",".join(f'{name}="{_label(text)}"' for name, text in labels.items())
            yield f"{self.name}{{{inside}}} {value!r}" if inside else f"{self.name} {value!r}"


def _label(text: str) -> str:
    return text.translate(_ESCAPES)[:200]


def write_metrics(path: Path) -> None:
    """Write the metrics to `path` in one piece, readable by everybody."""
    write_text(path, metrics_text(datetime.now(UTC)))
    path.chmod(_READABLE)


def metrics_text(now: datetime) -> str:
    """Return all metrics of this home as text."""
    lines = run_lines()
    report = collect_status(now, lines=lines)
    families = [*_general(report, now), *_languages(report), *_runs(lines), *_disk()]
    return "".join(f"{line}\n" for family in families for line in family.lines())


def _general(report: StatusReport, now: datetime) -> list[Family]:
    info = Family("compass_build_info", "Version of COMPASS.")
    info.add(1, version=__version__)
    stamp = Family("compass_status_timestamp_seconds", "When these numbers were collected.")
    stamp.add(now.timestamp())
    left_out = Family("compass_languages_left_out", "Languages beyond those that are told apart.")
    left_out.add(max(len(report.languages) - MAX_LANGUAGES, 0))
    needs = Family("compass_attention", "1 for each thing that somebody should look at.")
    found = [("", item) for item in report.attention]
    found += [(row.language, item) for row in report.languages for item in row.attention]
    for (language, code), severity in {(n, i.code): i.severity for n, i in found}.items():
        needs.add(1, language=language, code=code, severity=severity)
    return [info, stamp, left_out, needs]


def _languages(report: StatusReport) -> list[Family]:
    rows = report.languages[:MAX_LANGUAGES]
    numbers: list[tuple[str, str, dict[str, float | None]]] = [
        (
            "champion_version",
            "Version that serves; 0: the base alone.",
            {_key(row): float(row.champion or 0) for row in rows},
        ),
        (
            "champion_since_timestamp_seconds",
            "When the champion came into service.",
            {_key(row): _stamp(row.since) for row in rows},
        ),
        (
            "champion_accuracy_ratio",
            "Accuracy on the test items of its promotion.",
            {_key(row): row.accuracy for row in rows},
        ),
        (
            "champion_accuracy_low_ratio",
            "Lower end of its interval.",
            {_key(row): row.accuracy_low for row in rows},
        ),
        (
            "champion_accuracy_high_ratio",
            "Upper end of its interval.",
            {_key(row): row.accuracy_high for row in rows},
        ),
        (
            "drift_p_value",
            "p-value of the newest closed window.",
            {_key(row): row.p_value for row in rows},
        ),
        (
            "drift_score_bits",
            "Drift score of the newest closed window.",
            {_key(row): row.drift_score for row in rows},
        ),
        (
            "drift_threshold_bits",
            "Threshold of the score for the sizes of that window.",
            {_key(row): row.drift_threshold for row in rows},
        ),
        (
            "monitor_checked_timestamp_seconds",
            "When a monitor looked last.",
            {_key(row): _stamp(row.checked) for row in rows},
        ),
        (
            "drift_events_pending",
            "Drift events that no update has finished.",
            {_key(row): float(row.events_pending) for row in rows},
        ),
        (
            "update_running",
            "1 while an update of the language is at work.",
            {_key(row): float(row.updating) for row in rows},
        ),
        (
            "last_run_finished_timestamp_seconds",
            "When the last run of the language ended.",
            {_key(row): _stamp(row.last_run_finished) for row in rows},
        ),
        (
            "last_run_stage_seconds",
            "Time of its stages for the language.",
            {_key(row): row.last_run_seconds for row in rows},
        ),
        (
            "last_run_failed",
            "1 if the last run of the language failed.",
            {
                _key(row): float(row.last_run_status == "failed") if row.last_run else None
                for row in rows
            },
        ),
    ]
    return [_family(name, text, values) for name, text, values in numbers] + [_states(rows)]


def _key(row: LanguageStatus) -> str:
    """Return language and base, the labels of every number of a language."""
    slug = row.model.split(".")[1] if row.model else ""
    return f"{row.language} {slug}"


def _family(name: str, text: str, values: Mapping[str, float | None]) -> Family:
    family = Family(f"compass_{name}", text)
    for key, value in values.items():
        language, _, base = key.partition(" ")
        family.add(value, language=language, base=base)
    return family


def _states(rows: Iterable[LanguageStatus]) -> Family:
    family = Family("compass_drift_state", "1 for the state that the usage of a language is in.")
    for row in rows:
        language, _, base = _key(row).partition(" ")
        family.add(1, language=language, base=base, state=row.drift)
    return family


def _runs(lines: Sequence[RunLine]) -> list[Family]:
    took = Family("compass_last_run_duration_seconds", "Time of the newest run of each flow.")
    counts = Family("compass_runs_kept", "Languages of the kept runs, by what became of them.")
    newest = {line.flow: line for line in reversed(lines)}
    for flow, line in sorted(newest.items()):
        took.add(line.seconds, flow=flow)
    outcomes = Counter(
        (line.flow, str(outcome["status"])) for line in lines for outcome in line.languages.values()
    )
    for (flow, status), count in sorted(outcomes.items()):
        counts.add(count, flow=flow, status=status)
    return [took, counts]


def _disk() -> list[Family]:
    free = Family("compass_disk_free_bytes", "Free space for COMPASS_HOME.")
    total = Family("compass_disk_size_bytes", "Size of the disk of COMPASS_HOME.")
    kept = Family("compass_store_bytes", "Artefacts in the store, by kind.")
    home = compass_home()
    if home.exists():
        disk = shutil.disk_usage(home)
        free.add(disk.free)
        total.add(disk.total)
    root = store_root()
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_dir() and folder.name not in ("tmp", "locks", "keys"):
            kept.add(_size(folder), kind=folder.name)
    return [free, total, kept]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # another run cleans up meanwhile
            continue
    return total


def _stamp(text: str) -> float | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()

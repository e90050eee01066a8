"""What serves each language, as text for a terminal of 80 columns."""

from __future__ import annotations

from textwrap import wrap

from compass_core.report.markup import clean, duration, elapsed, exact_p, moment, number
from compass_core.report.monitoring_state import STATE_MEANING, STATE_TEXT
from compass_core.report.status_data import (
    ATTENTION,
    Attention,
    DataPart,
    LanguageStatus,
    StatusReport,
    all_attention,
)

HEADER = ("language", "serves", "age", "accuracy, %", "usage", "look at")
_WIDTH = 80
_LABEL = 13
_SIGN = {"act": "✕", "watch": "▲"}
_NAME_LENGTH = 16


def overview_rows(report: StatusReport) -> list[tuple[str, ...]]:
    """Return one row of each language, those that need something first."""
    names = [language.language for language in report.languages]
    return [_row(item, report.created, names.count(item.language) > 1) for item in report.languages]


def _row(item: LanguageStatus, now: str, several: bool) -> tuple[str, ...]:
    name = clean(f"{item.name} · {item.base}" if several else item.name, _NAME_LENGTH)
    first = item.attention[0].code if item.attention else ""
    return (
        name,
        f"v{item.champion}" if item.champion else "base",
        _age(item.since, now),
        accuracy_text(item),
        STATE_TEXT[item.drift],
        f"{_SIGN[ATTENTION[first][0]]} {first}" if first else "",
    )


def _age(since: str, now: str) -> str:
    """Return how long something has served: hours up to two days, then days."""
    seconds = elapsed(since, now)
    if seconds is None:
        return "–"
    return f"{seconds / 3600:.0f} h" if seconds < 2 * 86_400 else f"{seconds / 86_400:.0f} d"


def accuracy_text(item: LanguageStatus) -> str:
    """Return the champion's accuracy in percent with its interval.

    Examples:
        >>> accuracy_text(LanguageStatus(language="swh_Latn", name="Swahili", accuracy=0.5614,
        ...                              accuracy_low=0.5, accuracy_high=0.62))
        '56.1 [50–62]'
    """
    if item.accuracy is None:
        return "–"
    if item.accuracy_low is None or item.accuracy_high is None:
        return f"{100 * item.accuracy:.1f}"
    low, high = 100 * item.accuracy_low, 100 * item.accuracy_high
    return f"{100 * item.accuracy:.1f} [{low:.0f}–{high:.0f}]"


def attention_text(report: StatusReport) -> str:
    """Return everything that needs somebody, the most pressing first, with what to do."""
    found = all_attention(report)
    if not found:
        return "Nothing needs attention."
    lines = [line for name, item in found for line in _attention_lines(name, item)]
    return "\n".join(["Needs attention:", *lines])


def _attention_lines(name: str, item: Attention) -> list[str]:
    who = f"{clean(name, 40)}: " if name else ""
    head = f"{_SIGN[item.severity]} {who}{item.code}: {clean(item.text, 400)}"
    return [*_wrapped(head, 2, 4), *_wrapped(f"→ {clean(item.command, 200)}", 4, 6)]


def detail_text(item: LanguageStatus) -> str:
    """Return everything known of one language."""
    serves = f"version {item.champion}" if item.champion else "the base alone"
    state = f"{STATE_TEXT[item.drift]}: {STATE_MEANING[item.drift]}"
    facts = [
        ("serves", f"{serves} of {item.model}" if item.model else "nothing is registered"),
        ("base", item.base),
        ("adapter", f"sha256 {item.adapter_sha256[:16]}…" if item.adapter_sha256 else ""),
        ("since", _since(item)),
        ("decided by", _decision(item)),
        ("because", item.verdict.replace(".; ", ". ")),
        ("accuracy", f"{accuracy_text(item)} %" if item.accuracy is not None else ""),
        *[(f"data {part.role}", _part(part)) for part in item.data],
        ("licences", item.licences),
        ("training", _training(item)),
        ("usage", state),
        ("window", _window(item)),
        ("checked", moment(item.checked) if item.checked else "never"),
        ("events", f"{item.events_pending} pending{', update at work' * item.updating}"),
        ("last run", _last_run(item)),
        ("rollback to", f"version {item.previous}" if item.previous else ""),
        ("challenger", f"version {item.challenger}" if item.challenger else ""),
    ]
    lines = [f"{clean(item.name, 60)} ({item.language})"]
    for label, value in facts:
        if value:
            first, *rest = wrap(clean(value, 600), _WIDTH - _LABEL - 4) or [""]
            lines.append(f"  {label:<{_LABEL}}  {first}")
            lines += [f"{'':<{_LABEL + 4}}{line}" for line in rest]
    for found in item.attention:
        lines += _attention_lines("", found)
    return "\n".join(lines)


def _since(item: LanguageStatus) -> str:
    if not item.champion:
        return ""
    trained = f", trained {moment(item.trained)}" if item.trained[:16] != item.since[:16] else ""
    return f"{moment(item.since)}{trained}"


def _decision(item: LanguageStatus) -> str:
    if not item.run_id:
        return "a run that is no longer kept" if item.champion else ""
    return f"run {item.run_id} ({item.flow}), decision {item.decision[:12] or '–'}"


def _part(part: DataPart) -> str:
    source = f"{part.source}, " if part.source else ""
    return f"{source}{part.rows:,} rows, {part.fingerprint[:12]}"


def _training(item: LanguageStatus) -> str:
    if item.trained_tokens is None:
        return ""
    took = f" in {duration(item.training_seconds)}" if item.training_seconds is not None else ""
    return f"{item.trained_tokens:,} tokens{took}"


def _window(item: LanguageStatus) -> str:
    if not item.window:
        return ""
    return (
        f"{item.window}: {item.window_status}, score {number(item.drift_score)} "
        f"(threshold {number(item.drift_threshold)}), p {exact_p(item.p_value)}"
    )


def _last_run(item: LanguageStatus) -> str:
    if not item.last_run:
        return "none"
    took = duration(item.last_run_seconds)
    return (
        f"{item.last_run} ({item.last_run_flow}): {item.last_run_status}, "
        f"{moment(item.last_run_finished)}, {took} in its stages"
    )


def _wrapped(text: str, first: int, rest: int) -> list[str]:
    return wrap(
        text,
        _WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_on_hyphens=False,
    )

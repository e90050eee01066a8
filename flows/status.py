"""`compass status`: what serves each language, since when, from which data, and does it drift?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.table import Table

from compass_core.languages import canonical_language
from compass_core.report.status_data import StatusReport, to_json
from compass_core.report.status_text import HEADER, attention_text, detail_text, overview_rows
from flows.terminal import OUT
from tasks.status import collect_status

EXIT_ATTENTION = 1
_DETAILED = 1
"""Languages up to which everything is told of each."""


def show_status(languages: Sequence[str], *, as_json: bool, verify: bool, check: bool) -> int:
    """Print the status and return the exit code.

    Args:
        languages: As people write them; none for all.
        as_json: Whether to print JSON.
        verify: Whether to hash the files of every champion.
        check: Whether something that needs somebody makes the exit code 1.
    """
    codes = [canonical_language(language) for language in languages]
    report = collect_status(datetime.now(UTC), languages=codes or None, verify=verify)
    if as_json:
        sys.stdout.write(to_json(report))
    else:
        _show(report, detailed=bool(codes) or len(report.languages) <= _DETAILED)
    needed = [item for row in report.languages for item in row.attention] + report.attention
    acts = [item for item in needed if item.severity == "act"]
    unreachable = any(item.code == "registry-unreachable" for item in report.attention)
    return EXIT_ATTENTION if unreachable or (check and acts) else 0


def _show(report: StatusReport, *, detailed: bool) -> None:
    if not report.languages:
        _say("Nothing is registered yet. Run `compass adapt` first.")
    elif detailed:
        for language in report.languages:
            _say(detail_text(language))
    else:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for name in HEADER:
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for row in overview_rows(report):
            table.add_row(*row)
        OUT.print(table, markup=False, highlight=False)
    if report.attention or not detailed:
        _say("")
        _say(attention_text(report))
    if not detailed:
        _say("One language: compass status -l sw. Page: compass report. All of it: --json.")


def _say(text: str) -> None:
    OUT.print(text, markup=False, highlight=False, soft_wrap=True)

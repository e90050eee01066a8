"""What Prefect's interface shows of a run: progress, a page per language, outcomes, the report.

An artifact is for people; the run does not depend on any. So a server that is slow or away costs a
warning, never a language.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import deployment

from compass_core.config import AdaptConfig, AdaptLanguageConfig, Recipe
from compass_core.languages import language_name
from compass_core.report.data import RunReport
from compass_core.report.text import (
    evaluation_table_markdown,
    gap_headline,
    gap_table_markdown,
    health_table_markdown,
    outcomes_markdown,
    source_table_markdown,
    verdict_headline,
    verdict_markdown,
)
from tasks.language_report import language_report
from tasks.outage import tell_server
from tasks.progress import beat

_LOG = logging.getLogger(__name__)
_AT_ONCE = 2
"""Pages that are sent to the server at once."""
_side: ContextVar[ThreadPoolExecutor | None] = ContextVar("side", default=None)
_MAX_LINK = 6_000
"""Characters of an address that every browser and server takes."""
_COMMANDS = {
    "adapt-languages": "adapt",
    "compare-strategies": "study",
    "continual-study": "continual",
}


def slug_of(language: str) -> str:
    """Return a language's code as artifact keys spell it.

    Examples:
        >>> slug_of("swh_Latn")
        'swh-latn'
    """
    return language.lower().replace("_", "-")


@contextlib.contextmanager
def pages_on_the_side() -> Iterator[None]:
    """Show the pages that the block publishes from other threads, and wait for the last of them.

    Telling a busy server of a language takes longer than finding that everything is cached. A run
    that is stopped waits for nothing.
    """
    threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pages")
    token = _side.set(threads)
    try:
        try:
            yield
        finally:
            _side.reset(token)
        threads.shutdown()
    except Exception:
        threads.shutdown()
        raise
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        raise


def publish(key: str, markdown: str, description: str) -> None:
    """Show a page in the interface; each call with one key is a version of its history."""
    threads = _side.get()
    if threads is not None:
        own = contextvars.copy_context()  # the page belongs to the run whose context this is
        with contextlib.suppress(RuntimeError):  # a language may outlive a run that is stopped
            threads.submit(own.run, _publish, key, markdown, description)
            return
    _publish(key, markdown, description)


def _publish(key: str, markdown: str, description: str) -> None:
    try:
        tell_server(create_markdown_artifact, markdown, key=key, description=description)
    except Exception as error:
        _LOG.warning("The artifact %s could not be shown: %s", key, error)


def publish_language(outcome: Mapping[str, Any], recipe: Recipe) -> None:
    """Show one language's gap and evaluation, and say that the language is finished."""
    report = language_report(outcome, recipe, with_map=False)
    headline = verdict_headline(report, recipe.selection.strategy)
    slug = slug_of(report.language)
    chosen = [gap_table_markdown(report), source_table_markdown(report)]
    publish(
        f"gap-{slug}", "\n".join([*chosen, health_table_markdown(report)]), gap_headline(report)
    )
    if report.status != "selected":
        scored = [verdict_markdown(report), evaluation_table_markdown(report)]
        publish(f"evaluation-{slug}", "\n".join(scored), headline)
    beat(report.language, "adapt", "finished", 1.0, headline)


def publish_run(report: RunReport, recipe: Recipe, flow: str, folder: Path) -> None:
    """Show how every language ended, the failed first, and where the report is."""
    failed = [language.language for language in report.languages if language.status == "failed"]
    page = outcomes_markdown(report) + (_again(recipe, flow, failed, folder) if failed else "")
    ended = f"{len(report.languages) - len(failed)} of {len(report.languages)} languages done"
    codes = f"; failed: {', '.join(failed[:5])}{' …' if len(failed) > 5 else ''}" if failed else ""
    publish(f"outcome-{run_slug(recipe)}", page, ended + codes)
    publish("report", report_markdown(folder), f"Report of {report.project}, {folder.name}")


def run_slug(recipe: Recipe) -> str:
    """Return what the keys of a run's own artifacts end with: its language, or its project."""
    if isinstance(recipe, AdaptLanguageConfig):
        return slug_of(recipe.language)
    return recipe.project


def report_markdown(folder: Path) -> str:
    """Return where a person finds the report; a page cannot link to a file of another machine."""
    path = folder / "report.html"
    address = os.environ.get("COMPASS_REPORTS_URL", "").rstrip("/")
    if address:
        link = f"{address}/{quote(folder.name)}/report.html"
        return f"## [Open the report]({link})\n\nAll runs: [{address}]({address}/index.html)\n"
    return (
        f"## Report of {folder.name}\n\nOn the machine of the worker, open this file in a browser "
        f"(browsers do not open files from a page of a server):\n\n```\n{path}\n```\n\n"
        f"For a link in this place, serve the folder `{folder.parent}` with any web server and set "
        "`COMPASS_REPORTS_URL` to its address where the worker is started.\n"
    )


def _again(recipe: Recipe, flow: str, failed: Sequence[str], folder: Path) -> str:
    """Return how the failed languages, and they alone, are run again."""
    names = ", ".join(f"{language_name(code)} ({code})" for code in failed)
    lines = ["", f"### Run again: {names}", "", "Stages that are done are kept, not repeated.", ""]
    link = again_link(recipe, failed)
    if link:
        lines.append(f"- [Open the form with these languages filled in]({link}), then *Submit*.")
    elif isinstance(recipe, AdaptLanguageConfig):
        lines.append("- Press *Retry* on the page of the run.")
    if flow in _COMMANDS:
        # On several lines: the page does not break long ones.
        command = " \\\n  ".join(
            (
                f"compass {_COMMANDS[flow]}",
                str(folder / "config.yaml"),
                f"languages={','.join(failed)}",
            )
        )
        lines.append("- Or on the command line, in the folder that the run was started in:")
        lines += ["", "```", command, "```"]
    return "\n".join([*lines, ""])


def again_link(recipe: Recipe, failed: Sequence[str]) -> str:
    """Return the address of this deployment's form, filled in for `failed`; empty without one."""
    deployment_id = deployment.get_id()
    if not deployment_id:
        return ""
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    values["data"] = {"kind": recipe.data.kind} | values.get("data", {})
    if isinstance(recipe, AdaptConfig):
        values["languages"] = list(failed)
    filled = quote(json.dumps({"config": values}, ensure_ascii=False, separators=(",", ":")))
    link = f"/v2/deployments/deployment/{deployment_id}/run?parameters={filled}"
    return link if len(link) <= _MAX_LINK else ""

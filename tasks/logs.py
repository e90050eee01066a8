"""Logs with language, run and stage: text for people, one JSON object per line for programs.

`COMPASS_LOG_FORMAT=json` chooses the second, on standard error; ``logging.yml`` holds the rest.
What a record is about comes from the Prefect run it was written in, or, in a trainer process, from
the job. Control characters never reach a log as they are, secrets of the environment not at all.
"""

from __future__ import annotations

import functools
import json
import logging
import logging.config
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from compass_core.errors import ConfigError
from tasks.progress import Beat, watch

VARIABLE: Final = "COMPASS_LOG_FORMAT"
SETTINGS_FILE: Final = Path(__file__).with_name("logging.yml")
PROGRESS: Final = logging.getLogger("compass.progress")

_JSON_ENVIRONMENT: Final = {
    "PREFECT_LOGGING_ROOT_HANDLERS": "json_lines",
    "PREFECT_LOGGING_LOGGERS_COMPASS_LEVEL": "INFO",
    "PREFECT_LOGGING_LOGGERS_TASKS_LEVEL": "INFO",
    "PREFECT_LOGGING_LOGGERS_COMPASS_CORE_LEVEL": "INFO",
}
_SECRET_NAMES: Final = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|API_KEY|PRIVACY_KEY", re.I)
_SHORTEST_SECRET: Final = 6
_URL_PASSWORD: Final = re.compile(r"(://[^:/@\s]*):[^@/\s]+@")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_MESSAGE: Final = 8_000

_about: ContextVar[Mapping[str, str] | None] = ContextVar("about", default=None)
_runs: dict[str, str] = {}
"""COMPASS run ids by Prefect flow run id, of this process."""


def wants_json() -> bool:
    """Return whether logs are JSON lines.

    Raises:
        ConfigError: `COMPASS_LOG_FORMAT` is neither text nor json.
    """
    value = os.environ.get(VARIABLE, "text")
    if value not in ("text", "json"):
        raise ConfigError(f"{VARIABLE}={value[:40]!r} is no format of logs. Write text or json.")
    return value == "json"


def use_log_format() -> None:
    """Make this process and those it starts log as the environment asks.

    Called before Prefect is imported it only sets Prefect's own variables. A worker imports Prefect
    first and flows later: what it set up then is replaced for JSON, and otherwise mended in place.
    """
    as_json = os.environ.get(VARIABLE) == "json"  # another value is told when a run is followed
    os.environ.setdefault("PREFECT_LOGGING_SETTINGS_PATH", str(SETTINGS_FILE))
    if as_json:
        os.environ.update(_JSON_ENVIRONMENT)
    if "prefect" not in sys.modules:
        return
    root = logging.getLogger()
    done = any(isinstance(handler.formatter, JsonLines) for handler in root.handlers)
    if as_json and not done:
        from prefect.logging.configuration import load_logging_config

        logging.config.dictConfig(load_logging_config(SETTINGS_FILE))
    else:
        _mend_handlers()


def _mend_handlers() -> None:
    """Let handlers that Prefect made by itself mask secrets and leave out what is no news."""
    from prefect.logging.handlers import (
        APILogHandler,
        PrefectConsoleHandler,
        WorkerAPILogHandler,
    )
    from prefect.settings import get_current_settings

    from tasks.api_logs import ApiLogs, WorkerApiLogs

    ours: dict[type[logging.Handler], type[logging.Handler]] = {
        APILogHandler: ApiLogs,
        WorkerAPILogHandler: WorkerApiLogs,
    }
    own = ("prefect.flow_runs", "prefect.task_runs", "prefect.extra", "prefect.workers")
    extra = get_current_settings().logging.extra_loggers or ()
    for name in (*own, *extra):
        logger = logging.getLogger(name)
        for handler in [item for item in logger.handlers if type(item) in ours]:
            logger.removeHandler(handler)
            logger.addHandler(ours[type(handler)](handler.level))
    _add_filter(logging.getLogger("prefect.task_runs"), WithoutCached())
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            _add_filter(handler, Tidy())


def _add_filter(place: logging.Filterer, wanted: logging.Filter) -> None:
    if not any(isinstance(known, type(wanted)) for known in place.filters):
        place.addFilter(wanted)


def note_run(run_id: str) -> None:
    """Remember the COMPASS run of the flow run that is going on, for every record of it."""
    _runs[_prefect_context().get("flow_run", "")] = run_id


def in_context(
    job: Callable[[dict[str, Any]], dict[str, Any]], spec: dict[str, Any], about: Mapping[str, str]
) -> dict[str, Any]:
    """Run ``job(spec)`` with every record of it saying what it is about (in a trainer process)."""
    token = _about.set(about)
    try:
        return job(spec)
    finally:
        _about.reset(token)


def context() -> dict[str, str]:
    """Return what a record written now is about: language, stage, run and flow_run, as known."""
    found = dict(_about.get() or {}) or _prefect_context()
    run = _runs.get(found.get("flow_run", ""), "")
    return {name: value for name, value in ({"run": run} | found).items() if value}


def _prefect_context() -> dict[str, str]:
    if "prefect.context" not in sys.modules:
        return {}
    from prefect.context import FlowRunContext, TaskRunContext

    task, flow = TaskRunContext.get(), FlowRunContext.get()
    found: dict[str, str] = {}
    if flow is not None and flow.flow_run is not None:
        found["flow_run"] = str(flow.flow_run.id)
        found["language"] = _language(flow.parameters)
    if task is not None:
        found["flow_run"] = str(task.task_run.flow_run_id or found.get("flow_run", ""))
        found["stage"] = task.task.name
        found["language"] = _language(task.parameters) or found.get("language", "")
    return found


def _language(parameters: Mapping[str, Any] | None) -> str:
    value = (parameters or {}).get("language", "")
    return value if isinstance(value, str) else ""


def log_progress() -> Callable[[], None]:
    """Log every step that ends; the returned function ends that."""

    def tell(beat: Beat) -> None:
        if beat.state == "running":
            return
        level = logging.ERROR if beat.state == "failed" else logging.INFO
        about = context() | {"language": beat.language, "stage": beat.stage, "state": beat.state}
        text = f"{beat.stage} {beat.state} {beat.detail}".rstrip()
        PROGRESS.log(level, "%s", text, extra={"about": about})

    return watch(tell)


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, logger, message, language, run, flow_run, stage."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        about = getattr(record, "about", None) or context() or _of_prefect(record)
        when = datetime.fromtimestamp(record.created, UTC)
        values: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(record.getMessage())[:_MAX_MESSAGE],
            **{name: about.get(name, "") for name in ("language", "stage", "run", "flow_run")},
        }
        if "state" in about:
            values["state"] = about["state"]
        if record.exc_info and record.exc_info[0] is not None:
            values["exception"] = without_secrets(self.formatException(record.exc_info))
        text = json.dumps(values, ensure_ascii=False)
        return _CONTROL.sub(_escaped, text).encode(errors="replace").decode()


def _of_prefect(record: logging.LogRecord) -> dict[str, str]:
    """Return what Prefect itself says of a record written outside of its run: how it ended."""
    flow_run = str(getattr(record, "flow_run_id", "") or "")
    found = {"flow_run": flow_run, "run": _runs.get(flow_run, "")}
    stage = getattr(record, "task_name", "")
    return found | ({"stage": str(stage)} if stage else {})


class WithoutCached(logging.Filter):
    """Drops what Prefect says of every stage that was kept: its state is on its page already."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record tells anything new."""
        return not str(record.msg).startswith("Finished in state Cached")


class Tidy(logging.Filter):
    """Text records: escaped, without secrets, and with language and stage in front."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record's message and traceback once; every record passes."""
        if getattr(record, "tidy", False):
            return True
        record.__dict__["tidy"] = True
        if record.exc_info and record.exc_info[0] is not None:
            told = logging.Formatter().formatException(record.exc_info)
            record.exc_text = _CONTROL.sub(_escaped_but_lines, without_secrets(told))
        text = _CONTROL.sub(_escaped_but_lines, without_secrets(record.getMessage()))
        about = context() if not hasattr(record, "task_run_name") else {}
        where = " ".join(about[name] for name in ("language", "stage") if name in about)
        record.msg, record.args = f"[{where}] {text}" if where else text, None
        return True


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def _escaped_but_lines(match: re.Match[str]) -> str:
    """Keep lines apart but indented, so that no line of data looks like one of ours."""
    return "\n    " if match.group() == "\n" else _escaped(match)


def without_secrets(text: str) -> str:
    """Return `text` with secrets of the environment and passwords of addresses masked."""
    for secret in _secrets(tuple(os.environ.items())):
        text = text.replace(secret, "***")
    return _URL_PASSWORD.sub(r"\1:***@", text)


@functools.lru_cache(4)
def _secrets(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    found = {
        part
        for name, value in environment
        if _SECRET_NAMES.search(name)
        for part in (value, value.partition(":")[2])
        if len(part) >= _SHORTEST_SECRET
    }
    return tuple(sorted(found, key=len, reverse=True))

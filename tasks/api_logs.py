"""Log records on their way to the Prefect server, without secrets; named in ``logging.yml``."""

from __future__ import annotations

import logging

from prefect.logging.handlers import APILogHandler, WorkerAPILogHandler

from tasks.logs import without_secrets


class ApiLogs(APILogHandler):
    """What flow and task runs say."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of `record`, traceback included, with secrets masked."""
        return without_secrets(super().format(record))


class WorkerApiLogs(WorkerAPILogHandler):
    """What a worker says."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of `record`, traceback included, with secrets masked."""
        return without_secrets(super().format(record))

"""Flows: one file, one flow, one deployment."""

from tasks.logs import use_log_format

# Whoever starts a flow comes through here first: the command line before Prefect is imported, the
# process of a worker after.
use_log_format()

"""Waiting in line; with a server and a worker in tests/deployments/test_events.py."""

from tasks.waiting import wait_in_line


def test_a_run_that_no_worker_started_does_not_leave_the_line():
    assert wait_in_line("another update is at work") is None

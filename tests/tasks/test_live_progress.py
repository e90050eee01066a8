"""The table is brought up to date beside the run, which never waits for it."""

import time

import pytest

from compass_core.report.progress import Board
from tasks.live_progress import Poster, live_progress
from tasks.progress import beat


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def test_the_table_is_posted_at_once_after_news_and_at_the_end():
    posts = []
    board = Board(["swh_Latn"])
    with Poster(board, lambda text, words: posts.append((text, words)), 0.02):
        wait_for(lambda: posts)
        board.tell("swh_Latn", "cluster", "running", 0.5)
        wait_for(lambda: "▶ 50%" in posts[-1][0])
        n_before = len(posts)
        time.sleep(0.2)
        assert len(posts) == n_before, "nothing new is nothing to post"
        board.tell("swh_Latn", "adapt", "finished", detail="Swahili: promoted")
    assert "Ended after" in posts[-1][0]
    assert posts[-1][1] == "1 of 1 languages done"


def test_much_news_makes_few_posts():
    posts = []
    board = Board(["swh_Latn"])
    with Poster(board, lambda *_: posts.append(1), 0.3):
        started = time.monotonic()
        while time.monotonic() - started < 1.0:
            board.tell("swh_Latn", "adapter-train compass", "running", 0.5)
            time.sleep(0.001)
    assert len(posts) <= 8


def test_a_server_that_refuses_every_post_stops_nobody():
    def refuse(*_):
        raise ConnectionError("nobody there")

    board = Board(["swh_Latn"])
    with Poster(board, refuse, 0.01):
        board.tell("swh_Latn", "cluster", "done")
        time.sleep(0.1)


def test_a_server_that_never_answers_delays_the_end_of_a_run_by_seconds_only(monkeypatch):
    monkeypatch.setattr("tasks.live_progress._LAST_POST_SECONDS", 0.2)
    started = time.monotonic()
    with Poster(Board(["swh_Latn"]), lambda *_: time.sleep(60), 0.01):
        time.sleep(0.05)
    assert time.monotonic() - started < 20


def test_outside_of_any_run_progress_is_kept_but_not_posted():
    with live_progress("test", ["swh_Latn"]) as board:
        beat("swh_Latn", "cluster", "done", 1.0, "0.1 s")
        assert board.kept_and_made("swh_Latn") == (0, 1)
    beat("swh_Latn", "cluster", "done")
    assert board.kept_and_made("swh_Latn") == (0, 1), "nobody listens after the end"


def test_an_error_of_the_run_goes_through_unchanged():
    with pytest.raises(ValueError, match="of the run"), live_progress("test", ["swh_Latn"]):
        raise ValueError("of the run")

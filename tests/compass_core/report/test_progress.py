"""The table that shows how far every language of a run has come."""

import re
import threading

from compass_core.report.progress import COLUMNS, Board

LANGUAGES = ("swh_Latn", "tur_Latn", "ukr_Cyrl")


def rows(board, *, over=False):
    text = board.markdown(elapsed="5 s", updated="10:00:00 UTC", over=over)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def row(board, name, *, over=False):
    header, *found = rows(board, over=over)
    (values,) = [values for values in found if values[0].startswith(name)]
    return dict(zip(header, values, strict=True))


def test_every_language_has_a_row_before_anything_has_happened():
    board = Board(LANGUAGES)
    assert [values[0] for values in rows(board)][1:] == [
        "Swahili",
        "Turkish",
        "Ukrainian",
    ]
    assert board.headline() == "0 of 3 languages done, 3 waiting"


def test_a_running_stage_shows_its_share_and_what_it_says():
    board = Board(LANGUAGES)
    board.tell("swh_Latn", "adapter-train compass", "running", 0.45, "loss 0.512")
    swahili = row(board, "Swahili")
    assert swahili["Train"] == "▶ 45%"
    assert swahili["Now"] == "adapter-train compass loss 0.512"


def test_a_stage_that_was_kept_looks_different_from_one_that_was_done():
    board = Board(LANGUAGES)
    board.tell("swh_Latn", "cluster", "cached")
    board.tell("swh_Latn", "gap-score", "done", 1.0, "0.2 s")
    swahili = row(board, "Swahili")
    assert (swahili["Clusters"], swahili["Gap"], swahili["Train"]) == ("↺", "✓", "")
    assert board.kept_and_made("swh_Latn") == (1, 1)


def test_a_failed_language_is_first_and_names_stage_and_reason():
    board = Board(LANGUAGES)
    board.tell("swh_Latn", "cluster", "running")
    board.tell("ukr_Cyrl", "adapter-train compass", "failed")
    board.tell("ukr_Cyrl", "adapt", "failed", detail="E42 the base model is gone")
    first = rows(board)[1]
    assert first[0].startswith("Ukrainian")
    assert first[-1] == "**FAILED**"
    said = "- **Ukrainian** failed in adapter-train compass: E42 the base model is gone"
    assert said in board.markdown(elapsed="5 s", updated="10:00:00 UTC", over=False).splitlines()
    assert board.headline() == "0 of 3 languages done, 1 failed, 1 running, 1 waiting"


def test_a_failed_language_stays_failed_whatever_comes_after():
    board = Board(LANGUAGES)
    board.tell("swh_Latn", "cluster", "failed")
    board.tell("swh_Latn", "gap-score", "done")
    board.finish()
    assert row(board, "Swahili", over=True)["Now"] == "**FAILED**"


def test_a_run_that_ended_well_leaves_no_language_running():
    board = Board(LANGUAGES)
    board.tell("swh_Latn", "cluster", "running")
    board.tell("tur_Latn", "adapt", "finished", detail="Turkish: promoted")
    board.finish()
    assert row(board, "Turkish", over=True)["Now"] == "promoted"
    assert board.headline() == "3 of 3 languages done"


def test_a_run_that_was_stopped_says_so_of_what_it_did_not_do():
    board = Board(LANGUAGES)
    board.tell("swh_Latn", "cluster", "running")
    assert row(board, "Swahili", over=True)["Now"] == "stopped"
    assert row(board, "Turkish", over=True)["Now"] == "stopped"
    assert board.headline(over=True) == "0 of 3 languages done, 3 stopped"


def test_shared_work_has_a_row_only_while_the_run_goes_on():
    board = Board(LANGUAGES)
    board.tell("", "ingest", "running")
    assert row(board, "All languages")["Data"] == "▶"
    board.finish()
    assert not [values for values in rows(board, over=True) if values[0] == "All languages"]


def test_news_of_a_language_outside_the_run_is_no_news():
    board = Board(LANGUAGES)
    board.tell("fra_Latn", "cluster", "done")
    assert board.version == 0


def test_text_from_an_error_cannot_break_the_table():
    board = Board(LANGUAGES)
    board.tell("swh_Latn", "cluster", "failed", detail="a | b\n<script> " + 500 * "x")
    text = board.markdown(elapsed="5 s", updated="10:00:00 UTC", over=False)
    (line,) = [line for line in text.splitlines() if line.startswith("- ")]
    assert "a \\| b \\<script\\>" in line
    assert len(line) < 600
    assert len(rows(board)) == 1 + len(LANGUAGES)


def test_every_row_has_a_cell_for_every_column():
    board = Board([f"swh_Latn{number}"[:8] for number in range(1)] + list(LANGUAGES[1:]))
    for column, stages in COLUMNS.items():
        board.tell("tur_Latn", stages[0], "done")
        assert row(board, "Turkish")[column] == "✓"


def test_many_threads_may_tell_at_once():
    board = Board(LANGUAGES)

    def work(code):
        for step in range(200):
            board.tell(code, "adapter-train compass", "running", step / 200)
        board.tell(code, "adapter-train compass", "done")

    threads = [threading.Thread(target=work, args=(code,)) for code in LANGUAGES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert board.version == 3 * 201
    assert {board.kept_and_made(code) for code in LANGUAGES} == {(0, 1)}

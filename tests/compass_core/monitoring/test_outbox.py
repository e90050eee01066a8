"""Drift events on disk: nothing lost, nothing done twice, whatever is killed."""

import json
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest

from compass_core.errors import DataError, StoreError
from compass_core.monitoring.outbox import DriftEvent, Outbox

NOW = datetime(2026, 11, 20, 6, tzinfo=UTC)
ROOT = Path(__file__).parents[3]


def event(**changes):
    values = {
        "language": "swh_Latn",
        "champion_version": "1",
        "space": "a1",
        "windows": ("2026-11-18", "2026-11-19"),
        "p_value": 0.001,
        "drift_score": 0.08,
        "occurred": "2026-11-20T06:00:00+00:00",
    }
    return DriftEvent(**values | changes)


@pytest.fixture
def outbox(tmp_path):
    return Outbox(tmp_path / "events")


def run_and_kill(outbox, body):
    """Run `body` in another process that kills itself with `die()`, as kill -9 would."""
    script = f"""
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from pathlib import Path
from compass_core.monitoring.outbox import Outbox
NOW = datetime(2026, 11, 20, 6, tzinfo=UTC)
outbox = Outbox(Path({str(outbox.folder)!r}))
def die():
    os.kill(os.getpid(), signal.SIGKILL)
{textwrap.dedent(body)}
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_an_event_is_a_file_that_says_everything(outbox):
    put = outbox.put(event())
    values = json.loads((outbox.folder / f"{put.id}.json").read_text())
    assert values["id"] == put.id
    assert values["state"] == "pending"
    assert DriftEvent.from_dict(values) == put == outbox.get(put.id)


def test_the_same_drift_is_one_event_and_keeps_what_became_of_it(outbox):
    put = outbox.put(event())
    outbox.finish(put.id, {"status": "promoted"})
    again = outbox.put(event(p_value=0.5))
    assert again.outcome == {"status": "promoted"}
    assert len(outbox.all()) == 1


def test_a_window_makes_one_event_even_by_the_side_of_the_next_champion(outbox):
    put = outbox.put(event())
    assert outbox.put(event(champion_version="2")).id == put.id
    assert outbox.put(event(windows=("2026-11-25", "2026-11-26"))).id != put.id
    assert len(outbox.all()) == 2


def test_windows_of_another_space_are_other_windows(outbox):
    put = outbox.put(event(windows=("n1000/000007",)))
    assert outbox.put(event(windows=("n1000/000007",), space="b2")).id != put.id


def test_a_taken_event_is_done_once_it_is_finished(outbox):
    put = outbox.put(event())
    with outbox.take(put.id, now=NOW) as taken:
        assert taken.state == "taken"
        assert taken.attempts == (NOW.isoformat(),)
        outbox.finish(put.id, {"status": "refused", "reasons": ["worse"]})
    assert outbox.pending() == []
    with outbox.take(put.id, now=NOW) as again:
        assert again is None
    assert outbox.get(put.id).outcome["reasons"] == ["worse"]


def test_an_update_that_fails_leaves_its_event_pending_with_the_reason(outbox):
    put = outbox.put(event())
    with pytest.raises(ValueError, match="no data"), outbox.take(put.id, now=NOW):
        raise ValueError("no data")
    (left,) = outbox.pending()
    assert left.state == "pending"
    assert left.last_error == "ValueError: no data"
    assert len(left.attempts) == 1


def test_an_update_that_forgets_to_finish_leaves_its_event_pending(outbox):
    put = outbox.put(event())
    with outbox.take(put.id, now=NOW):
        pass
    assert outbox.pending()[0].last_error == "ended without an outcome"


def test_a_second_update_of_the_language_waits_and_says_so(outbox):
    first = outbox.put(event())
    second = outbox.put(event(windows=("2026-11-25",)))
    with outbox.take(first.id, now=NOW):
        assert outbox.busy()
        with pytest.raises(StoreError, match="E63"):  # noqa: SIM117 - the inner one must raise
            with outbox.take(second.id, now=NOW, timeout_seconds=0.1):
                pass
        with pytest.raises(StoreError, match="E63"), outbox.exclusive(timeout_seconds=0.1):
            pass
    assert not outbox.busy()


def test_an_update_that_is_killed_leaves_its_event_for_the_next(outbox):
    put = outbox.put(event())
    run_and_kill(outbox, f"with outbox.take({put.id!r}, now=NOW):\n    die()")
    (left,) = outbox.pending()
    assert left.state == "taken"
    assert not outbox.busy(), "the kernel frees the lock of a dead process"
    with outbox.take(put.id, now=NOW) as taken:
        assert len(taken.attempts) == 2
        outbox.finish(put.id, {"status": "promoted"})
    assert outbox.pending() == []


def test_an_update_that_is_killed_after_finishing_is_not_done_again(outbox):
    put = outbox.put(event())
    body = f"with outbox.take({put.id!r}, now=NOW):\n    outbox.finish({put.id!r}, {{}})\n    die()"
    run_and_kill(outbox, body)
    with outbox.take(put.id, now=NOW) as taken:
        assert taken is None


def test_sending_is_noted_and_changes_nothing_else(outbox):
    put = outbox.put(event())
    sent = outbox.mark_sent(put.id, NOW)
    assert sent.sent == (NOW.isoformat(),)
    assert [e.id for e in outbox.pending()] == [put.id]


@pytest.mark.parametrize("name", ["", "../secret", "a/b", "."])
def test_an_id_never_leaves_the_folder(outbox, name):
    with pytest.raises(DataError, match="not the id of a drift event"):
        outbox.get(name)


def test_an_unknown_event_names_the_known_ones(outbox):
    known = outbox.put(event()).id
    with pytest.raises(DataError, match=known):
        outbox.get("0" * 32)


def test_a_damaged_event_says_which_file(outbox):
    put = outbox.put(event())
    (outbox.folder / f"{put.id}.json").write_text("{")
    with pytest.raises(StoreError, match=put.id):
        outbox.all()


def test_an_empty_outbox_makes_no_folder(outbox):
    assert outbox.all() == outbox.pending() == []
    assert not outbox.busy()
    assert not outbox.folder.exists()

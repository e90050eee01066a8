"""The history of decided windows: in the order of the decisions, each said once."""

from datetime import UTC, datetime

import pytest

from compass_core.errors import StoreError
from compass_core.monitoring.history import History, comparison_start


def entry(name, space="a", status="stable"):
    return {
        "space": space,
        "name": name,
        "start": f"{name}T00:00:00+00:00",
        "end": f"{name}T23:00:00+00:00",
        "status": status,
    }


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "usage" / "history.json")


def test_windows_stay_in_the_order_of_the_decisions(history):
    for name in ("2026-11-19", "2026-11-18", "2026-11-20"):
        history.add(entry(name))
    assert [e["name"] for e in history.entries()] == ["2026-11-19", "2026-11-18", "2026-11-20"]


def test_what_was_said_once_stays(history):
    history.add(entry("2026-11-19", status="alarm"))
    history.add(entry("2026-11-19", status="stable"))
    assert [e["status"] for e in history.entries()] == ["alarm"]
    assert history.find("a", "2026-11-19")["status"] == "alarm"
    assert history.find("b", "2026-11-19") is None


def test_the_file_is_read_once_and_another_reader_sees_every_addition(history, monkeypatch):
    from compass_core.monitoring import history as module

    read, real = [], module.read_json
    monkeypatch.setattr(module, "read_json", lambda path: read.append(path) or real(path))
    history.add(entry("2026-11-01"))
    again = History(history.path)
    for day in range(2, 10):
        again.add(entry(f"2026-11-{day:02d}"))
        assert again.find("a", f"2026-11-{day:02d}")
        assert len(again.entries()) == day
    assert len(read) == 2
    assert History(history.path).entries() == again.entries()


def test_what_could_not_be_written_was_not_said(history, monkeypatch):
    from compass_core.monitoring import history as module

    def full(*_):
        raise OSError("no space left")

    history.add(entry("2026-11-19"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_text", full)
        with pytest.raises(OSError, match="no space"):
            history.add(entry("2026-11-20"))
    assert history.find("a", "2026-11-20") is None
    history.add(entry("2026-11-20"))
    assert len(History(history.path).entries()) == 2


def test_a_new_space_starts_where_the_old_one_ended(history):
    assert comparison_start(history.entries(), "a") is None
    history.add(entry("2026-11-19"))
    history.add(entry("2026-11-18"))
    assert comparison_start(history.entries(), "a") is None
    expected = datetime(2026, 11, 19, 23, tzinfo=UTC)
    assert comparison_start(history.entries(), "b") == expected


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null"])
def test_a_damaged_history_says_what_to_do(history, text):
    history.path.parent.mkdir()
    history.path.write_text(text)
    with pytest.raises(StoreError, match="back-up"):
        history.entries()

"""Hosts whose clocks are a day apart share a store, a registry and events."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from compass_core.monitoring.outbox import DriftEvent, Outbox
from compass_core.storage import ArtifactStore
from tasks import registry, tracking
from tests.tasks.test_registry import NAME, make_adapter

DAY = 86_400.0


@pytest.fixture
def host(monkeypatch):
    """Work as a host whose clock is off by some seconds."""
    plain, plain_ns = time.time, time.time_ns

    def off_by(seconds):
        monkeypatch.setattr(time, "time", lambda: plain() + seconds)
        monkeypatch.setattr(time, "time_ns", lambda: plain_ns() + int(seconds * 1e9))

    return off_by


@pytest.mark.parametrize("seconds", [DAY, -DAY])
def test_host_with_another_clock_leaves_the_drafts_of_others_alone(seconds, tmp_path, host):
    store = ArtifactStore(tmp_path / "store")
    theirs = store.root / "tmp" / "embed-0123-77-abc"  # of a host whose locks are not seen here
    theirs.mkdir(parents=True)
    (theirs / "part.npy").write_bytes(b"half")
    host(seconds)
    with store.build("cluster", "k" * 32, {}) as draft:
        (draft.folder / "a").write_text("a")
        assert ArtifactStore(store.root).sweep() == 0
    assert (theirs / "part.npy").exists()
    assert store.find("cluster", "k" * 32) is not None


@pytest.mark.parametrize("seconds", [DAY, -DAY])
def test_promotion_from_a_host_with_another_clock_is_the_last_word(seconds, tmp_path, host):
    home = tmp_path / "home"
    home.mkdir()
    tracking.configure(tracking.default_tracking_uri(home), home / "mlartifacts")
    run = tracking.start_run("skew", "swh_Latn", tags={"language": "swh_Latn"}, params={})

    def promote(value, over):
        folder = make_adapter(tmp_path / f"adapter-{value}", value)
        version = registry.register_adapter(NAME, folder, run_id=run, tags={})
        return registry.promote(NAME, version, expected_champion=over).version

    assert promote(1.0, None) == "1"
    host(seconds)
    assert promote(2.0, "1") == "2"
    host(-seconds)
    assert registry.champion(NAME).version == "2"
    assert promote(3.0, "2") == "3"
    assert [v.version for v in registry.versions(NAME)] in (["1", "2", "3"], ["3", "2", "1"])
    assert registry.rollback(NAME, expected_champion="3").version == "2"
    assert registry.by_alias(NAME, "previous").version == "1"


def test_no_event_is_lost_whatever_the_clocks_say(tmp_path):
    outbox = Outbox(tmp_path / "events")
    today = datetime(2026, 11, 21, 6, tzinfo=UTC)
    times = [today, today - timedelta(days=1), today + timedelta(days=1), today]
    ids = []
    for number, now in enumerate(times):
        event = DriftEvent("swh_Latn", "1", "5pace", (f"w{number}",), 0.001, 0.08, now.isoformat())
        ids.append(outbox.put(event).id)
    assert len(set(ids)) == len(times), "no event is lost"
    assert {event.id for event in outbox.all()} == set(ids)
    with outbox.take(ids[1], now=today - timedelta(days=2)) as taken:
        assert taken is not None
        outbox.finish(ids[1], {"status": "promoted", "reasons": []})
    assert {event.id for event in outbox.pending()} == {ids[0], *ids[2:]}

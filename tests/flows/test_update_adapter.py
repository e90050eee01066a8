"""An update on the starter, for real: usage that drifts, a challenger, and what may go wrong."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from compass_core import starter
from compass_core.config import AdaptConfig
from compass_core.records import ArtifactRef
from compass_core.storage import read_json, read_table
from tasks import registry
from tasks.lineage import LINEAGE_TAG, lineage_of
from tasks.promotion import configure_tracking
from tasks.reporting import last_run_of, read_run
from tasks.settings import compass_home, open_store

LANGUAGE = "swh_Latn"
WINDOW = 150
START = datetime(2026, 3, 1, tzinfo=UTC)


def make_config(**changes) -> AdaptConfig:
    values = {
        "project": "update",
        "languages": [LANGUAGE],
        "data": {"kind": "starter", "n_coverage": 150, "n_usage": 160, "n_test": 300},
        "clustering": {"n_clusters": [12], "fit_on": "usage+coverage+pool"},
        "selection": {"budget": 40},
        "training": {
            "lora_rank": 4,
            "learning_rate": 3e-3,
            "batch_size": 16,
            "min_steps": 60,
            "max_steps": 60,
            "max_length": 128,
        },
        "evaluation": {"n_bootstrap": 100},
        "promotion": {"alpha": 0.25, "min_items": 50},
        "monitoring": {
            "n_clusters": 16,
            "windows": "count",
            "window_size": WINDOW,
            "drift": {"min_prompts": 100, "min_units": 100},
            "emit_events": False,
        },
        "update": {"steps": 60, "max_loss_alpha": 0.01},
        "execution": {"trainers": 0, "max_parallel": 1},
    }
    return AdaptConfig.model_validate(values | changes)


CONFIG = make_config()


def move_to(home, patch):
    patch.setenv("COMPASS_HOME", str(home))
    # a process that has used one registry stays with it unless told otherwise
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")


@pytest.fixture(scope="module")
def served(prefect_backend, tmp_path_factory):
    """A home in which one adapter serves; it goes into service whatever its gate said."""
    from flows.adapt_languages import adapt_languages

    home = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        move_to(home, patch)
        adapt_languages(CONFIG)
        entry = read_run(last_run_of("adapt-languages", LANGUAGE))["languages"][LANGUAGE]
        version = entry["registry"]["version"]
        if not entry["verdict"]["promote"]:
            configure_tracking()
            registry.promote(entry["registry"]["name"], version, expected_champion=None)
        yield home


@pytest.fixture
def home(served, tmp_path, monkeypatch):
    """A copy of that home; the registry's files stay where they were written."""
    folder = tmp_path / "home"
    shutil.copytree(served, folder)
    move_to(folder, monkeypatch)
    return folder


def topics_of_gap():
    data = CONFIG.data
    split = starter.build_language(
        LANGUAGE,
        seed=CONFIG.seed,
        n_coverage=data.n_coverage,
        n_usage=data.n_usage,
        n_test=data.n_test,
        n_missing_topics=data.n_missing_topics,
    )
    return split.missing_topics


def asked(n_windows, share_of_gap, *, first=0):
    """Yield prompts of production: so much of them about what the coverage lacks."""
    rng = np.random.default_rng(first)
    rows = [r for s in ("usage", "train") for r in starter.corpus.language_rows(LANGUAGE, s)]
    gap = topics_of_gap()
    new = [row.prompt for row in rows if row.topic in gap]
    old = [row.prompt for row in rows if row.topic not in gap]
    n_new = round(WINDOW * share_of_gap)
    for window in range(first, first + n_windows):
        texts = [new[i] for i in rng.permutation(len(new))[:n_new]]
        texts += [old[i] for i in rng.permutation(len(old))[: WINDOW - len(texts)]]
        for number, text in enumerate(texts):
            place = window * WINDOW + number
            yield {
                "id": f"r{place}",
                "time": (START + timedelta(minutes=place)).isoformat(),
                "prompt": text,
                "language": "sw",
            }


def drift_event(config=CONFIG):
    """Let usage drift, and return the event that the monitor writes."""
    from flows.monitor_drift import monitor_drift
    from tasks.events import open_outbox
    from tasks.monitoring import append_usage

    append_usage(config, LANGUAGE, list(asked(2, 0.95)))
    monitor_drift(config)
    events = open_outbox(LANGUAGE).pending()
    assert len(events) == 1
    return events[0].id


def update(config, event=""):
    from flows.update_adapter import update_adapter

    return update_adapter(LANGUAGE, event, config=config, return_state=True)


def versions():
    configure_tracking()
    (serving,) = registry.list_serving([LANGUAGE])
    return serving, registry.versions(serving.name)


def outcome_of_last():
    return read_run(last_run_of("update-adapter", LANGUAGE))["languages"][LANGUAGE]


def ref(outcome, name):
    return ArtifactRef.from_dict(outcome["artifacts"][name])


def test_a_drift_becomes_a_challenger_that_knows_what_it_stands_on(home):
    from tasks.events import open_outbox

    event = drift_event()
    before, _ = versions()
    state = update(CONFIG, event)
    assert state.is_completed(), state.message
    outcome = outcome_of_last()
    assert outcome["status"] in ("promoted", "refused")
    store = open_store()

    data = read_table(store.folder(ref(outcome, "update-data")) / "rows.parquet")
    history = read_table(store.folder(ref(outcome, "history")) / "rows.parquet")
    assert data.num_rows == 40
    assert not set(data["id"].to_pylist()) & set(history["id"].to_pylist())
    exam = read_table(store.folder(ref(outcome, "exam")) / "rows.parquet")
    assert not set(data["parallel_id"].to_pylist()) & set(exam["parallel_id"].to_pylist())
    taken = [row["topic"] in topics_of_gap() for row in data.to_pylist()]
    assert np.mean(taken) > 0.6, "the budget goes where users ask now"

    replay = read_json(store.folder(ref(outcome, "replay")) / "replay.json")
    assert replay["n_examples"] == round(0.05 * replay["n_history"])
    fisher = read_json(store.folder(ref(outcome, "fisher")) / "fisher.json")
    assert fisher["adapter_sha256"] == before.champion.adapter_sha256
    training = read_json(store.folder(ref(outcome, "update-train")) / "training.json")
    assert training["tokens_replay"] > 0

    serving, known = versions()
    assert len(known) == 2
    assert known[0].tags["drift_event"] == event
    assert known[0].tags["updated_from"] == before.champion.version
    lineage = lineage_of(known[0])
    assert lineage.refs["fisher"].fingerprint == known[0].tags["fisher_fingerprint"]
    assert next(iter(lineage.slices)) == "first"
    assert len(lineage.slices) == 2
    assert lineage.refs["history"].rows == history.num_rows + data.num_rows
    promoted = outcome["verdict"]["promote"]
    assert serving.champion.version == (known[0] if promoted else before.champion).version
    kept = open_outbox(LANGUAGE).get(event)
    assert (kept.state, kept.outcome["status"]) == ("done", outcome["status"])


def test_an_event_is_answered_once(home):
    event = drift_event()
    update(CONFIG, event)
    _, known = versions()
    again = update(CONFIG, event)
    assert again.name == "AlreadyDone"
    assert len(versions()[1]) == len(known)


def test_an_update_killed_after_the_promotion_only_finishes(home):
    from tasks.events import open_outbox

    generous = make_config(promotion={"alpha": 0.49, "min_items": 10})
    event = drift_event(generous)
    update(generous, event)
    serving, known = versions()
    if serving.champion.tags.get("drift_event") != event:
        pytest.skip("the gate refused this update, so there is no promotion to be killed after")
    path = compass_home() / "usage" / LANGUAGE / "events" / f"{event}.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"state": "taken", "outcome": {}}))
    assert update(generous, event).is_completed()
    assert len(versions()[1]) == len(known)
    assert open_outbox(LANGUAGE).get(event).outcome["status"] == "promoted"


def test_an_event_of_an_earlier_champion_is_superseded(home):
    from compass_core.monitoring.outbox import DriftEvent
    from tasks.events import open_outbox

    stale = DriftEvent(
        language=LANGUAGE,
        space="another",
        champion_version="0",
        windows=("of-another-time",),
        p_value=0.001,
        drift_score=0.2,
        occurred=START.isoformat(),
    )
    outbox = open_outbox(LANGUAGE)
    outbox.put(stale)
    assert update(CONFIG, stale.id).is_completed()
    assert outbox.get(stale.id).outcome["status"] == "superseded"
    assert len(versions()[1]) == 1, "nothing was trained"


def test_an_update_that_cannot_work_closes_its_event_with_the_reason(home):
    from tasks.events import open_outbox

    event = drift_event()
    demanding = make_config(
        monitoring=CONFIG.monitoring.model_dump() | {"drift": {"min_prompts": 5_000}}
    )
    state = update(demanding, event)
    assert state.is_failed()
    kept = open_outbox(LANGUAGE).get(event)
    assert (kept.state, kept.outcome["status"]) == ("done", "failed")
    assert "as the next reference they need 5000" in kept.outcome["reasons"][0]
    assert len(versions()[1]) == 1


def test_an_encoder_that_changed_before_an_update_is_the_one_its_champion_names(home):
    from tasks.baseline import open_baseline

    changed = make_config(
        embedding={"prefix": "query: "}, promotion={"alpha": 0.49, "min_items": 10}
    )
    update(changed, drift_event(changed))
    serving, known = versions()
    if serving.champion.version == known[-1].version:
        pytest.skip("the gate refused this update")
    assert open_baseline(changed, LANGUAGE, ".").version == serving.champion.version
    with pytest.raises(Exception, match="E50"):
        open_baseline(CONFIG, LANGUAGE, ".")


def test_an_adapter_that_is_tried_again_stands_on_its_newest_attempt(home):
    strict = make_config(promotion={"alpha": 1e-9, "min_items": 50})
    event = drift_event(strict)
    update(strict, event)
    first = versions()[1][0]
    generous = make_config(promotion={"alpha": 0.49, "min_items": 10})
    update(generous)
    serving, known = versions()
    if serving.champion.version != first.version:
        pytest.skip("the gate refused this update again, or its adapter is another one")
    assert len(known) == 2
    assert known[0].tags["drift_event"] == ""
    assert lineage_of(known[0]).ref.fingerprint == known[0].tags[LINEAGE_TAG]


def test_a_refused_update_leaves_the_champion_and_may_escalate(home):
    strict = make_config(
        promotion={"alpha": 1e-9, "min_items": 50},
        update={"steps": 2, "learning_rate": 1e-6, "escalate_after": 1},
    )
    event = drift_event(strict)
    before, _ = versions()
    assert update(strict, event).is_completed()
    outcome = outcome_of_last()
    assert (outcome["status"], outcome["arm"]) == ("refused", "retrain")
    assert "no significant gain" in " ".join(outcome["verdict"]["reasons"])
    serving, known = versions()
    assert serving.champion.version == before.champion.version
    assert {v.tags["strategy"] for v in known} == {"compass", "update", "retrain"}


def test_without_a_champion_there_is_nothing_to_update(prefect_backend, tmp_path, monkeypatch):
    move_to(tmp_path, monkeypatch)
    state = update(CONFIG)
    assert state.is_failed()
    with pytest.raises(Exception, match="E53 No adapter serves Swahili"):
        state.result()


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        ({"draw": "nearest"}, "only clusters are kept"),
        ({"strategy": "dsir"}, "only clusters are kept"),
        ({"strategy": "target-only"}, "nothing to train on"),
    ],
)
def test_a_selection_that_cannot_serve_an_update_is_refused(selection, reason):
    from compass_core.errors import ConfigError
    from tasks.updating import check_update

    check_update(CONFIG)
    with pytest.raises(ConfigError, match=reason):
        check_update(make_config(selection=selection))


def test_a_changed_encoder_starts_a_new_space_for_a_first_champion_only(home):
    from tasks.baseline import open_baseline

    changed = make_config(embedding={"prefix": "query: "})
    one = open_baseline(CONFIG, LANGUAGE, ".")
    two = open_baseline(changed, LANGUAGE, ".")
    assert one.fingerprint != two.fingerprint
    generous = make_config(promotion={"alpha": 0.49, "min_items": 10})
    update(generous, drift_event(generous))
    serving, _ = versions()
    if serving.champion.version == one.version:
        pytest.skip("the gate refused this update")
    assert open_baseline(CONFIG, LANGUAGE, ".").fingerprint == one.fingerprint
    with pytest.raises(Exception, match=r"E50 .* another encoder embedded"):
        open_baseline(changed, LANGUAGE, ".")


def test_an_older_version_without_lineage_says_what_to_do(home):
    from tasks.baseline import open_baseline

    serving, _ = versions()
    registry.set_version_tags(serving.name, serving.champion.version, {LINEAGE_TAG: "gone"})
    with pytest.raises(Exception, match=r"E53 .* Run `compass adapt` for this language once"):
        open_baseline(CONFIG, LANGUAGE, ".")


def test_cleaning_keeps_the_space_that_the_first_champion_is_watched_in(home):
    from tasks.baseline import open_baseline
    from tasks.retention import apply_clean, plan_clean

    space = open_baseline(CONFIG, LANGUAGE, ".").space
    apply_clean(plan_clean(0))
    assert open_store().folder(space).is_dir()
    assert open_baseline(CONFIG, LANGUAGE, ".").space == space


def test_cleaning_keeps_what_a_champion_stands_on(home):
    from tasks.retention import apply_clean, plan_clean

    update(make_config(promotion={"alpha": 0.49, "min_items": 10}), drift_event())
    serving, _ = versions()
    apply_clean(plan_clean(0))
    lineage = lineage_of(versions()[0].champion)
    store = open_store()
    for needed in (*lineage.refs.values(), *lineage.slices.values()):
        assert store.folder(needed).is_dir(), needed.kind
    assert serving.champion.version == versions()[0].champion.version

"""The made-up log: its mix, its shift, and no test item in it."""

from collections import Counter
from datetime import UTC, datetime

import pytest

from compass_core.config import StarterData
from compass_core.errors import InputError
from compass_core.starter import build_language
from compass_core.starter.corpus import language_rows
from compass_core.starter.usage_log import LogPlan, simulate_log

START = datetime(2026, 3, 1, tzinfo=UTC)
DATA = StarterData()
PLAN = LogPlan(START, days=4, prompts_per_day=200, shift_after=2, shift=0.9)


def log(language="swh_Latn", plan=PLAN, seed=0):
    return list(simulate_log(language, DATA, plan, seed=seed))


def topics_of(records, language="swh_Latn"):
    known = {r.prompt: r.topic for s in ("usage", "train") for r in language_rows(language, s)}
    return Counter(known[record["prompt"]] for record in records)


def missing(language="swh_Latn"):
    split = build_language(
        language, seed=0, n_coverage=200, n_usage=300, n_test=600, n_missing_topics=3
    )
    return split.missing_topics


def test_the_mix_shifts_on_the_day_it_should():
    records = log()
    before = topics_of([r for r in records if r["time"] < "2026-03-03"])
    after = topics_of([r for r in records if r["time"] >= "2026-03-03"])
    shares = [sum(c[t] for t in missing()) / c.total() for c in (before, after)]
    assert shares[0] < 0.5
    assert shares[1] == pytest.approx(0.9, abs=0.03)
    assert before.total() == pytest.approx(400, abs=20)


def test_no_prompt_is_a_test_item_and_ids_and_times_are_in_order():
    records = log()
    tested = {row.prompt for row in language_rows("swh_Latn", "test")}
    assert not tested & {record["prompt"] for record in records}
    assert len({record["id"] for record in records}) == len(records)
    times = [record["time"] for record in records]
    assert times == sorted(times)
    assert all(datetime.fromisoformat(time).tzinfo for time in times)


def test_the_same_seed_makes_the_same_log():
    assert log() == log()
    assert log() != log(seed=1)


def test_users_have_as_many_prompts_as_asked():
    plan = LogPlan(START, days=1, prompts_per_day=60, shift_after=1, prompts_per_user=3)
    counts = Counter(record["user"] for record in log(plan=plan))
    assert max(counts.values()) == 3


def test_a_shift_beyond_the_log_is_refused():
    with pytest.raises(InputError, match="cannot shift after 9"):
        log(plan=LogPlan(START, days=2, shift_after=9))

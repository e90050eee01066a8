"""The gate of an update: the new slice must be won, no older one may be lost."""

import json

import numpy as np
import pyarrow as pa
import pytest

from compass_core.config import PromotionConfig, UpdateConfig
from compass_core.errors import DataError
from compass_core.evaluation.comparison import holm, sign_test_one_sided
from compass_core.evaluation.retention import RETENTION, decide_update

PROMOTION, UPDATE = PromotionConfig(min_items=20), UpdateConfig()


def outcome(**slices):
    """Return champion, challenger and slices from (both right, wins, losses, both wrong)."""
    before, after, ids, members = [], [], [], {}
    for name, (both, wins, losses, neither) in slices.items():
        before += [True] * both + [False] * wins + [True] * losses + [False] * neither
        after += [True] * both + [True] * wins + [False] * losses + [False] * neither
        named = [f"{name}-{i}" for i in range(both + wins + losses + neither)]
        ids += named
        members[name] = frozenset(named)
    tables = [pa.table({"id": ids, "correct": column}) for column in (before, after)]
    return *tables, members


def decide(promotion=PROMOTION, update=UPDATE, **slices):
    champion, challenger, members = outcome(**slices)
    return decide_update(champion, challenger, members, "new", promotion, update)


def test_a_gain_without_losses_is_promoted():
    verdict = decide(first=(60, 3, 3, 34), new=(20, 30, 5, 45), retention=(80, 2, 1, 17))
    assert verdict.promote
    assert verdict.new.accuracy_before == 0.25
    assert verdict.new.accuracy_after == 0.5
    assert verdict.new.p_value == sign_test_one_sided(30, 5)
    assert verdict.forgetting == 0.0
    assert "Better on the new usage" in verdict.reasons[0]
    assert "the retention set +1.0" in verdict.reasons[1]


def test_what_was_lost_on_an_older_slice_is_named_and_blocks():
    verdict = decide(first=(40, 1, 20, 39), new=(20, 30, 5, 45), retention=(80, 2, 1, 17))
    assert not verdict.promote
    assert verdict.forgetting == pytest.approx(0.19)
    assert "loss on slice first: 60.0% to 41.0% (20 lost, 1 won" in verdict.reasons[1]


def test_a_loss_on_the_retention_set_blocks_but_is_no_forgetting():
    verdict = decide(first=(60, 3, 3, 34), new=(20, 30, 5, 45), retention=(50, 0, 15, 35))
    assert not verdict.promote
    assert verdict.forgetting == 0.0
    assert "the retention set" in " ".join(verdict.reasons)


def test_no_gain_on_the_new_usage_is_refused():
    verdict = decide(first=(60, 30, 0, 10), new=(50, 6, 5, 39))
    assert not verdict.promote
    assert "no significant gain" in verdict.reasons[0]


def test_too_few_new_items_are_refused_however_clear_the_gain():
    verdict = decide(PromotionConfig(min_items=100), first=(60, 3, 3, 34), new=(0, 40, 0, 0))
    assert not verdict.promote
    assert "promotion.min_items=100" in verdict.reasons[0]


def test_losses_are_corrected_over_the_slices_by_holm():
    one = (40, 3, 10, 47)
    p = sign_test_one_sided(10, 3)
    assert 0.03 < p < 0.05
    alone = decide(first=one, new=(20, 30, 5, 45))
    among = decide(first=one, b=(60, 3, 3, 34), c=(60, 3, 3, 34), new=(20, 30, 5, 45))
    assert not alone.promote
    assert among.promote, "one of three slices at p = .046 is no evidence after Holm"
    other = sign_test_one_sided(3, 3)
    assert [r.p_corrected for r in among.kept] == holm([p, other, other])


def test_without_older_slices_it_says_that_forgetting_was_not_tested():
    verdict = decide(new=(20, 30, 5, 45))
    assert verdict.promote
    assert np.isnan(verdict.forgetting)
    assert "not tested" in verdict.reasons[1]
    assert json.loads(json.dumps(verdict.to_dict()))["forgetting"] is None


def test_an_item_that_only_one_adapter_answered_is_an_error():
    champion, challenger, members = outcome(new=(20, 30, 5, 45))
    with pytest.raises(DataError, match="E47 1 of 100 items of the slice new"):
        decide_update(champion, challenger.slice(1), members, "new", PROMOTION, UPDATE)


def test_an_empty_slice_is_an_error():
    champion, challenger, members = outcome(new=(20, 30, 5, 45))
    members |= {RETENTION: frozenset()}
    with pytest.raises(DataError, match="E48 The slice retention has no test items"):
        decide_update(champion, challenger, members, "new", PROMOTION, UPDATE)


def test_harmless_updates_are_rarely_refused_however_many_slices():
    rng = np.random.default_rng(0)
    refused = 0
    n_trials = 300
    for _ in range(n_trials):
        older = {f"s{i}": (60, *rng.multinomial(10, [0.5, 0.5]).tolist(), 30) for i in range(6)}
        refused += not decide(**older, new=(20, 30, 5, 45)).promote
    assert refused / n_trials <= UPDATE.max_loss_alpha + 0.03

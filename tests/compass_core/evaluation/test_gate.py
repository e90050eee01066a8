import json

import numpy as np
import pyarrow as pa
import pytest

from compass_core.config import PromotionConfig
from compass_core.errors import DataError
from compass_core.evaluation.gate import decide

CONFIG = PromotionConfig()


def scored(correct, ids=None):
    ids = ids or [f"item-{index}" for index in range(len(correct))]
    return pa.table({"id": ids, "correct": np.asarray(correct, dtype=bool)})


def outcomes(wins, losses, ties=0, *, n=200):
    """Return (before, after) with so many wins, losses, common right answers."""
    before = np.zeros(n, dtype=bool)
    after = np.zeros(n, dtype=bool)
    after[:wins] = True
    before[wins : wins + losses] = True
    before[wins + losses : wins + losses + ties] = after[wins + losses : wins + losses + ties] = (
        True
    )
    return before, after


def verdict_of(before, after, covered=None, config=CONFIG):
    mask = np.zeros(len(before), dtype=bool) if covered is None else covered
    return decide(scored(before), scored(after), mask, config)


def test_clear_gain_is_promoted_with_its_numbers():
    verdict = verdict_of(*outcomes(30, 10, 50))
    assert verdict.promote
    assert (verdict.wins, verdict.losses, verdict.n_items) == (30, 10, 200)
    assert verdict.p_value == pytest.approx(0.00111, abs=1e-5)
    assert (verdict.accuracy_before, verdict.accuracy_after) == (0.3, 0.4)
    assert "30 items won, 10 lost" in " ".join(verdict.reasons)
    json.dumps(verdict.to_dict())


def test_higher_mean_alone_is_not_promoted():
    verdict = verdict_of(*outcomes(12, 8))
    assert not verdict.promote
    assert "no significant gain" in " ".join(verdict.reasons)


def test_equal_answers_are_not_promoted():
    verdict = verdict_of(*outcomes(0, 0, 100))
    assert not verdict.promote
    assert verdict.p_value == 1.0


def test_smallest_significant_gain_is_five_wins_to_none():
    assert not verdict_of(*outcomes(4, 0)).promote
    assert verdict_of(*outcomes(5, 0)).promote


def test_gain_paid_with_covered_topics_is_not_promoted():
    before, after = outcomes(60, 10)
    covered = np.zeros(200, dtype=bool)
    covered[60:70] = True
    verdict = verdict_of(before, after, covered)
    assert not verdict.promote
    assert (verdict.covered_wins, verdict.covered_losses, verdict.n_covered) == (0, 10, 10)
    assert verdict.covered_loss_p == pytest.approx(2**-10)
    assert "significant loss" in " ".join(verdict.reasons)


def test_few_losses_on_covered_topics_do_not_block():
    before, after = outcomes(60, 3)
    covered = np.zeros(200, dtype=bool)
    covered[60:63] = True
    assert verdict_of(before, after, covered).promote


def test_too_few_items_are_never_promoted():
    before, after = outcomes(60, 0, n=60)
    verdict = verdict_of(before, after)
    assert not verdict.promote
    assert "promotion.min_items=100" in " ".join(verdict.reasons)
    assert verdict_of(before, after, config=PromotionConfig(min_items=60)).promote


def test_order_of_the_challenger_s_rows_does_not_matter():
    before, after = outcomes(30, 10, 20)
    rng = np.random.default_rng(0)
    order = rng.permutation(200)
    covered = rng.random(200) < 0.5
    ids = [f"item-{index}" for index in order]
    shuffled = decide(scored(before), scored(after[order], ids), covered, CONFIG)
    assert shuffled == verdict_of(before, after, covered)


def test_different_item_sets_are_refused():
    before, after = outcomes(10, 0)
    with pytest.raises(DataError, match="different items") as caught:
        decide(scored(before), scored(after[:-1]), np.zeros(200, dtype=bool), CONFIG)
    assert caught.value.code == "E47"
    assert "item-199" in caught.value.message


def test_doubled_items_are_refused():
    ids = ["a"] * 2 + [f"item-{k}" for k in range(198)]
    before, after = outcomes(10, 0)
    with pytest.raises(DataError, match="appear twice") as caught:
        decide(scored(before, ids), scored(after, ids), np.zeros(200, dtype=bool), CONFIG)
    assert caught.value.code == "E17"


def test_mask_of_another_length_is_refused():
    before, after = outcomes(10, 0)
    with pytest.raises(DataError, match="covered mask"):
        decide(scored(before), scored(after), np.zeros(3, dtype=bool), CONFIG)


def test_no_items_are_refused():
    with pytest.raises(DataError) as caught:
        decide(scored([]), scored([]), np.zeros(0, dtype=bool), CONFIG)
    assert caught.value.code == "E48"


def test_equal_adapters_are_promoted_at_most_at_the_level():
    rng = np.random.default_rng(0)
    promoted = 0
    for _ in range(600):
        differ = rng.random(500) < 0.2
        before = rng.random(500) < 0.5
        after = np.where(differ & (rng.random(500) < 0.5), ~before, before)
        promoted += verdict_of(before, after).promote
    assert promoted / 600 <= 0.07

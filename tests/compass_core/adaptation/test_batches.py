from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_core.adaptation.batches import (
    PASS_PRICE_TOKENS,
    StepOrder,
    TrainingData,
    collate,
    micro_batches,
    plan_micro_batches,
    truncate,
)
from compass_core.adaptation.rendering import Rendered
from compass_core.errors import DataError


def text(length, n_prompt=1):
    return Rendered(np.arange(1, length + 1, dtype=np.int32), n_prompt)


def cost(groups, lengths):
    return sum(len(g) * max(lengths[i] for i in g) + PASS_PRICE_TOKENS for g in groups)


def best_cost_by_trying_everything(lengths, max_tokens):
    """Slow twin: every way to cut the sorted lengths."""
    ordered = sorted(lengths)
    best = float("inf")
    for cuts in product([False, True], repeat=len(ordered) - 1):
        groups, group = [], [ordered[0]]
        for length, cut in zip(ordered[1:], cuts, strict=True):
            if cut:
                groups.append(group)
                group = []
            group.append(length)
        groups.append(group)
        if all(len(g) == 1 or len(g) * max(g) <= max_tokens for g in groups):
            best = min(best, sum(len(g) * max(g) + PASS_PRICE_TOKENS for g in groups))
    return best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 900), min_size=1, max_size=9), st.integers(50, 3000))
def test_plan_is_the_cheapest_of_all_cuts(lengths, max_tokens):
    array = np.array(lengths)
    groups = plan_micro_batches(array, array, max_tokens)
    assert cost(groups, lengths) == best_cost_by_trying_everything(lengths, max_tokens)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 400), min_size=1, max_size=64), st.integers(100, 2000))
def test_plan_holds_every_example_once_within_the_bound(lengths, max_tokens):
    array = np.array(lengths)
    groups = plan_micro_batches(array, array, max_tokens)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * array[group].max() <= max_tokens


def test_plan_bounds_response_tokens_too():
    lengths = np.full(10, 20)
    groups = plan_micro_batches(lengths, np.full(10, 5), 10_000, max_targets=12)
    assert [len(group) for group in groups] == [2] * 5


def test_every_epoch_holds_every_example_once_in_a_new_order():
    order = StepOrder(10, 4, seed=0)
    seen = np.concatenate([order.indices(step) for step in range(5)])
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()


def test_steps_always_have_the_batch_size_even_with_fewer_examples():
    order = StepOrder(3, 8, seed=0)
    assert all(len(order.indices(step)) == 8 for step in range(4))


def test_order_depends_on_the_seed_and_on_the_step_alone():
    forward = [StepOrder(50, 8, seed=1).indices(step).tolist() for step in range(20)]
    order = StepOrder(50, 8, seed=1)
    backward = [order.indices(step).tolist() for step in reversed(range(20))][::-1]
    assert forward == backward
    assert forward != [StepOrder(50, 8, seed=2).indices(step).tolist() for step in range(20)]


def test_batch_points_at_the_tokens_before_each_response_token():
    batch = collate([text(5, n_prompt=3), text(2, n_prompt=1)], pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 0, 0, 0]]
    assert batch.positions.tolist() == [2, 3, 5]
    assert batch.targets.tolist() == [4, 5, 2]
    assert (batch.n_tokens, batch.n_padded) == (7, 10)


def test_plain_text_predicts_every_token_but_the_first():
    batch = collate([text(4, n_prompt=0)], pad_id=0)
    assert batch.positions.tolist() == [0, 1, 2]
    assert batch.targets.tolist() == [2, 3, 4]


def test_long_examples_are_cut_and_counted():
    data = truncate([text(10), text(4), text(10, n_prompt=8)], max_length=6)
    assert [len(example.ids) for example in data.examples] == [6, 4]
    assert (data.n_truncated, data.n_dropped) == (2, 1)


def test_data_without_any_response_in_reach_is_refused_with_advice():
    with pytest.raises(DataError, match="max_length=3") as caught:
        truncate([text(10, n_prompt=8)], max_length=3)
    assert caught.value.code == "E16"


def test_micro_batches_of_a_step_hold_all_response_tokens():
    data = TrainingData([text(length) for length in (3, 300, 5, 4, 290)], 0, 0)
    batches = micro_batches(data, np.array([0, 1, 2, 3, 4]), pad_id=0, max_tokens=700, vocab_size=9)
    assert sum(len(batch.targets) for batch in batches) == 3 + 300 + 5 + 4 + 290 - 5
    assert [len(batch.input_ids) for batch in batches] == [3, 2]

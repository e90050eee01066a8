"""Slices follow the mix of usage, whatever the order of the rows."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.errors import DataError
from compass_core.evaluation.slices import draw_slice, merge_slices
from compass_core.records import Example, examples_to_table


def draw(items, usage, *, least=1, most=1_000, seed=0, keys=None):
    items, usage = np.asarray(items), np.asarray(usage)
    keys = np.arange(len(items), dtype=np.uint64) if keys is None else keys
    return draw_slice(items, usage, keys, least=least, most=most, rng=np.random.default_rng(seed))


def test_a_slice_has_the_mix_of_the_usage():
    items = np.repeat([0, 1, 2], 100)
    chosen = draw(items, [0, 0, 0, 1], most=80)
    assert np.bincount(items[chosen], minlength=3).tolist() == [60, 20, 0]


def test_a_slice_is_no_larger_than_its_mix_allows():
    items = np.repeat([0, 1], [12, 400])
    chosen = draw(items, [0, 0, 0, 1], most=400)
    counts = np.bincount(items[chosen])
    assert counts[0] == 12
    assert 4 <= counts[1] <= 6


def test_the_least_size_is_kept_though_the_mix_suffers():
    items = np.repeat([0, 1], [12, 400])
    chosen = draw(items, [0, 0, 0, 1], least=100)
    assert np.bincount(items[chosen]).tolist() == [12, 88]


def test_clusters_that_nobody_asks_about_give_no_items():
    chosen = draw(np.repeat([0, 1], [5, 500]), [0], least=100)
    assert len(chosen) == 5


def test_no_item_where_users_ask_is_an_error_with_advice():
    with pytest.raises(DataError, match=r"E48 The 3 test items .* that 0% .* Add test items"):
        draw([0, 0, 0], [1, 1])


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(1, 80),
    st.integers(0, 3),
)
def test_a_slice_is_a_set_of_reachable_items_within_the_bounds(items, usage, least, most, seed):
    items, usage = np.array(items), np.array(usage)
    reachable = np.isin(items, usage)
    if np.isin(usage, items).mean() < 0.5:
        return
    chosen = draw(items, usage, least=least, most=most, seed=seed)
    assert len(np.unique(chosen)) == len(chosen) <= most
    assert len(chosen) >= min(least, most, reachable.sum())
    assert reachable[chosen].all()


def test_the_choice_goes_by_ids_and_not_by_the_order_of_the_rows():
    items = np.repeat([0, 1], 40)
    keys = np.arange(80, dtype=np.uint64) * 7919
    order = np.random.default_rng(1).permutation(80)
    one = keys[draw(items, [0, 1], most=20, keys=keys)]
    two = keys[order][draw(items[order], [0, 1], most=20, keys=keys[order])]
    assert set(one.tolist()) == set(two.tolist())


def table(*pairs):
    return examples_to_table([Example(i, "swh_Latn", text) for i, text in pairs])


def test_merged_slices_hold_each_item_once():
    rows, ids = merge_slices({"first": table(("a", "x"), ("b", "y")), "new": table(("b", "y"))})
    assert rows["id"].to_pylist() == ["a", "b"]
    assert ids == {"first": ["a", "b"], "new": ["b"]}


def test_an_id_that_stands_for_another_item_is_told_apart():
    rows, ids = merge_slices({"first": table(("a", "x")), "new": table(("a", "z"), ("c", "w"))})
    assert rows["prompt"].to_pylist() == ["x", "z", "w"]
    assert len(set(rows["id"].to_pylist())) == 3
    assert ids["first"] == ["a"]
    assert ids["new"][0].startswith("a#")
    assert isinstance(rows, pa.Table)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_core.adaptation.replay import ReplayBuffer, draw_replay, replay_size
from compass_core.errors import DataError, StoreError
from compass_core.records import Example, examples_to_table
from compass_core.selection.drawing import example_keys


def keys_of(n, prefix=""):
    return example_keys(f"{prefix}{k}" for k in range(n))


def rows_of(ids):
    return examples_to_table(
        [Example(id=i, language="swh_Latn", prompt=f"prompt {i}", response="yes") for i in ids]
    )


def history(counts, prefix=""):
    """Rows and cluster ids with `counts` examples per cluster."""
    ids = np.repeat(np.arange(len(counts)), counts)
    return rows_of([f"{prefix}{k}" for k in range(len(ids))]), ids


def draw(counts, prefix="", **changes):
    rows, ids = history(counts, prefix)
    options = {"share": 0.1, "max_examples": 1_000, "seed": 0, "space": "s"} | changes
    return ReplayBuffer.draw(rows, ids, len(counts), **options)


def draw_slowly(cluster_ids, keys, share, max_examples, rng):
    """Slow twin: Hamilton's method by sorting, one cluster at a time."""
    size = replay_size(len(keys), share, max_examples)
    clusters = sorted(set(cluster_ids.tolist()))
    ideal = {c: size * float((cluster_ids == c).sum()) / len(keys) for c in clusters}
    quota = {c: int(ideal[c] + 1e-9) for c in clusters}
    by_rest = sorted(clusters, key=lambda c: (-round(ideal[c] - quota[c], 9), c))
    for c in by_rest[: size - sum(quota.values())]:
        quota[c] += 1
    return quota


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=120),
    st.floats(0.0, 1.0),
    st.integers(1, 60),
    st.integers(0, 5),
)
def test_each_cluster_keeps_its_share_by_largest_remainder(ids, share, most, seed):
    cluster_ids, keys = np.array(ids), keys_of(len(ids))
    drawn = draw_replay(cluster_ids, keys, share, most, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn.tolist())) == replay_size(len(ids), share, most) <= most
    quota = draw_slowly(cluster_ids, keys, share, most, np.random.default_rng(seed))
    counts = np.bincount(cluster_ids[drawn], minlength=7)
    assert {c: n for c, n in enumerate(counts) if n} == {c: n for c, n in quota.items() if n}
    ideal = len(drawn) * np.bincount(cluster_ids, minlength=7) / len(ids)
    assert (np.abs(counts - ideal) < 1 + 1e-9).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.randoms(use_true_random=False))
def test_the_draw_depends_on_keys_and_seed_and_not_on_the_order_of_rows(ids, shuffler):
    cluster_ids, keys = np.array(ids), keys_of(len(ids))
    order = list(range(len(ids)))
    shuffler.shuffle(order)
    plain = draw_replay(cluster_ids, keys, 0.4, 50, np.random.default_rng(7))
    mixed = draw_replay(cluster_ids[order], keys[order], 0.4, 50, np.random.default_rng(7))
    assert keys[plain].tolist() == keys[order][mixed].tolist()


def test_another_seed_draws_others():
    cluster_ids, keys = np.zeros(200, dtype=int), keys_of(200)
    one, two = (draw_replay(cluster_ids, keys, 0.1, 50, np.random.default_rng(s)) for s in (0, 1))
    assert set(one.tolist()) != set(two.tolist())


def test_every_example_of_a_cluster_is_equally_likely():
    cluster_ids, keys = np.repeat([0, 1], [10, 30]), keys_of(40)
    n_draws = 2_000
    hits = np.zeros(40)
    for seed in range(n_draws):
        hits[draw_replay(cluster_ids, keys, 0.2, 50, np.random.default_rng(seed))] += 1
    # 8 places: 2 of 10 and 6 of 30, each example with probability 1/5; 5 standard deviations.
    assert np.abs(hits / n_draws - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / n_draws)


def test_a_small_topic_that_a_uniform_draw_may_miss_is_kept():
    cluster_ids, keys = np.repeat([0, 1], [960, 40]), keys_of(1_000)
    for seed in range(50):
        drawn = draw_replay(cluster_ids, keys, 0.05, 5_000, np.random.default_rng(seed))
        assert np.bincount(cluster_ids[drawn]).tolist() == [48, 2]


@pytest.mark.parametrize(
    ("n", "share", "most", "expected"),
    [
        (100, 0.05, 50, 5),
        (101, 0.05, 50, 6),
        (100, 0.07, 50, 7),
        (9_999, 0.05, 40, 40),
        (3, 0, 9, 0),
    ],
)
def test_size_is_the_share_rounded_up_within_its_bound(n, share, most, expected):
    assert replay_size(n, share, most) == expected


def test_nothing_is_drawn_from_nothing():
    empty = np.array([], dtype=np.int64)
    assert len(draw_replay(empty, keys_of(0), 0.05, 10, np.random.default_rng(0))) == 0


def test_ids_that_do_not_belong_to_the_rows_are_refused():
    with pytest.raises(DataError, match="3 examples, 2 cluster ids"):
        draw_replay(np.array([0, 1]), keys_of(3), 0.5, 10, np.random.default_rng(0))


def test_buffer_says_what_it_stands_for_and_how_close_it_is():
    buffer = draw([600, 300, 100])
    facts = buffer.facts()
    assert facts["history"] == [600, 300, 100]
    assert facts["buffer"] == [60, 30, 10]
    assert facts["js_to_history"] == pytest.approx(0.0, abs=1e-12)
    assert facts["n_examples"] == len(buffer) == 100


def test_buffer_comes_back_from_its_folder_as_it_was(tmp_path):
    buffer = draw([40, 60], sources=("a", "b"))
    facts = buffer.save(tmp_path)
    again = ReplayBuffer.load(tmp_path)
    assert again.rows.equals(buffer.rows)
    assert again.cluster_ids.tolist() == buffer.cluster_ids.tolist()
    assert again.facts() == facts == buffer.facts()


@pytest.mark.parametrize("damage", ["missing", "cut", "format", "other rows"])
def test_damaged_buffer_is_refused_with_advice(tmp_path, damage):
    draw([40, 60]).save(tmp_path)
    rows = tmp_path / "rows.parquet"
    if damage == "missing":
        rows.unlink()
    elif damage == "cut":
        rows.write_bytes(rows.read_bytes()[:-20])
    elif damage == "format":
        facts = tmp_path / "replay.json"
        facts.write_text(facts.read_text().replace('"format_version": 1', '"format_version": 9'))
    else:
        draw([10, 10]).save(tmp_path / "x")
        (tmp_path / "x" / "rows.parquet").rename(rows)
    with pytest.raises(StoreError, match="Draw it again"):
        ReplayBuffer.load(tmp_path)


def test_an_empty_buffer_is_a_buffer_too(tmp_path):
    buffer = draw([60, 40], share=0.0)
    buffer.save(tmp_path)
    again = ReplayBuffer.load(tmp_path)
    assert len(again) == 0
    assert again.facts()["js_to_history"] is None

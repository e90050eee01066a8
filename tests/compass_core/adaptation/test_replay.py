import numpy as np
import pyarrow as pa
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


def test_merging_keeps_the_mix_of_everything_trained_so_far():
    buffer = draw([600, 300, 100])
    rows, ids = history([0, 100, 400], "new")
    merged = buffer.merge(rows, ids, share=0.1, max_examples=1_000, seed=1, sources=("second",))
    facts = merged.facts()
    assert facts["history"] == [600, 400, 500]
    assert facts["buffer"] == [60, 40, 50]
    old = [not name.startswith("new") for name in merged.rows["id"].to_pylist()]
    # Old and new rows of a cluster keep the proportion of what they stand for.
    assert np.bincount(merged.cluster_ids[old], minlength=3).tolist() == [60, 30, 10]
    assert merged.sources == ("second",)


def test_a_bounded_buffer_keeps_old_and_new_in_proportion_over_many_updates():
    buffer = draw([400, 400], "stage0-", share=0.05, max_examples=40)
    for stage in range(1, 6):
        rows, ids = history([400, 400], f"stage{stage}-")
        buffer = buffer.merge(rows, ids, share=0.05, max_examples=40, seed=stage)
        assert len(buffer) == 40
        assert buffer.facts()["buffer"] == [20, 20]
    stages = [int(name[5]) for name in buffer.rows["id"].to_pylist()]
    counts = np.bincount(stages, minlength=6)
    # 40 places for six equal stages: 6 or 7 each, up to what rounding took at every merge.
    assert counts.min() >= 3
    assert counts.max() <= 11


def test_merging_does_not_depend_on_the_order_of_new_rows():
    rows, ids = history([50, 70], "new")
    order = np.random.default_rng(3).permutation(len(ids))
    options = {"share": 0.2, "max_examples": 100, "seed": 5}
    plain = draw([60, 60]).merge(rows, ids, **options)
    mixed = draw([60, 60]).merge(rows.take(pa.array(order)), ids[order], **options)
    assert plain.rows.equals(mixed.rows)
    assert plain.cluster_ids.tolist() == mixed.cluster_ids.tolist()


def test_a_cluster_with_too_few_rows_leaves_its_places_to_the_others():
    buffer = draw([900, 100], share=0.01)
    rows, ids = history([0, 10], "new")
    merged = buffer.merge(rows, ids, share=0.02, max_examples=1_000, seed=1)
    # 21 places wanted; the old buffer has 9 + 1 rows left to give and the new rows are 10.
    assert len(merged) == 20
    assert merged.facts()["buffer"] == [9, 11]


def test_buffer_moves_to_other_clusters_with_its_history_estimated():
    buffer = draw([60, 40])
    moved = buffer.in_space(1 - buffer.cluster_ids, 3, "other")
    assert moved.facts()["history"] == [40, 60, 0]
    assert moved.space == "other"
    assert moved.rows.equals(buffer.rows)


def test_forgotten_records_leave_the_buffer():
    buffer = draw([60, 40])
    gone = buffer.rows["id"].to_pylist()[:3]
    left = buffer.without(gone)
    assert not set(gone) & set(left.rows["id"].to_pylist())
    assert len(left) == len(left.cluster_ids) == len(buffer) - 3


def test_an_empty_buffer_is_a_buffer_too(tmp_path):
    buffer = draw([60, 40], share=0.0)
    buffer.save(tmp_path)
    again = ReplayBuffer.load(tmp_path)
    assert len(again) == 0
    assert again.facts()["js_to_history"] is None
    assert again.in_space(again.cluster_ids, 2, "other").facts()["n_history"] == 0

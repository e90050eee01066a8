"""Draws: the right number, without replacement, by id and not by place, balanced when asked."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.errors import DataError, InsufficientPoolError
from compass_core.selection.drawing import draw_examples, example_keys, random_priorities

METHODS = ("uniform", "nearest", "diverse")


class Pool:
    """A pool of `n` examples in `k` clusters and four languages of very unequal size."""

    def __init__(self, n=400, k=5, seed=0):
        rng = np.random.default_rng(seed)
        self.ids = np.array([f"row-{i}" for i in range(n)])
        self.clusters = rng.integers(0, k, n).astype(np.int32)
        self.distances = rng.random(n).astype(np.float32)
        self.languages = rng.choice(["aaa", "bbb", "ccc", "ddd"], n, p=[0.7, 0.2, 0.07, 0.03])
        self.available = rng.random(n) < 0.8
        vectors = rng.normal(size=(n, 8))
        self.vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        self.k = k

    def reordered(self, order):
        other = Pool.__new__(Pool)
        other.k = self.k
        for name in ("ids", "clusters", "distances", "languages", "available", "vectors"):
            setattr(other, name, getattr(self, name)[order])
        return other

    def capacity(self):
        return np.bincount(self.clusters[self.available], minlength=self.k)

    def draw(self, allocation, seed=0, **options):
        return draw_examples(
            self.clusters,
            self.distances,
            self.languages,
            np.asarray(allocation),
            self.available,
            rng=np.random.default_rng(seed),
            keys=example_keys(self.ids),
            vectors=self.vectors,
            **options,
        )


@given(
    st.integers(0, 10**6),
    st.sampled_from(METHODS),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_cluster_gives_exactly_its_allocation_without_replacement(
    seed, method, balance, share
):
    pool = Pool(n=150, seed=seed)
    allocation = np.floor(pool.capacity() * share).astype(np.int64)
    rows = pool.draw(allocation, method=method, language_balance=balance)
    assert (np.diff(rows) > 0).all()
    assert pool.available[rows].all()
    assert (np.bincount(pool.clusters[rows], minlength=pool.k) == allocation).all()


@given(
    st.integers(0, 10**6),
    st.sampled_from(METHODS),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
def test_any_order_of_any_pool_gives_the_same_ids(seed, method, balance, chance):
    pool = Pool(n=120, seed=seed)
    order = list(range(120))
    chance.shuffle(order)
    shuffled = pool.reordered(np.array(order))
    allocation = pool.capacity() * chance.randrange(4) // 4
    options = {"method": method, "language_balance": balance, "seed": seed}
    drawn = pool.ids[pool.draw(allocation, **options)]
    assert set(drawn) == set(shuffled.ids[shuffled.draw(allocation, **options)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_draw_depends_on_ids_and_seed_but_not_on_the_order_of_the_pool(method, balance):
    pool = Pool()
    shuffled = pool.reordered(np.random.default_rng(7).permutation(400))
    options = {"method": method, "language_balance": balance}
    first = set(pool.ids[pool.draw([20] * 5, **options)])
    assert first == set(shuffled.ids[shuffled.draw([20] * 5, **options)])
    assert first == set(pool.ids[pool.draw([20] * 5, **options)])
    if method != "nearest":
        assert first != set(pool.ids[pool.draw([20] * 5, seed=1, **options)])


DRAW_AND_PRINT = """
import numpy as np
from compass_core.selection.drawing import draw_examples, example_keys

rng = np.random.default_rng(5)
vectors = rng.normal(size=(300, 8)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
rows = draw_examples(
    np.arange(300) % 4,
    rng.random(300),
    np.array(["aaa", "bbb", "ccc"])[rng.integers(0, 3, 300)],
    np.array([20, 0, 5, 30]),
    rng.random(300) < 0.9,
    method={method!r},
    language_balance=0.5,
    rng=np.random.default_rng(1),
    keys=example_keys(f"id-{{i}}" for i in range(300)),
    vectors=vectors,
)
print(",".join(map(str, rows)))
"""


@pytest.mark.parametrize("method", METHODS)
def test_another_process_draws_the_same(method):
    def drawn(hash_seed, threads):
        names = {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads}
        script = DRAW_AND_PRINT.format(method=method)
        call = [sys.executable, "-c", script]
        found = subprocess.run(
            call, env=os.environ | names, capture_output=True, text=True, check=True
        )
        return found.stdout

    first = drawn("1", "1")
    assert first.count(",") == 54
    assert first == drawn("2", "2")


def first_of_each_cluster(pool, allocation, seed):
    """The slow twin of a uniform draw: every cluster's rows in the order of their numbers."""
    numbers = random_priorities(example_keys(pool.ids), np.random.default_rng(seed))
    rows = []
    for cluster, wanted in enumerate(allocation):
        members = [i for i in range(len(pool.ids)) if pool.clusters[i] == cluster]
        members = sorted((numbers[i], i) for i in members if pool.available[i])
        rows += [i for _, i in members[:wanted]]
    return sorted(rows)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_a_uniform_draw_takes_the_smallest_numbers_of_each_cluster(seed, share):
    pool = Pool(n=100, seed=seed)
    allocation = np.floor(pool.capacity() * share).astype(np.int64)
    assert pool.draw(allocation, seed=seed).tolist() == first_of_each_cluster(
        pool, allocation, seed
    )


@pytest.mark.parametrize("method", METHODS)
def test_what_other_clusters_give_does_not_change_a_clusters_own_draw(method):
    pool = Pool()
    alone = pool.draw([0, 0, 9, 0, 0], method=method)
    together = pool.draw([20, 1, 9, 30, 7], method=method)
    assert alone.tolist() == [row for row in together if pool.clusters[row] == 2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("balance", [0.0, 0.7])
def test_an_allocation_of_nothing_draws_nothing(method, balance):
    rows = Pool().draw([0] * 5, method=method, language_balance=balance)
    assert rows.dtype == np.int64
    assert len(rows) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("balance", [0.0, 0.7])
def test_one_example_of_one_cluster_can_be_drawn(method, balance):
    pool = Pool()
    rows = pool.draw([0, 0, 0, 1, 0], method=method, language_balance=balance)
    assert pool.clusters[rows].tolist() == [3]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("balance", [0.0, 0.7])
def test_an_allocation_of_everything_draws_all_that_is_available(method, balance):
    pool = Pool()
    rows = pool.draw(pool.capacity(), method=method, language_balance=balance)
    assert rows.tolist() == np.flatnonzero(pool.available).tolist()


@pytest.mark.parametrize("balance", [0.0, 0.7])
def test_an_empty_pool_gives_an_empty_draw(balance):
    empty = Pool().reordered(np.arange(0))
    assert len(empty.draw([0] * 5, language_balance=balance)) == 0


def test_half_precision_vectors_in_a_file_spread_like_vectors_in_memory(tmp_path):
    pool = Pool(n=1000)
    pool.vectors = pool.vectors.astype(np.float16)
    np.save(tmp_path / "vectors.npy", pool.vectors)
    in_memory = pool.draw([15] * 5, method="diverse")
    pool.vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert pool.draw([15] * 5, method="diverse").tolist() == in_memory.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_drawing_changes_none_of_its_arrays(method):
    pool = Pool()
    before = pool.reordered(np.arange(400))
    pool.draw([10] * 5, method=method, language_balance=0.5)
    for name in ("clusters", "distances", "languages", "available", "vectors"):
        assert (getattr(pool, name) == getattr(before, name)).all()


def test_a_grown_pool_keeps_most_of_a_uniform_draw():
    pool = Pool(n=1000)
    small = pool.reordered(np.arange(900))
    before = set(small.ids[small.draw([30] * 5)])
    after = set(pool.ids[pool.draw([30] * 5)])
    assert len(before & after) > 0.75 * len(before)


def test_uniform_draws_every_example_equally_often():
    pool = Pool(n=60, k=1)
    pool.available[:] = True
    counts = np.zeros(60)
    for seed in range(2000):
        counts[pool.draw([15], seed=seed)] += 1
    # Binomial(2000, 1/4): mean 500, standard deviation 19.4; 60 examples stay within 4.5 of it.
    assert np.abs(counts - 500).max() < 4.5 * 19.4


def test_nearest_takes_the_smallest_distances():
    pool = Pool()
    rows = pool.draw([10, 0, 0, 0, 0], method="nearest")
    members = np.flatnonzero((pool.clusters == 0) & pool.available)
    assert sorted(pool.distances[rows]) == sorted(pool.distances[members])[:10]


def test_diverse_spreads_wider_than_uniform():
    pool = Pool(n=2000, k=1)

    def closest_pair(rows):
        scores = pool.vectors[rows] @ pool.vectors[rows].T
        np.fill_diagonal(scores, -1)
        return scores.max()

    spread = closest_pair(pool.draw([30], method="diverse"))
    assert spread < closest_pair(pool.draw([30], method="uniform")) - 0.1


def test_full_balance_gives_every_language_the_same_as_far_as_it_reaches():
    pool = Pool(n=4000, k=1)
    pool.available[:] = True
    rows = pool.draw([400], language_balance=1.0)
    names, counts = np.unique(pool.languages[rows], return_counts=True)
    held = dict(zip(*np.unique(pool.languages, return_counts=True), strict=True))
    assert dict(zip(names, counts, strict=True)) == dict.fromkeys(held, 100)


@pytest.mark.parametrize("balance", [0.3, 0.5, 0.8])
def test_a_languages_share_is_its_size_to_the_power_of_one_over_the_temperature(balance):
    pool = Pool(n=20_000, k=1)
    pool.available[:] = True
    rows = pool.draw([1000], language_balance=balance)
    sizes = np.unique(pool.languages, return_counts=True)[1].astype(float)
    drawn = np.unique(pool.languages[rows], return_counts=True)[1]
    expected = 1000 * sizes ** (1 - balance) / (sizes ** (1 - balance)).sum()
    assert np.abs(drawn - expected).max() <= 1


@given(st.integers(0, 10**6), st.floats(0.01, 1))
def test_more_balance_never_makes_the_rarest_language_rarer(seed, balance):
    pool = Pool(n=300, k=2, seed=seed)
    pool.available[:] = True

    def rarest(value):
        drawn = pool.languages[pool.draw([40, 40], language_balance=value)]
        return (drawn == "ddd").sum()

    # A floor of one example per cluster is what rounding may cost.
    assert rarest(1.0) >= rarest(balance) - 2


def test_small_allocations_balance_over_clusters_and_not_in_favour_of_the_first_language():
    rng = np.random.default_rng(0)
    n, k = 6000, 200
    languages = np.array([f"l{i}" for i in range(6)])[rng.integers(0, 6, n)]
    rows = draw_examples(
        rng.integers(0, k, n),
        np.zeros(n),
        languages,
        np.full(k, 2),
        np.ones(n, dtype=np.bool_),
        language_balance=1.0,
        rng=rng,
    )
    counts = np.unique(languages[rows], return_counts=True)[1]
    assert counts.sum() == 400
    assert np.ptp(counts) <= 12


def test_no_balance_leaves_languages_as_the_pool_has_them():
    pool = Pool(n=20_000, k=1)
    rows = pool.draw([4000])
    assert (pool.languages[rows] == "aaa").mean() == pytest.approx(0.7, abs=0.03)


def test_keys_depend_on_the_id_alone_and_priorities_on_key_and_seed():
    keys = example_keys(["a", "ü", "a"])
    assert keys[0] == keys[2] != keys[1]
    first = random_priorities(keys, np.random.default_rng(0))
    assert first[0] == first[2]
    assert (first == random_priorities(keys, np.random.default_rng(0))).all()
    assert first[0] != random_priorities(keys, np.random.default_rng(1))[0]


def test_a_cluster_that_cannot_give_its_allocation_is_named():
    pool = Pool()
    with pytest.raises(InsufficientPoolError, match=r"cluster 2 holds \d+, wants 399"):
        pool.draw([0, 0, 399, 0, 0])


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"method": "best"}, r"selection\.draw must be"),
        ({"language_balance": 1.5}, r"language_balance must lie in \[0, 1\]"),
    ],
)
def test_impossible_options_are_refused(options, advice):
    with pytest.raises(DataError, match=advice):
        Pool().draw([1] * 5, **options)


def test_diverse_without_vectors_is_refused():
    pool = Pool()
    pool.vectors = None
    with pytest.raises(DataError, match="needs the pool's vectors"):
        pool.draw([1] * 5, method="diverse")

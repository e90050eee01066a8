"""A pool of shards behaves like the one table and the one array it stands for."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compass_core.errors import DataError
from compass_core.pool import Pool, PoolShard, ShardedVectors
from compass_core.selection.assignment import assign_clusters

SIZES = (5, 0, 37, 8)


def unit(n, d=6, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows(n, first):
    numbers = range(first, first + n)
    return pa.table(
        {
            "id": pa.array([f"row-{i}" for i in numbers], pa.string()),
            "language": pa.array([("tur_Latn", "hin_Deva")[i % 2] for i in numbers], pa.string()),
            "prompt": pa.array([f"prompt {i}" if i % 3 else "" for i in numbers], pa.string()),
            "response": pa.array([f"response {i}" for i in numbers], pa.string()),
        }
    )


@pytest.fixture
def whole(tmp_path):
    """The pool in shards, and the same as one table and one array."""
    shards, tables, arrays, first = [], [], [], 0
    for number, size in enumerate(SIZES):
        table, vectors = rows(size, first), unit(size, seed=number)
        path = tmp_path / f"{number}.parquet"
        pq.write_table(table, path, row_group_size=4)
        np.save(tmp_path / f"{number}.npy", vectors)
        shards.append(PoolShard(path, tmp_path / f"{number}.npy"))
        tables.append(table)
        arrays.append(vectors)
        first += size
    return Pool(shards), pa.concat_tables(tables), np.concatenate(arrays)


def test_rows_are_numbered_through_the_shards(whole):
    pool, table, _ = whole
    assert pool.n_rows == sum(SIZES)
    wanted = np.array([49, 0, 7, 7, 41, 4, 5])
    assert pool.take(wanted).equals(table.take(wanted))
    assert pool.take(wanted, ["id"]).column_names == ["id"]
    assert pool.take(np.zeros(0, dtype=np.int64)).num_rows == 0


def test_columns_of_few_values_come_as_codes(whole):
    pool, table, _ = whole
    codes, names = pool.codes("language")
    assert names == ["tur_Latn", "hin_Deva"]
    assert [names[code] for code in codes] == table["language"].to_pylist()
    assert pool.languages.tolist() == table["language"].to_pylist()


def test_texts_are_prompts_or_else_responses_in_row_order(whole):
    pool, table, _ = whole
    expected = [
        p or r for p, r in zip(*map(pa.ChunkedArray.to_pylist, table.columns[2:4]), strict=True)
    ]
    assert [text for batch in pool.iter_texts(3) for text in batch] == expected


@pytest.mark.parametrize(
    "rows",
    [slice(0, 50), slice(3, 9), slice(40, 45), slice(5, 5), slice(0, 50, 7), [49, 0, 7, 7, 20]],
    ids=str,
)
def test_vectors_in_shards_read_like_one_array(whole, rows):
    pool, _, vectors = whole
    found = pool.vectors[rows]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors[rows])


def test_clusters_are_assigned_alike_in_shards_and_in_one_piece(whole):
    pool, _, vectors = whole
    ids, distances = assign_clusters(pool.vectors, unit(4, seed=9), block=8)
    expected = assign_clusters(vectors, unit(4, seed=9), block=8)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_allclose(distances, expected[1], atol=1e-6)


def test_vectors_of_two_encoders_are_refused(whole):
    with pytest.raises(DataError, match=r"E50 .*dimensions \[6, 7\].*different encoders"):
        ShardedVectors([unit(3), unit(3, d=7)])


def test_a_shard_with_too_few_vectors_is_refused(whole, tmp_path):
    pool, _, _ = whole
    np.save(tmp_path / "2.npy", unit(36))
    with pytest.raises(DataError, match="36 vectors for 37 rows"):
        _ = Pool(pool.shards).vectors


def test_half_precision_on_disk_is_read_as_single(tmp_path):
    np.save(tmp_path / "v.npy", unit(4).astype(np.float16))
    part = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert ShardedVectors([part])[1:3].dtype == np.float32


def test_a_pool_without_shards_is_refused():
    with pytest.raises(DataError, match="at least one shard"):
        Pool([])

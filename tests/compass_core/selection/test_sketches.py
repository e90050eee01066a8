"""A sketch on disk: complete, the same however it is made, and never used when it is damaged."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pyarrow.parquet as pq
import pytest

from compass_core.errors import StoreError
from compass_core.records import Example, examples_to_table
from compass_core.selection import sketches
from compass_core.selection.drawing import example_keys
from compass_core.selection.sketches import Sketch, read_sketch, sketch_rows, write_sketch

SENTENCE = "The river was higher this year than anybody in the village could remember"


def rows(n_rows=40):
    return examples_to_table(
        Example(
            id=f"rów-{i}",
            language="eng_Latn",
            prompt=f"{SENTENCE}, and number {i} was no exception." if i % 3 else "",
            response="水は命です。" * (i % 7),
            history=(("user", "hello"),) if i % 5 == 0 else (),
            choices=("one", "two") if i % 4 == 0 else (),
            parallel_id=f"p{i}" if i % 2 else "",
            source=f"source {i % 3}",
            licence="CC0-1.0" if i < 20 else "",
        )
        for i in range(n_rows)
    )


def assert_equal(one: Sketch, other: Sketch):
    for field in fields(Sketch):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


def write(tmp_path, table):
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=16)
    return write_sketch(tmp_path / "rows.parquet", tmp_path / "sketch")


def test_a_sketch_read_from_disk_is_the_one_made_in_memory(tmp_path):
    assert write(tmp_path, rows()) == 40
    found = read_sketch(tmp_path / "sketch")
    assert_equal(found, sketch_rows(rows()))
    assert isinstance(found.whole_signatures, np.memmap)
    assert found.n_rows == 40


def test_blocks_and_batches_leave_no_trace(monkeypatch):
    whole = sketch_rows(rows())
    monkeypatch.setattr(sketches, "_BLOCK_CHARACTERS", 100)
    monkeypatch.setattr(sketches, "_BATCH_ROWS", 7)
    assert_equal(sketch_rows(rows()), whole)


def test_a_row_s_sketch_does_not_depend_on_its_place():
    order = np.random.default_rng(0).permutation(40)
    one, other = sketch_rows(rows()), sketch_rows(rows().take(order))
    for name in ("keys", "prompt_keys", "pair_keys", "parallel_keys", "whole_bands"):
        assert np.array_equal(getattr(one, name)[order], getattr(other, name))
    for row, place in enumerate(order):
        a, b = one.fingerprint_offsets[place : place + 2]
        c, d = other.fingerprint_offsets[row : row + 2]
        assert np.array_equal(one.fingerprints[a:b], other.fingerprints[c:d])


def test_ids_keys_and_labels_are_those_of_the_rows():
    table = rows()
    found = sketch_rows(table)
    assert found.ids([3, 0]) == ["rów-3", "rów-0"]
    assert np.array_equal(found.keys, example_keys(table["id"].to_pylist()))
    assert (found.parallel_keys == 0).sum() == 20
    assert [found.source_names[c] for c in found.sources] == table["source"].to_pylist()
    assert [found.licence_names[c] for c in found.licences] == table["licence"].to_pylist()


def test_a_plain_text_row_has_its_response_as_prompt():
    found = sketch_rows(
        examples_to_table(
            [
                Example(id="a", language="eng_Latn", prompt=SENTENCE),
                Example(id="b", language="eng_Latn", prompt="", response=SENTENCE),
            ]
        )
    )
    assert found.prompt_keys[0] == found.prompt_keys[1]
    assert np.array_equal(found.prompt_signatures[0], found.prompt_signatures[1])
    assert found.pair_keys[0] != found.pair_keys[1]


def test_short_texts_are_not_compared_and_empty_ones_have_no_key():
    found = sketch_rows(
        examples_to_table(
            Example(id=str(i), language="eng_Latn", prompt=text)
            for i, text in enumerate(["maji ∈ ?", "", "???", "!!!"])
        )
    )
    assert not found.whole_bands.any()
    assert not found.prompt_bands.any()
    assert len(found.fingerprints) == 0
    assert (found.prompt_keys == 0).tolist() == [False, True, False, False]
    assert found.prompt_keys[2] != found.prompt_keys[3]


def test_all_the_text_of_a_row_counts_as_the_whole():
    def one(**parts):
        return sketch_rows(examples_to_table([Example(id="a", language="eng_Latn", **parts)]))

    bare = one(prompt="Short?")
    assert len(bare.fingerprints) == 0
    for parts in (
        {"response": SENTENCE},
        {"history": (("user", SENTENCE),)},
        {"choices": (SENTENCE, "no")},
    ):
        found = one(prompt="Short?", **parts)
        assert len(found.fingerprints) > 0
        assert found.whole_bands.any()
        assert not found.prompt_bands.any()


def test_an_empty_corpus_has_a_sketch(tmp_path):
    assert write(tmp_path, rows(0)) == 0
    assert read_sketch(tmp_path / "sketch").n_rows == 0


def test_of_a_very_long_row_only_the_beginning_is_looked_at(monkeypatch):
    monkeypatch.setattr(sketches, "_MAX_CHARACTERS", 1_000)
    texts = [f"{SENTENCE} {i} " * 50 for i in (1, 2)]
    found = sketch_rows(
        examples_to_table(
            Example(id=text, language="eng_Latn", prompt=text)
            for text in (texts[0], texts[0] + texts[1], texts[1])
        )
    )
    assert np.array_equal(found.whole_bands[0], found.whole_bands[1])
    assert found.pair_keys[0] != found.pair_keys[1]


@pytest.mark.parametrize("name", ["keys.npy", "fingerprints.npy", "sketch.json"])
def test_a_damaged_sketch_is_refused_with_advice(tmp_path, name):
    write(tmp_path, rows())
    path = tmp_path / "sketch" / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoreError, match="Delete the folder and run the same command again"):
        read_sketch(tmp_path / "sketch")


def test_parts_of_two_sketches_are_not_mixed(tmp_path):
    write(tmp_path, rows(40))
    other = tmp_path / "other"
    other.mkdir()
    write(other, rows(41))
    for name in ("keys.npy", "fingerprint_offsets.npy"):
        kept = (tmp_path / "sketch" / name).read_bytes()
        (tmp_path / "sketch" / name).write_bytes((other / "sketch" / name).read_bytes())
        with pytest.raises(StoreError, match="instead of"):
            read_sketch(tmp_path / "sketch")
        (tmp_path / "sketch" / name).write_bytes(kept)


def test_a_sketch_of_another_version_is_refused(tmp_path, monkeypatch):
    write(tmp_path, rows())
    monkeypatch.setattr(sketches, "SKETCH_VERSION", 99)
    with pytest.raises(StoreError, match="this COMPASS reads 99"):
        read_sketch(tmp_path / "sketch")


def test_a_missing_sketch_is_named(tmp_path):
    with pytest.raises(StoreError, match="nowhere"):
        read_sketch(tmp_path / "nowhere")

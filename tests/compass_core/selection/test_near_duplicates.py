"""Near-duplicates and shared runs: found where they are, and not in templates."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from compass_core.records import Example, examples_to_table
from compass_core.selection import near_duplicates
from compass_core.selection.near_duplicates import shared_runs
from compass_core.selection.ngrams import SHINGLE_WEIGHT
from compass_core.selection.sketches import sketch_rows
from compass_core.selection.stack import ReferenceRuns, Stack, boilerplate_shares

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def words(rng, n_words):
    return " ".join("".join(rng.choice(LETTERS, rng.integers(2, 9))) for _ in range(n_words))


def sketch(texts, prefix="r"):
    return sketch_rows(
        examples_to_table(
            Example(id=f"{prefix}{i}", language="eng_Latn", prompt=text)
            for i, text in enumerate(texts)
        )
    )


def shingles(text):
    letters, n = text.replace(" ", ""), SHINGLE_WEIGHT // 10
    return {letters[i : i + n] for i in range(len(letters) - n + 1)}


def similar_within(stack, rows, threshold):
    shares = boilerplate_shares(stack, rows)
    return near_duplicates.similar_within(stack, rows, threshold, shares)


def similar_to(stack, rows, reference, side, threshold):
    shares = boilerplate_shares(stack, rows)
    return near_duplicates.similar_to(stack, rows, reference, side, threshold, shares)


def jaccard(one, other):
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def edited(rng, text, n_changed):
    """`text` with so many of its letters replaced, one after another."""
    start = int(rng.integers(0, len(text) - n_changed))
    return text[:start] + words(rng, n_changed)[:n_changed] + text[start + n_changed :]


def everything(stack):
    return np.arange(stack.n_rows)


def pairs_of_similarity(low, high, rng, n_pairs=200):
    """Pairs of texts of which one stretch differs, of just the length that is needed."""
    found = []
    while len(found) < n_pairs:
        text = words(rng, 60)
        share = (1 - (low + high) / 2) / (1 + (low + high) / 2)
        other = edited(rng, text, int(share * len(text) + rng.integers(-6, 7)))
        if low <= jaccard(text, other) < high:
            found.append((text, other))
    return found


def test_pairs_of_similarity_08_are_found_and_of_05_are_not():
    rng = np.random.default_rng(0)
    for (low, high), bounds in {(0.8, 0.85): (0.95, 1.0), (0.45, 0.55): (0.0, 0.01)}.items():
        pairs = pairs_of_similarity(low, high, rng)
        for n_shards in (1, 2):
            first, second = sketch([a for a, _ in pairs], "a"), sketch([b for _, b in pairs], "b")
            if n_shards == 2:
                stack = Stack([first, second])
                rows, others = similar_within(stack, everything(stack), 0.8)
                assert (np.abs(rows - others) == len(pairs)).all()
            else:
                stack = Stack([second])
                rows, others = similar_to(stack, everything(stack), first, "prompt", 0.8)
                assert (rows == others).all()
            assert bounds[0] <= len(rows) / len(pairs) <= bounds[1]


@pytest.mark.parametrize("threshold", [0.7, 0.9])
def test_the_threshold_decides(threshold):
    rng = np.random.default_rng(1)
    near = pairs_of_similarity(threshold, threshold + 0.05, rng, 60)
    far = pairs_of_similarity(threshold - 0.4, threshold - 0.25, rng, 60)
    for pairs, least, most in ((near, 0.9, 1.0), (far, 0.0, 0.02)):
        stack = Stack([sketch([a for a, _ in pairs])])
        reference = sketch([b for _, b in pairs])
        rows, _ = similar_to(stack, everything(stack), reference, "prompt", threshold)
        assert least <= len(rows) / 60 <= most


def test_a_threshold_of_1_wants_the_same_letters():
    rng = np.random.default_rng(12)
    texts = [words(rng, 40) for _ in range(30)]
    stack = Stack([sketch([t.upper() for t in texts] + [edited(rng, t, 5) for t in texts])])
    rows, theirs = similar_to(stack, everything(stack), sketch(texts), "prompt", 1.0)
    assert rows.tolist() == theirs.tolist() == list(range(30))


def test_the_row_of_the_smallest_key_stays_whatever_the_order_and_the_shards():
    rng = np.random.default_rng(2)
    originals = [words(rng, 40) for _ in range(30)]
    texts = originals + [edited(rng, originals[i % 30], 4) for i in range(90)]
    texts += [words(rng, 40) for _ in range(100)]
    table = examples_to_table(
        Example(id=f"r{i}", language="eng_Latn", prompt=t) for i, t in enumerate(texts)
    )
    one = Stack([sketch_rows(table)])
    rows, others = similar_within(one, everything(one), 0.8)
    assert len(rows) == 90
    keys = one.column("keys")
    assert (keys[rows] > keys[others]).all()
    expected = set(zip(one.ids(rows), one.ids(others), strict=True))
    order = rng.permutation(len(texts))
    cuts = [0, 7, 7, 120, len(texts)]
    shards = [sketch_rows(table.take(order[a:b])) for a, b in pairwise(cuts)]
    many = Stack(shards)
    rows, others = similar_within(many, everything(many), 0.8)
    assert set(zip(many.ids(rows), many.ids(others), strict=True)) == expected


def test_rows_left_out_of_the_search_neither_go_nor_remove():
    rng = np.random.default_rng(3)
    text = words(rng, 40)
    stack = Stack([sketch([text, edited(rng, text, 3), edited(rng, text, 3)])])
    smallest = int(np.argmin(stack.column("keys")))
    left = np.setdiff1d(np.arange(3), [smallest])
    rows, others = similar_within(stack, left, 0.8)
    assert len(rows) == 1
    assert {*rows.tolist(), *others.tolist()} == set(left.tolist())


def test_rows_of_one_template_are_no_duplicates_but_copies_within_it_are():
    rng = np.random.default_rng(4)
    frame = words(rng, 60) + " {} " + words(rng, 5)
    texts = [words(rng, 14) for _ in range(300)]
    copies = [edited(rng, texts[i], 2) for i in range(20)]
    stack = Stack([sketch([frame.format(t) for t in texts + copies])])
    assert jaccard(frame.format(texts[0]), frame.format(texts[1])) > 0.6
    rows, others = similar_within(stack, everything(stack), 0.8)
    assert (np.abs(rows - others) == 300).all()
    assert len(rows) >= 14
    shares = boilerplate_shares(stack, everything(stack))
    assert 0.7 < np.median(shares) < 0.95


def test_names_in_one_long_template_are_no_duplicates():
    rng = np.random.default_rng(5)
    frame = words(rng, 60) + " {}?"
    stack = Stack([sketch([frame.format(words(rng, 2)) for _ in range(300)])])
    assert len(similar_within(stack, everything(stack), 0.8)[0]) == 0


def test_items_of_one_template_do_not_remove_the_pool_that_shares_it():
    rng = np.random.default_rng(6)
    frame = words(rng, 60) + " {} " + words(rng, 20)
    items = [words(rng, 20) for _ in range(100)]
    others = [words(rng, 20) for _ in range(400)]
    test = sketch([frame.format(t) for t in items])
    stack = Stack([sketch([frame.format(t) for t in others + items[:20]])])
    for rows, theirs in (
        similar_to(stack, everything(stack), test, "prompt", 0.8),
        shared_runs(stack, everything(stack), test),
    ):
        assert rows.tolist() == list(range(400, 420))
        assert theirs.tolist() == list(range(20))


def test_a_template_of_the_pool_that_one_item_uses_removes_nothing():
    rng = np.random.default_rng(7)
    frame = words(rng, 60) + " {}"
    test = sketch([frame.format(words(rng, 8)), words(rng, 30)])
    stack = Stack([sketch([frame.format(words(rng, 8)) for _ in range(300)])])
    assert len(shared_runs(stack, everything(stack), test)[0]) == 0
    assert len(similar_to(stack, everything(stack), test, "prompt", 0.8)[0]) == 0


def test_many_copies_of_one_leaked_item_are_no_template():
    rng = np.random.default_rng(11)
    items = [words(rng, 30) for _ in range(5)]
    leaked = [f"so {items[0]} then", edited(rng, items[1], 3)]
    stack = Stack([sketch([*leaked * 200, *(words(rng, 30) for _ in range(100))])])
    rows, theirs = shared_runs(stack, everything(stack), sketch(items))
    assert set(rows[theirs == 0].tolist()) == set(range(0, 400, 2))
    rows, theirs = similar_to(stack, everything(stack), sketch(items), "prompt", 0.8)
    assert set(rows[theirs == 1].tolist()) == set(range(1, 400, 2))


def test_a_run_inside_longer_text_is_found_in_any_shard_and_names_its_item():
    rng = np.random.default_rng(8)
    items = [words(rng, 15) for _ in range(50)]
    texts = [words(rng, 60) for _ in range(200)]
    for i in range(50):
        texts[3 * i] = f"{words(rng, 20)} {items[i].upper()}, {words(rng, 20)}"
    stack = Stack([sketch(texts[:80]), sketch([]), sketch(texts[80:])])
    rows, theirs = shared_runs(stack, everything(stack), sketch(items))
    assert rows.tolist() == [3 * i for i in range(50)]
    assert theirs.tolist() == list(range(50))


def test_an_item_that_is_repeated_is_no_template():
    rng = np.random.default_rng(9)
    item = words(rng, 30)
    reference = sketch([item] * 200 + [words(rng, 30) for _ in range(10)])
    assert not ReferenceRuns(reference).common.any()
    stack = Stack([sketch([f"so {item} then"])])
    for rows, _ in (
        shared_runs(stack, everything(stack), reference),
        similar_to(stack, everything(stack), reference, "prompt", 0.8),
    ):
        assert rows.tolist() == [0]


def test_answers_of_their_own_are_looked_for_where_prompts_repeat():
    rng = np.random.default_rng(10)
    answers = [words(rng, 30) for _ in range(3)]
    reference = sketch_rows(
        examples_to_table(
            Example(id=f"t{i}", language="eng_Latn", prompt="Which one?", response=answer)
            for i, answer in enumerate(answers)
        )
    )
    stack = Stack([sketch([words(rng, 5) + " " + answer for answer in answers])])
    rows, theirs = shared_runs(stack, everything(stack), reference)
    assert rows.tolist() == theirs.tolist() == [0, 1, 2]


def test_nothing_is_found_in_nothing():
    empty, full = sketch([]), sketch(["a text that has just about forty letters in it, or more"])
    for stack, other in ((Stack([]), full), (Stack([empty]), full), (Stack([full]), empty)):
        assert len(shared_runs(stack, everything(stack), other)[0]) == 0
        assert len(similar_to(stack, everything(stack), other, "whole", 0.8)[0]) == 0
        assert len(similar_within(stack, everything(stack), 0.8)[0]) == 0

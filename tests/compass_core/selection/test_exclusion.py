"""Rows that repeat a test item, a prompt or each other never enter a selection."""

from __future__ import annotations

import numpy as np

from compass_core.records import Example, examples_to_table
from compass_core.selection.exclusion import forbidden_rows


def table(*rows):
    return examples_to_table(
        Example(
            id=str(i),
            language="eng_Latn",
            prompt=row.get("prompt", ""),
            response=row.get("response", ""),
            parallel_id=row.get("parallel_id", ""),
            licence=row.get("licence", ""),
        )
        for i, row in enumerate(rows)
    )


def test_each_reason_removes_its_rows_and_counts_them_once():
    pool = table(
        {"prompt": "translated test item", "parallel_id": "t1"},
        {"prompt": "translated prompt", "parallel_id": "u1"},
        {"prompt": "Ｗhat  is\train?", "response": "water"},
        {"prompt": "covered", "response": "yes"},
        {"prompt": "covered", "response": "another answer"},
        {"prompt": "fine", "response": "yes"},
    )
    allowed, reasons = forbidden_rows(
        pool,
        test=table({"prompt": "what is rain?", "parallel_id": "t1"}),
        usage=table({"prompt": "other words", "parallel_id": "u1"}),
        coverage=table({"prompt": "Covered", "response": "YES"}),
    )
    assert allowed.tolist() == [False, False, False, False, True, True]
    assert reasons == {
        "translation of test": 1,
        "translation of usage": 1,
        "same text as test": 1,
        "same text as usage": 0,
        "same text as coverage": 1,
        "duplicate in pool": 0,
    }


def test_empty_parallel_ids_and_empty_texts_never_match():
    pool = table({"prompt": "a"}, {"prompt": "b"})
    other = table({"prompt": "", "response": "", "parallel_id": ""})
    assert forbidden_rows(pool, test=other, usage=other).allowed.all()


def test_plain_text_rows_are_compared_by_their_response():
    pool = table({"response": "Plain text."}, {"response": "Another."})
    allowed, _ = forbidden_rows(pool, test=table({"response": "plain  TEXT."}))
    assert allowed.tolist() == [False, True]


def test_of_equal_rows_one_stays_and_it_is_the_same_one_in_any_order():
    rows = [{"prompt": f"q{i % 20}", "response": "a"} for i in range(100)]
    pool = table(*rows)
    allowed, reasons = forbidden_rows(pool)
    assert allowed.sum() == 20
    assert reasons["duplicate in pool"] == 80
    order = np.random.default_rng(0).permutation(100)
    again = forbidden_rows(pool.take(order)).allowed
    assert (again == allowed[order]).all()


def test_the_row_that_stays_does_not_depend_on_the_alphabet_of_ids():
    kept_first = 0
    for group in range(200):
        examples = [
            Example(id=f"{language}-{group}", language="eng_Latn", prompt="same", response="r")
            for language in ("aaa", "zzz")
        ]
        kept_first += bool(forbidden_rows(examples_to_table(examples)).allowed[0])
    assert 60 < kept_first < 140


def test_only_named_licences_pass_where_any_are_named():
    pool = table({"prompt": "a", "licence": "CC0-1.0"}, {"prompt": "b", "licence": ""})
    assert forbidden_rows(pool).allowed.all()
    allowed, reasons = forbidden_rows(pool, licences=("CC0-1.0",))
    assert allowed.tolist() == [True, False]
    assert reasons["licence not allowed"] == 1

"""Rows that repeat a test item, a prompt or each other never enter a selection."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from compass_core.errors import DataError
from compass_core.records import Example, examples_to_table
from compass_core.selection.exclusion import contaminated_rows, exclude_rows
from compass_core.selection.sketches import sketch_rows
from compass_core.starter.corpus import build_language, build_pool

LONG = "The river was higher this year than anybody in the village could remember it"
OTHER = "Goats will eat almost anything that grows, which makes them easy to keep"


def table(*rows, prefix=""):
    return examples_to_table(
        Example(
            id=f"{prefix}{i}",
            language="eng_Latn",
            prompt=row.get("prompt", ""),
            response=row.get("response", ""),
            parallel_id=row.get("parallel_id", ""),
            licence=row.get("licence", ""),
            source=row.get("source", ""),
        )
        for i, row in enumerate(rows)
    )


def sketch(*rows, prefix=""):
    return sketch_rows(table(*rows, prefix=prefix))


def test_each_reason_removes_its_rows_and_counts_them_once():
    pool = sketch(
        {"prompt": "translated test item", "parallel_id": "t1"},
        {"prompt": "translated prompt", "parallel_id": "u1"},
        {"prompt": "Ｗhat  is\train", "response": "water"},
        {"prompt": "covered", "response": "yes"},
        {"prompt": "covered", "response": "another answer"},
        {"prompt": "fine", "response": "yes"},
        {"prompt": f"My friend wrote: {LONG.upper()}! And so on."},
        {"prompt": OTHER.replace("eat", "ate")},
        {"prompt": "fine", "response": "no", "source": "scraped"},
        {"prompt": "FINE", "response": "Yes"},
    )
    allowed, reasons, removed = exclude_rows(
        [pool],
        test=sketch({"prompt": "what is rain?", "parallel_id": "t1"}, {"prompt": LONG}, prefix="t"),
        usage=sketch({"prompt": "other words", "parallel_id": "u1"}, {"prompt": OTHER}, prefix="u"),
        coverage=sketch({"prompt": "Covered", "response": "YES"}, prefix="c"),
        exclude_sources=("scraped",),
    )
    assert reasons == {
        "translation of test": 1,
        "translation of usage": 1,
        "same text as test": 1,
        "same text as usage": 0,
        "same text as coverage": 1,
        "long run of test": 1,
        "near-duplicate of test": 0,
        "near-duplicate of usage": 1,
        "near-duplicate of coverage": 0,
        "source not allowed": 1,
        "duplicate in pool": 1,
        "near-duplicate in pool": 0,
    }
    assert removed.num_rows == 8
    assert np.array_equal(np.flatnonzero(~allowed), np.sort(removed["row"].to_numpy()))
    others = dict(zip(removed["row"].to_pylist(), removed["other_id"].to_pylist(), strict=True))
    twins = {others.pop(5, None), others.pop(9, None)} - {None}
    assert twins in ({"5"}, {"9"})
    assert others == {0: "t0", 1: "u0", 2: "t0", 3: "c0", 6: "t1", 7: "u1", 8: None}
    assert removed["id"].to_pylist() == [str(row) for row in removed["row"].to_pylist()]


def test_empty_parallel_ids_and_empty_texts_never_match():
    pool = sketch({"prompt": "a"}, {"prompt": "b"}, {"prompt": ""})
    other = sketch({"prompt": "", "response": "", "parallel_id": ""})
    assert exclude_rows([pool], test=other, usage=other).allowed.all()


def test_plain_text_rows_are_compared_by_their_response():
    pool = sketch({"response": "Plain text."}, {"response": "Another."})
    found = exclude_rows([pool], test=sketch({"response": "plain  TEXT"}))
    assert found.allowed.tolist() == [False, True]


def test_of_equal_rows_one_stays_and_it_is_the_same_one_in_any_order_and_shard():
    rows = table(*({"prompt": f"q{i % 20}", "response": "a"} for i in range(100)))
    found = exclude_rows([sketch_rows(rows)])
    assert found.allowed.sum() == 20
    assert found.reasons["duplicate in pool"] == 80
    order = np.random.default_rng(0).permutation(100)
    shards = [sketch_rows(rows.take(part)) for part in (order[:30], order[30:31], order[31:])]
    again = exclude_rows(shards)
    assert (again.allowed == found.allowed[order]).all()
    pairs = [
        set(zip(x.removed["id"].to_pylist(), x.removed["other_id"].to_pylist(), strict=True))
        for x in (found, again)
    ]
    assert pairs[0] == pairs[1]


def test_the_row_that_stays_does_not_depend_on_the_alphabet_of_ids():
    kept_first = 0
    for group in range(100):
        examples = [
            Example(id=f"{language}-{group}", language="eng_Latn", prompt="same", response="r")
            for language in ("aaa", "zzz")
        ]
        kept_first += bool(exclude_rows([sketch_rows(examples_to_table(examples))]).allowed[0])
    assert 30 < kept_first < 70


def test_licences_and_sources_are_filtered_across_shards_with_other_codes():
    shards = [
        sketch(
            {"prompt": "a", "licence": "CC0-1.0", "source": "x"},
            {"prompt": "b", "licence": "", "source": "y"},
        ),
        sketch(
            {"prompt": "c", "licence": "MIT", "source": "y"},
            {"prompt": "d", "licence": "CC0-1.0", "source": "z"},
        ),
    ]
    assert exclude_rows(shards).allowed.all()
    found = exclude_rows(shards, licences=("CC0-1.0",))
    assert found.allowed.tolist() == [True, False, False, True]
    assert found.reasons["licence not allowed"] == 2
    found = exclude_rows(shards, sources=("x", "y"), exclude_sources=("x", "unknown"))
    assert found.allowed.tolist() == [False, True, True, False]
    assert found.removed["other_id"].to_pylist() == [None, None]


def test_a_removed_row_removes_no_other():
    """A copy of a test item must not take the innocent twin of its own with it."""
    pool = sketch(
        {"prompt": LONG, "response": "yes", "source": "bad"}, {"prompt": LONG, "response": "yes"}
    )
    assert exclude_rows([pool], exclude_sources=("bad",)).allowed.tolist() == [False, True]


def test_switches_turn_the_searches_off():
    pool = sketch({"prompt": f"{OTHER}. {LONG}"}, {"prompt": LONG + "!", "response": "x"})
    test = sketch({"prompt": f"{LONG} ever"})
    assert not exclude_rows([pool], test=test).allowed.any()
    found = exclude_rows([pool], test=test, decontaminate=False)
    assert found.allowed.tolist() == [True, False]
    assert exclude_rows([pool], test=test, decontaminate=False, near_duplicates=0).allowed.all()


@pytest.mark.parametrize("value", [-0.1, 1.2, float("nan")])
def test_a_similarity_outside_its_range_is_refused(value):
    with pytest.raises(DataError, match=r"near_duplicates must lie in \[0, 1\]"):
        exclude_rows([sketch({"prompt": "a"})], near_duplicates=value)


def test_a_pool_without_rows_loses_none():
    other = sketch({"prompt": LONG})
    for pool in ([], [sketch()]):
        found = exclude_rows(pool, test=other, usage=other, coverage=other, licences=("MIT",))
        assert len(found.allowed) == found.removed.num_rows == sum(found.reasons.values()) == 0


def test_references_without_rows_remove_nothing():
    found = exclude_rows([sketch({"prompt": LONG})], test=sketch(), usage=sketch())
    assert found.allowed.all()


def test_coverage_that_holds_test_items_is_reported_with_ids():
    coverage = sketch(
        {"prompt": "unrelated"},
        {"prompt": "q", "response": f"{OTHER}: {LONG}"},
        {"prompt": "again", "parallel_id": "p"},
        {"prompt": "unrelated"},
        prefix="c",
    )
    found = contaminated_rows(
        coverage, sketch({"prompt": LONG}, {"prompt": "z", "parallel_id": "p"}, prefix="t")
    )
    assert found.reasons == {
        "translation of test": 1,
        "same text as test": 0,
        "long run of test": 1,
        "near-duplicate of test": 0,
    }
    assert found.removed.select(["id", "other_id"]).to_pylist() == [
        {"id": "c2", "other_id": "t1"},
        {"id": "c1", "other_id": "t0"},
    ]


def test_the_starter_loses_hardly_a_row_beyond_equal_texts():
    """Its prompts are names in one symbolic frame: short, alike, and all different."""
    pool = sketch_rows(examples_to_table(build_pool(["deu_Latn", "ukr_Cyrl", "npi_Deva"])))
    split = build_language(
        "swh_Latn", seed=0, n_coverage=400, n_usage=200, n_test=400, n_missing_topics=3
    )
    corpora = {
        name: sketch_rows(examples_to_table(getattr(split, name)))
        for name in ("usage", "coverage", "test")
    }
    reasons = exclude_rows([pool], **corpora).reasons
    assert pool.n_rows > 1_500
    assert reasons["long run of test"] == 0
    assert sum(count for name, count in reasons.items() if name.startswith("near")) <= 3


@pytest.mark.parametrize("language", ["en", "sw", "ar", "hi", "zh", "ja", "ko"])
def test_copies_of_real_sentences_are_found_and_other_sentences_stay(test_data, language):
    with gzip.open(test_data / "sib200.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if f'"language": "{language}"' in line]
    texts = [row["text"] for row in rows]
    assert len(texts) > 900
    test = sketch(*({"prompt": text} for text in texts[:200]))
    others = [{"prompt": text} for text in texts[200:]]
    copies = [{"prompt": f"{texts[200 + i]} {text}"} for i, text in enumerate(texts[:200])]
    found = exclude_rows([sketch(*others), sketch(*copies)], test=test)
    assert found.allowed[: len(others)].mean() > 0.99
    assert found.allowed[len(others) :].mean() < 0.06


def test_rows_that_do_not_come_into_question_stand_in_nobodys_way():
    pool = sketch(
        {"prompt": "one text", "response": "yes"}, {"prompt": "one text", "response": "yes"}
    )
    first, second = (
        exclude_rows([pool], candidates=np.array(rows)).allowed.tolist()
        for rows in ([True, False], [False, True])
    )
    assert first == [True, False]
    assert second == [False, True]
    assert sum(exclude_rows([pool]).allowed) == 1

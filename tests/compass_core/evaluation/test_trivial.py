"""Baselines without a model."""

from compass_core.evaluation.trivial import majority, string_overlap
from compass_core.records import Example


def known(*pairs):
    return [
        Example(str(i), "eng_Latn", prompt, response) for i, (prompt, response) in enumerate(pairs)
    ]


def item(prompt, answer, choices=("city", "unit")):
    return Example("t", "eng_Latn", prompt, choices=choices, answer_index=choices.index(answer))


def test_majority_takes_the_most_frequent_response_among_the_choices():
    train = known(("a", "unit"), ("b", "unit"), ("c", "city"), ("d", "other"), ("e", "other"))
    items = [item("x", "unit"), item("y", "city"), item("z", "city", ("city", "never"))]
    assert majority(items, train).tolist() == [True, False, True]


def test_string_overlap_answers_like_the_prompt_that_looks_most_alike():
    train = known(("kilometre", "unit"), ("Stockholm", "city"))
    items = [item("centimetre", "unit"), item("Bornholm", "city"), item("millimetre", "city")]
    assert string_overlap(items, train).tolist() == [True, True, False]


def test_nothing_known_answers_nothing():
    assert string_overlap([item("x", "city")], []).tolist() == [False]
    assert majority([item("x", "city")], []).tolist() == [True], "a tie goes to the first choice"

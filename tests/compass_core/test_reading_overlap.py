"""Nothing that is tested may be trained on or shown: exact, disguised and translated copies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.errors import DataError
from compass_core.reading import check_overlap, overlapping_rows
from compass_core.reading.overlap import normalised
from compass_core.records import Example, examples_to_table

ITEMS = {
    "swh_Latn": "Mji mkuu wa Kenya ni upi?",
    "ell_Grek": "Ποια είναι η πρωτεύουσα της Ελλάδας;",
    "rus_Cyrl": "Какой город столица России?",
    "hin_Deva": "भारत की राजधानी क्या है?",
    "tha_Thai": "เมืองหลวงของประเทศไทยคืออะไร",
    "cmn_Hans": "中国的首都是哪里？",
    "arb_Arab": "ما هي عاصمة مصر؟",
    "amh_Ethi": "የኢትዮጵያ ዋና ከተማ ማን ናት?",
    "kor_Hang": "대한민국의 수도는 어디입니까?",
}


def table(*examples, language="swh_Latn"):
    rows = [
        e if isinstance(e, Example) else Example(id=f"r{i}", language=language, prompt=e)
        for i, e in enumerate(examples)
    ]
    return examples_to_table(rows)


def filler(n, kind):
    return [Example(id=f"{kind}{i}", language="swh_Latn", prompt=f"{kind} {i}") for i in range(n)]


@pytest.mark.parametrize("text", ITEMS.values(), ids=ITEMS)
def test_disguised_copies_are_found_in_every_script(text):
    test = table(text, "jambo lingine kabisa")
    copies = [text, f"  {text} ", text.upper(), text.replace(" ", "\u00a0\n"), text.strip("?？؟;"),
              text.replace("e", "e\u200b"), "".join(f"{c}" for c in text) + " !"]  # fmt: skip
    assert overlapping_rows(table(*copies), test).all()
    assert not overlapping_rows(table("habari nyingine", text[: len(text) // 2]), test).any()


def test_usage_that_holds_test_items_is_refused_with_ids_and_advice():
    test = table(*filler(200, "test"))
    usage = table(*filler(5, "usage"), *filler(7, "test"))
    with pytest.raises(DataError) as caught:
        check_overlap(usage=usage, test=test)
    message = str(caught.value)
    assert message.startswith("E47 7 rows of the usage are items of the test set")
    assert "test0, test1, test2, test3, test4 and 2 more" in message
    assert "use another split" in message


def test_all_corpora_are_reported_at_once():
    test = table(*filler(200, "test"))
    pool = table(*filler(1, "test"), Example(id="o", language="eng_Latn", prompt="other"))
    with pytest.raises(DataError, match=r"rows of the coverage.*rows of the pool"):
        check_overlap(
            usage=table(*filler(5, "usage")),
            test=test,
            coverage=table(*filler(2, "test")),
            pool=pool,
        )


def test_translations_of_test_items_are_found_by_their_parallel_id():
    test = table(Example(id="t", language="swh_Latn", prompt="Habari", parallel_id="p1"))
    rows = table(
        Example(id="a", language="eng_Latn", prompt="Hello", parallel_id="p1"),
        Example(id="b", language="eng_Latn", prompt="Bye", parallel_id="p2"),
        Example(id="c", language="eng_Latn", prompt="No id"),
    )
    assert overlapping_rows(rows, test).tolist() == [True, False, False]


def test_a_common_question_with_other_options_is_another_item():
    def item(id_, *choices):
        prompt = "Which of these is true?"
        return Example(id=id_, language="eng_Latn", prompt=prompt, choices=choices, answer_index=0)

    test = table(item("t", "red", "blue"))
    rows = table(item("a", "one", "two"), item("b", "Blue", "Red"))
    assert overlapping_rows(rows, test).tolist() == [False, True]


def test_plain_text_is_compared_by_its_response():
    test = table("maandishi ya mtihani")
    rows = table(
        Example(id="a", language="swh_Latn", prompt="", response="Maandishi ya mtihani."),
        Example(id="b", language="swh_Latn", prompt="", response="mengine"),
    )
    assert overlapping_rows(rows, test).tolist() == [True, False]


def test_few_test_items_give_a_note_and_empty_corpora_an_error():
    usage, test = table(*filler(3, "usage")), table(*filler(20, "test"))
    assert any("E48 only 20 test items" in note for note in check_overlap(usage=usage, test=test))
    assert check_overlap(usage=usage, test=table(*filler(100, "test"))) == []
    with pytest.raises(DataError, match="E51 the usage corpus has 0 rows"):
        check_overlap(usage=usage.slice(0, 0), test=test)
    with pytest.raises(DataError, match="E51 the test corpus has 0 rows"):
        check_overlap(usage=usage, test=test.slice(0, 0))


def test_a_pool_of_the_target_language_alone_is_refused():
    usage, test = table(*filler(3, "usage")), table(*filler(100, "test"))
    with pytest.raises(DataError, match=r"E51 the pool for Swahili has no other language"):
        check_overlap(usage=usage, test=test, pool=table(*filler(9, "pool")))


@given(st.text(min_size=1, max_size=30))
def test_normalising_ignores_spacing_around_and_between_words(text):
    words = f"neno {text} neno"
    assert normalised(f" {words}\t") == normalised(words)
    assert normalised(words.replace(" ", "\u3000\n")) == normalised(words)


def test_marks_and_symbols_stay_because_they_carry_meaning():
    assert normalised("की") != normalised("का")
    assert normalised("2+2") != normalised("2=2")

"""Character n-grams of any script: what is folded, what is compared, and what is surely found."""

from __future__ import annotations

import gzip
import json
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_core.selection import ngrams
from compass_core.selection.ngrams import (
    N_PERMUTATIONS,
    RUN_WEIGHT,
    SHINGLE_WEIGHT,
    WINDOW_WEIGHT,
    fingerprints,
    fold,
    signatures,
    text_hashes,
    weight_of,
)
from compass_core.selection.words import normalise

ALPHABETS = {
    "letters": ("abcdefghijklmnopqrstuvwxyz", 40, 11),
    "cyrillic": ("абвгдежзиклмнопрстуфхцчшщыэюя", 40, 11),
    "arabic": ("ابتثجحخدذرزسشصضطظعغفقكلمنهوي", 40, 11),
    "devanagari": ("कखगघचछजझटठडढणतथदधनपफबभमयरलव", 40, 11),
    "thai": ("กขคงจฉชซญฐฒณดตถทธนบปผฝพภมยรลวศสห", 40, 11),
    "khmer": ("កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភមយរលវសហ", 40, 11),
    "ethiopic": ("ሀለሐመሠረሰሸቀበተቸኀነኘአከኸወዐዘዠየደጀገጠጨጰጸፀፈፐ", 27, 8),
    "kana": ("あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほ", 29, 8),
    "hangul": ("가나다라마바사아자차카타파하고노도로모보소오조초코토포호", 20, 6),
    "han": ("的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年", 14, 4),
}


def folded(*texts):
    return fold([normalise(text) for text in texts])


def draw(rng, alphabet, size):
    return "".join(rng.choice(list(alphabet), size))


def sets(hashes, offsets):
    return [set(hashes[a:b].tolist()) for a, b in pairwise(offsets)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello, World!", "ＨＥＬＬＯ  world"),
        ("كِتَابٌ جَمِيل", "كتاب جميل"),
        ("שָׁלוֹם עולם", "שלום עולם"),
        ("ışık İstanbul", "IŞIK istanbul"),
        ("co\u00adoperate\u200b now", "cooperate now"),
    ],
)
def test_texts_that_differ_in_case_width_spacing_or_optional_marks_have_one_hash(one, other):
    first, second = text_hashes(folded(one, other))
    assert first == second


@pytest.mark.parametrize(
    ("one", "other"), [("কি", "কা"), ("café", "cafe"), ("1+2", "1=2"), ("ab", "ba")]
)
def test_vowel_signs_accents_symbols_and_order_tell_texts_apart(one, other):
    first, second = text_hashes(folded(one, other))
    assert first != second


def test_hashes_are_the_same_in_every_process_and_in_any_company():
    alone = text_hashes(folded("maji ni uhai"))[0]
    assert alone == text_hashes(folded("x" * 70, "maji ni uhai", ""))[1]
    assert hex(alone) == "0x57369bdcb1c2be5c"
    assert text_hashes(folded("", "?!")).tolist() == [0, 0]


def test_weight_is_counted_in_tenths_of_a_letter():
    assert weight_of(folded("abc d!", "水は", "한국", "ሰላም", "")).tolist() == [40, 43, 42, 45, 0]


def test_signature_agrees_with_the_minimum_over_each_text_taken_alone():
    rng = np.random.default_rng(0)
    texts = [draw(rng, "abcdeあ的가", size) for size in (0, 3, 5, 40, 200)]
    together = signatures(folded(*texts))
    for column, text in enumerate(texts):
        grams = pieces(text, SHINGLE_WEIGHT)
        hashes = (text_hashes(fold(grams)) >> np.uint64(32)).astype(np.uint32)
        expected = [(hashes * f).min(initial=0xFFFFFFFF) for f in ngrams._factors()]
        assert together[:, column].tolist() == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80), min_size=1, max_size=6), st.integers(0, 5))
def test_what_is_known_of_a_text_does_not_depend_on_its_neighbours(texts, place):
    place %= len(texts)
    together, alone = folded(*texts), folded(texts[place])
    assert weight_of(together)[place] == weight_of(alone)[0]
    assert text_hashes(together)[place] == text_hashes(alone)[0]
    assert np.array_equal(signatures(together)[:, place], signatures(alone)[:, 0])
    assert sets(*fingerprints(together))[place] == sets(*fingerprints(alone))[0]


def pieces(text, weight):
    """The n-grams of letters `text`, one start after another."""
    weights = [int(ngrams._weights()[ord(c)]) for c in text]
    found = []
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            if sum(weights[start:end]) >= weight:
                found.append(text[start:end])
                break
    return found


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.8, 0.95])
def test_signatures_estimate_the_jaccard_similarity_without_bias(similarity):
    rng = np.random.default_rng(1)
    texts, true = [], []
    for _ in range(150):
        text = draw(rng, ALPHABETS["letters"][0], 300)
        # One changed letter touches five 5-grams on either side.
        n_changed = round(300 * (1 - similarity) / (1 + similarity) / 5)
        other = list(text)
        for place in np.arange(n_changed) * 300 // max(n_changed, 1) + 2:
            other[place] = "ж"
        texts += [text, "".join(other)]
        a, b = set(pieces(text, SHINGLE_WEIGHT)), set(pieces(texts[-1], SHINGLE_WEIGHT))
        true.append(len(a & b) / len(a | b))
    minima = signatures(fold(texts))
    found = (minima[:, ::2] == minima[:, 1::2]).mean(axis=0)
    assert abs(found.mean() - np.mean(true)) < 0.01
    spread = np.sqrt(np.mean((found - true) ** 2))
    assert spread < 1.3 * np.sqrt(np.mean(true) * (1 - np.mean(true)) / N_PERMUTATIONS)


def test_fingerprints_agree_with_winnowing_one_text_at_a_time():
    rng = np.random.default_rng(2)
    mixed = "".join(alphabet for alphabet, _, _ in ALPHABETS.values())
    texts = [draw(rng, mixed, size) for size in (0, 5, 30, 31, 33, 40, 300)]
    texts += [draw(rng, "ab", 200), "a" * 200]
    found = sets(*fingerprints(fold(texts)))
    for text, kept in zip(texts, found, strict=True):
        hashes = text_hashes(fold(pieces(text, RUN_WEIGHT))).tolist()
        weights = [int(ngrams._weights()[ord(c)]) for c in text]
        expected = set()
        for start in range(len(hashes)):
            stop = start + 1
            while stop < len(text) and sum(weights[start:stop]) < WINDOW_WEIGHT:
                stop += 1
            if stop <= len(hashes) or start == 0:
                expected.add(min(hashes[start:stop]))
        assert kept == expected


@pytest.mark.parametrize("name", ALPHABETS)
def test_every_shared_run_of_n_plus_w_minus_1_characters_has_a_common_fingerprint(name):
    alphabet, n, w = ALPHABETS[name]
    weight = int(ngrams._weights()[ord(alphabet[0])])
    assert (n, w) == (-(-RUN_WEIGHT // weight), -(-WINDOW_WEIGHT // weight))
    rng = np.random.default_rng(3)
    for _ in range(30):
        run = draw(rng, alphabet, n + w - 1)
        contexts = [draw(rng, alphabet, rng.integers(0, 60)) for _ in range(4)]
        a, b = sets(
            *fingerprints(fold([contexts[0] + run + contexts[1], contexts[2] + run + contexts[3]]))
        )
        assert a & b


def test_a_run_is_found_where_the_texts_around_it_are_of_other_scripts():
    rng = np.random.default_rng(4)
    for _ in range(30):
        run = draw(rng, ALPHABETS["han"][0] + "0123", 40)
        a, b = sets(
            *fingerprints(
                fold(
                    [
                        draw(rng, ALPHABETS["letters"][0], 50) + run,
                        run + draw(rng, ALPHABETS["arabic"][0], 50),
                    ]
                )
            )
        )
        assert a & b


def test_unrelated_texts_and_short_texts_share_nothing():
    rng = np.random.default_rng(5)
    texts = [draw(rng, alphabet, 200) for alphabet, _, _ in ALPHABETS.values() for _ in range(5)]
    texts += ["maji ∈ ?", "What is the capital of Kenya?"] * 2
    hashes, offsets = fingerprints(folded(*texts))
    assert len(np.unique(hashes)) == len(hashes)
    assert np.diff(offsets)[-4:].sum() == 0


def test_fingerprints_keep_about_two_of_w_plus_one_letters():
    rng = np.random.default_rng(6)
    hashes, _ = fingerprints(fold([draw(rng, ALPHABETS["letters"][0], 20_000)]))
    assert 0.9 < len(hashes) / (20_000 * 2 / 12) < 1.1


@pytest.mark.parametrize("language", ["en", "sw", "ar", "hi", "zh", "ja", "ko", "vi"])
def test_real_sentences_inside_other_text_are_found_whatever_their_case_and_spacing(
    test_data, language
):
    """Every sentence of n + w - 1 characters' weight; 13-word n-grams find none in zh and ja."""
    with gzip.open(test_data / "sib200.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if f'"language": "{language}"' in line]
    texts = [row["text"] for row in rows][:300]
    assert texts
    edited = [unicodedata.normalize("NFD", text).upper().replace(" ", "") for text in texts]
    copies = [f"{texts[i - 1]} {copy}. {texts[i - 2]}" for i, copy in enumerate(edited)]
    found = sets(*fingerprints(folded(*texts)))
    planted = sets(*fingerprints(folded(*copies)))
    long = weight_of(folded(*texts)) >= RUN_WEIGHT + WINDOW_WEIGHT + 29
    assert long.sum() > 200
    hit = [bool(a & b) for a, b in zip(found, planted, strict=True)]
    assert np.array(hit)[long].all()

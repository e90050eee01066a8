"""The starter corpus: deterministic, parallel, split by key, with honest gaps."""

import hashlib
import subprocess
import sys

import pytest

from compass_core import starter
from compass_core.errors import InputError
from compass_core.reading.overlap import normalised
from compass_core.starter import corpus

SIZES = {"n_coverage": 200, "n_usage": 150, "n_test": 450, "n_missing_topics": 3}

DIGEST_SCRIPT = """
import hashlib, sys
from babel import Locale
for code in sys.argv[1:]:
    Locale.parse(code).months["stand-alone"]["wide"][1]
from compass_core.starter import corpus
rows = [row for code in ("swh_Latn", "pes_Arab", "ukr_Cyrl") for row in corpus.build_pool([code])]
split = corpus.build_language(
    "mar_Deva", seed=1, n_coverage=50, n_usage=50, n_test=50, n_missing_topics=2
)
print(hashlib.sha256(repr((rows, split)).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def splits():
    return {
        code: starter.build_language(code, seed=0, **SIZES) for code in starter.TARGET_LANGUAGES
    }


def _digest(*locales: str, hash_seed: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", DIGEST_SCRIPT, *locales],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
    )
    return result.stdout


def test_two_processes_and_two_load_orders_of_locales_give_the_same_bytes():
    one = _digest("fa", "uk", "sw", "mr", hash_seed="1")
    other = _digest("zh", "sw", "uk", "fa", hash_seed="2")
    assert one == other


def test_corpus_has_forty_languages_and_eight_topics():
    assert len(set(starter.STARTER_LANGUAGES)) >= 40
    assert len(starter.TOPICS) >= 8
    assert set(starter.DEMO_LANGUAGES) <= set(starter.TARGET_LANGUAGES)
    assert set(starter.TARGET_LANGUAGES) <= set(starter.STARTER_LANGUAGES)
    assert len(starter.DEMO_LANGUAGES) == 6
    assert len({code[-4:] for code in starter.TARGET_LANGUAGES}) >= 3


def test_every_language_of_the_pool_has_rows_of_at_least_eight_topics():
    for code in starter.STARTER_LANGUAGES:
        rows = starter.build_pool([code])
        assert len({row.topic for row in rows}) >= 8, code
        assert all(row.source == "unicode-cldr" and row.licence == "Unicode-3.0" for row in rows)


def test_pool_ids_are_unique_and_prompts_hold_no_raw_unit_ids():
    rows = starter.build_pool()
    assert len({row.id for row in rows}) == len(rows)
    assert len(rows) > 20_000
    assert not [row for row in rows if "length-" in row.prompt or "{0}" in row.prompt]


def test_no_prompt_of_one_language_has_two_answers():
    for code in starter.TARGET_LANGUAGES:
        rows = [
            row for split in ("train", "usage", "test") for row in corpus.language_rows(code, split)
        ]
        prompts = [row.prompt.casefold() for row in rows]
        assert len(set(prompts)) == len(prompts)


def test_no_translation_of_a_usage_or_test_item_is_in_pool_or_coverage(splits):
    pool_keys = {row.parallel_id for row in starter.build_pool()}
    encoder_keys = set(corpus.parallel_names())
    for split in splits.values():
        usage = {row.parallel_id for row in split.usage}
        test = {row.parallel_id for row in split.test}
        coverage = {row.parallel_id for row in split.coverage}
        assert not usage & test
        assert not (usage | test) & (pool_keys | coverage | encoder_keys)


def test_held_out_names_share_no_key_with_names_the_encoder_is_fitted_on():
    assert not set(corpus.parallel_names()) & set(corpus.held_out_names())


def test_coverage_lacks_the_missing_topics_while_usage_and_test_have_them(splits):
    for split in splits.values():
        missing = set(split.missing_topics)
        assert len(missing) == SIZES["n_missing_topics"]
        assert not missing & {row.topic for row in split.coverage}
        assert missing <= {row.topic for row in split.usage}
        assert missing <= {row.topic for row in split.test}


def test_usage_and_test_have_the_same_topic_mix(splits):
    for split in splits.values():
        for topic in starter.TOPICS:
            usage = sum(row.topic == topic for row in split.usage) / len(split.usage)
            test = sum(row.topic == topic for row in split.test) / len(split.test)
            assert usage == pytest.approx(test, abs=0.01)


def test_usage_has_no_answers_and_test_items_are_valid_multiple_choice(splits):
    for split in splits.values():
        assert len(split.test) >= 400
        assert not any(row.response or row.choices for row in split.usage)
        for item in split.test:
            assert len(item.choices) == len(set(item.choices)) == corpus.N_CHOICES >= 4
            assert item.choices[item.answer_index] == item.response


def test_right_answers_are_spread_over_the_positions(splits):
    for split in splits.values():
        for position in range(corpus.N_CHOICES):
            share = sum(item.answer_index == position for item in split.test) / len(split.test)
            assert 0.15 < share < 0.35


def test_another_seed_draws_other_coverage_with_the_same_options_for_an_item():
    first = starter.build_language("swh_Latn", seed=0, **SIZES)
    second = starter.build_language("swh_Latn", seed=1, **SIZES)
    assert [row.id for row in first.coverage] != [row.id for row in second.coverage]
    by_id = {item.id: item for item in first.test}
    shared = [item for item in second.test if item.id in by_id]
    assert shared
    assert all(item == by_id[item.id] for item in shared)


def test_unknown_language_names_those_there_are():
    with pytest.raises(InputError, match="swh_Latn"):
        starter.build_pool(["xxx_Latn"])


def test_too_many_missing_topics_are_refused_with_the_number_there_is():
    sizes = SIZES | {"n_missing_topics": 9}
    with pytest.raises(InputError, match="9 topics"):
        starter.build_language("ukr_Cyrl", seed=0, **sizes)


def test_key_split_is_a_fixed_function_of_the_key():
    digest = hashlib.sha256()
    for number in range(1000):
        digest.update(corpus.key_split(f"cldr:date:{number}").encode())
    shares = [corpus.key_split(f"k{number}") for number in range(4000)]
    assert shares.count("train") / 4000 == pytest.approx(corpus.TRAIN_SHARE, abs=0.03)
    assert shares.count("usage") / 4000 == pytest.approx(corpus.USAGE_SHARE, abs=0.03)


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_no_training_row_reads_like_a_test_item(seed):
    split = corpus.build_language(
        "mar_Deva", seed=seed, n_coverage=300, n_usage=220, n_test=450, n_missing_topics=3
    )
    tested = {normalised(item.prompt) for item in split.test}
    assert not tested & {normalised(row.prompt) for row in [*split.coverage, *split.usage]}
    assert len(split.coverage) > 250

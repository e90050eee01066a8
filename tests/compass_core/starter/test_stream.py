"""A sequence of shifts on the starter corpus: what arrives, what fades, what must never meet."""

from collections import Counter

import pytest

from compass_core.errors import InputError
from compass_core.reading.overlap import normalised
from compass_core.starter import TARGET_LANGUAGES, build_pool
from compass_core.starter.stream import MIN_TEST, build_stream

SIZES = {"n_shifts": 5, "n_coverage": 200, "n_usage": 40, "n_test": 80}


@pytest.fixture(scope="module")
def streams():
    return {code: build_stream(code, seed=3, **SIZES) for code in TARGET_LANGUAGES}


def test_every_target_language_has_five_shifts_of_one_new_topic_each(streams):
    for stream in streams.values():
        assert len(stream.stages) == 6
        arrived = [topic for stage in stream.stages for topic in stage.topics]
        assert len(arrived) == len(set(arrived))
        assert all(len(stage.topics) == 1 for stage in stream.stages[1:])


def test_older_topics_fade_but_never_vanish(streams):
    for stream in streams.values():
        known = set(stream.stages[0].topics)
        for before, after in zip(stream.stages, stream.stages[1:], strict=False):
            known |= set(after.topics)
            assert set(after.mix) == known
            assert sum(after.mix.values()) == pytest.approx(1.0)
            assert after.mix[after.topics[0]] == pytest.approx(0.5)
            assert all(after.mix[topic] > 0 for topic in before.mix)
        first = stream.stages[0].topics[0]
        shares = [stage.mix[first] for stage in stream.stages]
        assert shares == sorted(shares, reverse=True)


def test_usage_and_slice_follow_the_mix_of_their_stage(streams):
    for stream in streams.values():
        for stage in stream.stages[1:]:
            for rows in (stage.usage, stage.slice):
                counts = Counter(row.topic for row in rows)
                assert set(counts) <= set(stage.mix)
                assert counts[stage.topics[0]] == max(counts.values())


def test_no_key_is_in_two_slices_or_in_a_slice_and_anything_else(streams):
    trainable = {row.parallel_id for row in build_pool(["eng_Latn", "deu_Latn"])}
    for stream in streams.values():
        tested = [row.parallel_id for stage in stream.stages for row in stage.slice]
        assert len(tested) == len(set(tested)) >= 6 * MIN_TEST
        asked = {row.parallel_id for stage in stream.stages for row in stage.usage}
        covered = {row.parallel_id for row in stream.coverage}
        assert not set(tested) & (asked | covered | trainable)
        texts = {normalised(row.prompt) for stage in stream.stages for row in stage.slice}
        assert not texts & {normalised(row.prompt) for row in stream.coverage}


def test_coverage_lacks_the_missing_topics_and_all_later_ones(streams):
    for stream in streams.values():
        topics = {row.topic for row in stream.coverage}
        assert topics == set(stream.stages[0].topics) - set(stream.missing_topics)


def test_usage_has_no_answers_and_slices_have_choices(streams):
    for stream in streams.values():
        for stage in stream.stages:
            assert all(not row.response for row in stage.usage)
            assert all(row.choices[row.answer_index] == row.response for row in stage.slice)


def test_equal_seeds_give_equal_streams_and_others_another_order():
    streams = [build_stream("zul_Latn", seed=seed, **SIZES) for seed in (1, 1, 2)]
    assert streams[0] == streams[1]
    assert [s.topics for s in streams[0].stages] != [s.topics for s in streams[2].stages]


def test_too_many_shifts_say_how_many_there_may_be():
    with pytest.raises(InputError, match=r"Swahili.*Lower n_shifts to 5"):
        build_stream("swh_Latn", seed=0, **(SIZES | {"n_shifts": 6}))


def test_a_language_out_of_the_corpus_is_refused():
    with pytest.raises(InputError, match="kin_Latn"):
        build_stream("kin_Latn", seed=0, **SIZES)

"""One check: statistics against slow twins, units, minima, corrections, what is reported."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_core.config import DriftConfig
from compass_core.errors import DataError
from compass_core.monitoring.drift import Sample, detect_drift
from compass_core.monitoring.null_law import NullLaw, reaches
from compass_core.selection.gap import js_divergence

K = 6
ANY_SIZE = DriftConfig(min_units=1, min_prompts=1, n_permutations=199, max_permutations=199)


def change(config, **values):
    return config.model_copy(update=values)


def make_sample(seed, n, n_clusters=K, novel=0.1, users=None, shares=None):
    rng = np.random.default_rng(seed)
    ids = rng.choice(n_clusters, n, p=shares).astype(np.int32)
    units = None if users is None else rng.integers(users, size=n)
    return Sample(ids, rng.random(n) < novel, units)


def shuffled(sample, seed):
    order = np.random.default_rng(seed).permutation(len(sample))
    units = None if sample.units is None else sample.units[order]
    return Sample(sample.cluster_ids[order], sample.outside[order], units)


def of_users(n_users, n_prompts, seed=0):
    """Users with `n_prompts` prompts each, numbered in no order."""
    units = np.random.default_rng(seed).permutation(n_users)
    sample = make_sample(seed, n_users * n_prompts)
    return Sample(sample.cluster_ids, sample.outside, np.repeat(units, n_prompts))


# ------------------------------------------------------------------ statistics
@pytest.mark.parametrize("users", [None, 15])
def test_score_is_equation_5_on_raw_shares(users):
    reference, current = make_sample(1, 90, users=users), make_sample(2, 40, users=users)
    report = detect_drift(reference, current, K, ANY_SIZE, seed=0)
    counts = [np.bincount(s.cluster_ids, minlength=K) for s in (reference, current)]
    assert report.score == pytest.approx(js_divergence(*counts), abs=1e-12)
    shares = [count / count.sum() for count in counts]
    assert report.total_variation == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2)


def test_two_groups_without_a_common_cluster_have_the_p_value_that_counting_gives():
    nothing = np.zeros(5, bool)
    reference, current = Sample(np.zeros(5, int), nothing), Sample(np.ones(5, int), nothing)
    config = change(ANY_SIZE, n_permutations=19_999, max_permutations=19_999)
    report = detect_drift(reference, current, 2, config, seed=0)
    assert report.score == 1.0
    assert report.total_variation == 1.0
    # 2 of the 252 ways to choose 5 of 10 prompts separate the clusters like this.
    assert report.p_value == pytest.approx(2 / 252, abs=0.002)
    assert report.p_score == report.p_cluster == report.p_value


def every_split(reference, current):
    """Yield statistics of all splits of the units, the observed one first, by plain counting."""
    groups = [
        [
            (s.cluster_ids[s.units == unit], s.outside[s.units == unit])
            for unit in np.unique(s.units)
        ]
        for s in (current, reference)
    ]
    units, n = groups[0] + groups[1], len(groups[0])
    everything = np.concatenate([ids for ids, _ in units])
    outside = np.concatenate([flags for _, flags in units])
    share = np.append(np.bincount(everything, minlength=K), outside.sum()) / len(everything)

    def deviation(chosen):
        ids = np.concatenate([units[u][0] for u in chosen])
        flags = np.concatenate([units[u][1] for u in chosen])
        counts = np.append(np.bincount(ids, minlength=K), flags.sum())
        other = np.bincount(everything, minlength=K) - counts[:-1]
        return counts - len(ids) * share, js_divergence(counts[:-1], other)

    splits = [deviation(chosen) for chosen in itertools.combinations(range(len(units)), n)]
    deviations = np.array([d for d, _ in splits])
    spread = deviations.std(axis=0)
    with np.errstate(invalid="ignore"):
        standardised = np.where(spread > 1e-9, deviations / spread, 0.0)
    return np.array([score for _, score in splits]), standardised


def test_p_values_and_z_of_users_agree_with_all_splits():
    reference, current = of_users(6, 3, seed=3), of_users(4, 3, seed=4)
    scores, changes = every_split(reference, current)
    largest = np.abs(changes).max(axis=1)

    def tails(values):
        return (values[None, :] >= values[:, None] - 1e-9).sum(axis=1)

    best = np.minimum(tails(scores), tails(largest))
    config = change(ANY_SIZE, n_permutations=9_999, max_permutations=9_999, alpha=0.49)
    report = detect_drift(reference, current, K, config, seed=1)
    assert report.p_score == pytest.approx(tails(scores)[0] / 210, abs=0.02)
    assert report.p_cluster == pytest.approx(tails(largest)[0] / 210, abs=0.02)
    assert report.p_value == pytest.approx((best <= best[0]).mean(), abs=0.02)
    assert report.p_novel == pytest.approx(
        (changes[:, -1] >= changes[0, -1] - 1e-9).mean(), abs=0.02
    )
    assert report.excess == pytest.approx(report.score - scores.mean(), abs=0.005)
    for moved in report.moved:
        assert moved["z"] == pytest.approx(changes[0, moved["cluster"]], abs=1e-6)


def test_min_p_is_the_rank_of_the_better_rank():
    rng = np.random.default_rng(0)
    score, largest = rng.integers(8, size=30).astype(float), rng.integers(8, size=30).astype(float)
    law = NullLaw(None, score, largest, score)
    first = [sum(other >= value for other in score) for value in score]
    second = [sum(other >= value for other in largest) for value in largest]
    best = [min(pair) for pair in zip(first, second, strict=True)]
    expected = (sum(b <= best[0] for b in best) / 30, first[0] / 30, second[0] / 30)
    assert law.p_values() == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), level=st.floats(0.001, 0.4), n=st.integers(5, 80))
def test_score_is_above_the_threshold_exactly_when_its_own_p_value_is_significant(seed, level, n):
    rng = np.random.default_rng(seed)
    score = np.round(rng.random(n), 2)  # with ties
    law = NullLaw(None, score, score, score)
    level = round(level, 6)  # as one is written; a hair below k/n the two round differently
    significant = law.p_values()[1] <= level
    if reaches(n - 1, level):
        assert significant == (score[0] > law.threshold(level))
    else:
        assert not significant
        assert law.threshold(level) == score[1:].max()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_reference=st.integers(1, 120),
    n_current=st.integers(1, 120),
    n_clusters=st.integers(1, 12),
    users=st.sampled_from([None, 1, 5, 40]),
)
def test_every_report_is_within_its_ranges(seed, n_reference, n_current, n_clusters, users):
    reference = make_sample(seed, n_reference, n_clusters, users=users)
    current = make_sample(seed + 1, n_current, n_clusters, users=users)
    config = change(ANY_SIZE, n_permutations=99, max_permutations=99)
    report = detect_drift(reference, current, n_clusters, config, seed=seed)
    for value in (report.score, report.threshold, report.total_variation):
        assert 0 <= value <= 1
    for value in (report.p_value, report.p_score, report.p_cluster, report.p_novel):
        assert 0.01 <= value <= 1
    assert report.p_value >= min(report.p_score, report.p_cluster)
    assert report.excess <= report.score
    shares = [m["current_share"] for m in report.moved]
    assert all(0 <= share <= 1 for share in shares)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("users", [None, 30])
def test_result_depends_on_the_seed_and_not_on_the_order_of_rows(users):
    reference, current = make_sample(1, 200, users=users), make_sample(2, 70, users=users)
    report = detect_drift(reference, current, K, ANY_SIZE, seed=5)
    again = detect_drift(shuffled(reference, 8), shuffled(current, 9), K, ANY_SIZE, seed=5)
    assert report == again
    other = detect_drift(reference, current, K, ANY_SIZE, seed=6)
    assert other.score == report.score
    assert other.p_value != report.p_value


def test_inputs_are_left_alone():
    reference, current = make_sample(1, 200, users=50), make_sample(2, 70, users=20)
    before = [a.copy() for s in (reference, current) for a in (s.cluster_ids, s.outside, s.units)]
    detect_drift(reference, current, K, ANY_SIZE, seed=5)
    after = [a for s in (reference, current) for a in (s.cluster_ids, s.outside, s.units)]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_window_larger_than_the_reference_is_judged_alike():
    one, other = make_sample(1, 300), make_sample(2, 80)
    config = change(ANY_SIZE, n_permutations=1_999, max_permutations=1_999)
    there = detect_drift(one, other, K, config, seed=5)
    back = detect_drift(other, one, K, config, seed=5)
    assert there.score == back.score
    assert there.p_value == pytest.approx(back.p_value, abs=0.04)


def test_one_cluster_for_everything_is_no_evidence():
    nothing = np.zeros(50, bool)
    everything = Sample(np.zeros(50, int), nothing)
    report = detect_drift(everything, everything, 3, ANY_SIZE, seed=0)
    assert (report.score, report.p_value, report.status) == (0.0, 1.0, "stable")


# ------------------------------------------------------------------ clusters and novelty
def test_alarm_names_the_clusters_that_moved_largest_first():
    reference = make_sample(1, 2_000)
    before = np.full(K, 1 / K)
    after = before.copy()
    after[[2, 4]] += 0.12, -0.08
    current = make_sample(2, 1_000, shares=after / after.sum())
    report = detect_drift(reference, current, K, ANY_SIZE, seed=0)
    assert report.status == "alarm"
    assert {moved["cluster"] for moved in report.moved[:2]} == {2, 4}
    first, second = sorted(report.moved[:2], key=lambda moved: moved["cluster"])
    assert first["z"] > 0 > second["z"]
    assert first["current_share"] > first["reference_share"]
    assert max(first["p"], second["p"]) <= report.level
    sizes = [abs(moved["z"]) for moved in report.moved]
    assert sizes == sorted(sizes, reverse=True)


def test_alarm_by_many_small_changes_names_the_largest_although_none_stands_alone():
    rng = np.random.default_rng(0)
    n_clusters = 100
    after = np.where(np.arange(n_clusters) % 2, 1.25, 0.75) / n_clusters
    reference = make_sample(1, 10_000, n_clusters)
    current = make_sample(rng.integers(100), 2_000, n_clusters, shares=after)
    report = detect_drift(reference, current, n_clusters, ANY_SIZE, seed=0)
    assert report.status == "alarm"
    assert len(report.moved) >= 1


def test_topics_that_no_cluster_reaches_are_an_alarm_with_a_novel_share():
    reference, current = make_sample(1, 3_000, novel=0.03), make_sample(2, 1_000, novel=0.09)
    report = detect_drift(reference, current, K, ANY_SIZE, seed=0)
    assert report.status == "alarm"
    assert report.p_cluster == report.p_novel == 1 / 200
    assert report.p_novel_exact < 1e-6
    assert report.p_score > 0.01
    assert report.excess < 0  # the clusters did not move at all
    assert report.moved == []
    assert "outside every cluster's radius" in report.notes[-1]
    assert report.novel_current == pytest.approx(0.09, abs=0.03)
    assert report.novel_reference == pytest.approx(0.03, abs=0.01)


def test_novel_p_value_is_one_sided():
    reference, current = make_sample(1, 3_000, novel=0.2), make_sample(2, 1_000, novel=0.05)
    report = detect_drift(reference, current, K, ANY_SIZE, seed=0)
    assert report.p_novel > 0.99
    assert report.p_novel_exact > 0.99


def test_exact_novel_p_value_is_the_hypergeometric_tail():
    ids = np.zeros(8, int)
    reference = Sample(ids[:5], np.array([True, False, False, False, False]))
    current = Sample(ids[:3], np.array([True, True, False]))
    report = detect_drift(reference, current, 1, change(ANY_SIZE, n_permutations=9_999), seed=0)
    # At least 2 of the 3 novel prompts among 3 of 8: (3·5 + 1) / 56.
    assert report.p_novel_exact == pytest.approx(16 / 56)
    assert report.p_novel == pytest.approx(16 / 56, abs=0.02)


# ------------------------------------------------------------------ units
def test_users_with_one_prompt_each_are_judged_as_prompts():
    reference, current = make_sample(1, 300), make_sample(2, 100)
    known = [Sample(s.cluster_ids, s.outside, np.arange(len(s))) for s in (reference, current)]
    by_user = detect_drift(*known, K, ANY_SIZE, seed=0)
    by_prompt = detect_drift(reference, current, K, ANY_SIZE, seed=0)
    assert by_user.p_value == by_prompt.p_value
    assert (by_user.unit, by_prompt.unit) == ("user", "prompt")
    assert "every prompt has its own user" in by_prompt.notes[0]
    assert not by_user.notes


def test_where_one_side_knows_no_users_one_prompt_of_each_user_counts_on_the_other():
    current = of_users(120, 8)
    report = detect_drift(make_sample(1, 600), current, K, ANY_SIZE, seed=0)
    assert (report.unit, report.units_current, report.n_current) == ("prompt", 120, 960)
    assert "Only the window knows its users" in report.notes[0]
    again = detect_drift(make_sample(1, 600), shuffled(current, 4), K, ANY_SIZE, seed=0)
    assert report == again


def test_prompts_as_the_configured_unit_ignore_users_and_say_so():
    reference, current = of_users(100, 5, seed=1), of_users(40, 5, seed=2)
    report = detect_drift(reference, current, K, change(ANY_SIZE, unit="prompt"), seed=0)
    assert (report.unit, report.units_current) == ("prompt", 200)
    assert "only if every prompt has its own user" in report.notes[0]


@pytest.mark.parametrize("n", [0, 1, 99, 199])
def test_window_with_too_few_users_is_insufficient_however_different(n):
    reference = of_users(300, 3)
    current = Sample(np.full(5 * n, 5), np.ones(5 * n, bool), np.repeat(np.arange(n), 5))
    report = detect_drift(reference, current, K, DriftConfig(), seed=0)
    assert report.status == "insufficient"
    assert report.p_value is report.score is None
    assert report.notes[0].startswith(f"The window has {n} users; a decision needs 200. Lengthen")
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("n", [0, 1, 99, 199, 499])
def test_window_with_too_few_prompts_of_unknown_users_is_insufficient(n):
    current = Sample(np.full(n, 5), np.ones(n, bool))
    report = detect_drift(make_sample(1, 900), current, K, DriftConfig(), seed=0)
    assert report.status == "insufficient"
    assert report.notes[0].startswith(f"The window has {n} prompts; a decision needs 500. Length")


def test_many_prompts_of_few_users_stay_insufficient():
    current = of_users(150, 40)
    report = detect_drift(make_sample(1, 9_000), current, K, DriftConfig(), seed=0)
    assert report.status == "insufficient"
    assert "150 users; a decision needs 200" in report.notes[0]
    assert "monitoring.drift.min_units" in report.notes[0]


def test_thin_reference_is_insufficient_as_well():
    report = detect_drift(make_sample(1, 100), make_sample(2, 900), K, DriftConfig(), seed=0)
    assert report.status == "insufficient"
    assert report.notes[0] == (
        "The reference has 100 prompts; a decision needs 500. Give a larger usage sample and run "
        "`compass adapt`, or lower monitoring.drift.min_prompts."
    )


# ------------------------------------------------------------------ levels and permutations
def test_level_is_shared_among_languages_and_spent_over_the_year():
    assert DriftConfig().level(10) == pytest.approx(0.001)
    assert DriftConfig(correct_languages=False).level(10) == 0.01
    spending = DriftConfig(over_time="spending", checks_per_year=100)
    assert spending.level(2) == pytest.approx(0.01 / 200)


def test_permutations_are_extended_where_the_first_ones_find_something():
    config = change(ANY_SIZE, n_permutations=199, max_permutations=1_999)
    quiet = detect_drift(make_sample(1, 500), make_sample(2, 300), K, config, seed=0)
    assert quiet.p_value > 0.01
    assert quiet.n_permutations == 199
    loud = detect_drift(
        make_sample(1, 500), make_sample(2, 300, shares=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]), K,
        config, seed=0,
    )  # fmt: skip
    assert loud.n_permutations == 1_999
    assert loud.p_value == 1 / 2_000


def test_a_stable_check_is_not_extended_whatever_the_level_and_an_alarm_is_still_possible():
    config = change(ANY_SIZE, n_permutations=199, max_permutations=9_999)
    quiet = make_sample(1, 500), make_sample(2, 300)
    loud = make_sample(1, 500), make_sample(2, 300, shares=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    for n_languages in (1, 2, 3, 42):
        stable = detect_drift(*quiet, K, config, n_languages=n_languages, seed=0)
        assert (stable.status, stable.n_permutations) == ("stable", 199)
        assert stable.score <= stable.threshold
        assert not stable.notes[1:]  # the first one tells of the unknown users
        alarm = detect_drift(*loud, K, config, n_languages=n_languages, seed=0)
        assert (alarm.status, alarm.n_permutations) == ("alarm", 9_999)


def test_too_few_first_permutations_are_extended_where_the_level_is_out_of_their_reach():
    config = change(ANY_SIZE, n_permutations=99, max_permutations=1_999)
    samples = make_sample(1, 500), make_sample(2, 300)
    reached = detect_drift(*samples, K, config, seed=0)  # .01 = 1 / 100
    assert reached.n_permutations == 99
    corrected = detect_drift(*samples, K, config, n_languages=2, seed=0)
    assert corrected.n_permutations == 1_999


def test_level_that_only_both_statistics_together_can_reach_is_told():
    samples = make_sample(1, 500), make_sample(2, 300)
    report = detect_drift(*samples, K, ANY_SIZE, n_languages=2, seed=0)  # .005 = 1 / 200
    assert "An alarm needs both statistics" in report.notes[-1]
    assert "400" in report.notes[-1]


def test_level_that_no_permutation_can_reach_is_told_and_never_silent():
    config = change(ANY_SIZE, over_time="spending", max_permutations=999)
    current = make_sample(2, 500, shares=[1, 0, 0, 0, 0, 0])
    report = detect_drift(make_sample(1, 500), current, K, config, seed=0)
    assert report.status == "stable"
    assert report.p_value == 1 / 1_000
    assert any("No alarm is possible" in note and "73,000" in note for note in report.notes)


def test_reported_p_value_is_valid_although_permutations_go_on_after_small_ones():
    config = change(ANY_SIZE, n_permutations=99, max_permutations=999)
    p_values = np.array([
        detect_drift(make_sample([w, 1], 150), make_sample([w, 2], 60), K, config, seed=w).p_value
        for w in range(600)
    ])  # fmt: skip
    for level in (0.01, 0.02, 0.05, 0.1, 0.25):
        allowed = 600 * level + 3.1 * math.sqrt(600 * level * (1 - level))
        assert (p_values <= level).sum() <= allowed


def test_extension_never_makes_an_alarm_that_both_tests_would_not_make():
    first = change(ANY_SIZE, n_permutations=99, max_permutations=99)
    both = change(ANY_SIZE, n_permutations=99, max_permutations=999)
    shares = [0.26, 0.148, 0.148, 0.148, 0.148, 0.148]
    seen = 0
    for window in range(60):
        samples = make_sample([window, 1], 400), make_sample([window, 2], 150, shares=shares)
        for alpha in (0.01, 0.05):
            short = detect_drift(*samples, K, change(first, alpha=alpha), seed=window)
            long = detect_drift(*samples, K, change(both, alpha=alpha), seed=window)
            assert short.status == "alarm" or long.status != "alarm"
            seen += long.status == "alarm"
    assert seen > 20


def test_change_below_the_smallest_effect_is_no_alarm_but_is_told():
    samples = (
        make_sample(1, 6_000), make_sample(2, 6_000, shares=[0.20, 0.16, 0.16, 0.16, 0.16, 0.16])
    )  # fmt: skip
    assert detect_drift(*samples, K, ANY_SIZE, seed=0).status == "alarm"
    report = detect_drift(*samples, K, change(ANY_SIZE, min_effect=0.05), seed=0)
    assert report.status == "stable"
    assert report.p_value <= report.level
    assert "min_effect asks for 0.05" in report.notes[-1]


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize("users", [None, 10])
def test_cluster_of_another_space_is_refused(users):
    sample = make_sample(1, 100, n_clusters=9, users=users)
    with pytest.raises(DataError, match="other clusters"):
        detect_drift(sample, sample, K, ANY_SIZE, seed=0)


def test_sample_with_parts_of_different_length_is_refused():
    with pytest.raises(DataError, match="for each prompt"):
        Sample(np.zeros(3, int), np.zeros(2, bool))
    with pytest.raises(DataError, match="for each prompt"):
        Sample(np.zeros(3, int), np.zeros(3, bool), np.zeros(4, int))


def test_no_language_at_all_is_refused():
    sample = make_sample(1, 100)
    with pytest.raises(DataError, match="at least one language"):
        detect_drift(sample, sample, K, ANY_SIZE, n_languages=0, seed=0)

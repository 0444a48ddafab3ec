"""merit.eval.statistics: hand-computed values, agreement with enumeration, properties."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from merit.errors import MeritError
from merit.eval import statistics as s

# --- intervals -------------------------------------------------------------------------------


def test_bootstrap_interval_has_the_binomial_quantiles() -> None:
    # the resampled count of right answers is Binomial(40, 0.3)
    interval = s.bootstrap_interval({"mmlu": [1] * 12 + [0] * 28}, num_resamples=40_000)
    expected = stats.binom.ppf([0.025, 0.975], 40, 0.3) / 40
    assert interval == (
        pytest.approx(expected[0], abs=0.026),
        pytest.approx(expected[1], abs=0.026),
    )


def test_bootstrap_average_is_over_benchmarks_not_questions() -> None:
    # a benchmark without variance, however large, halves the other's interval exactly
    one = {"ai2d": [1] * 12 + [0] * 28}
    both = {**one, "mmmu": [1] * 5000}
    alone, together = s.bootstrap_interval(one), s.bootstrap_interval(both)
    assert together == (pytest.approx((1 + alone.low) / 2), pytest.approx((1 + alone.high) / 2))


def test_coverage_of_the_bootstrap() -> None:
    generator = np.random.default_rng(0)
    draws = (generator.random((200, 80)) < 0.35).astype(float)
    intervals = [s.bootstrap_interval({"b": d}, num_resamples=500) for d in draws]
    covered = np.mean([low <= 0.35 <= high for low, high in intervals])
    assert 0.89 <= covered <= 0.99


# --- paired bootstrap ------------------------------------------------------------------------


def test_paired_bootstrap_p_value_by_enumeration() -> None:
    # differences (1, 0, 0): a resample of three has no gain with probability (2/3)^3
    result, _ = s.paired_bootstrap({"a": [1, 0, 1]}, {"a": [0, 0, 1]}, num_resamples=40_000)
    assert result["a"].p_value == pytest.approx(8 / 27, abs=0.01)
    assert result["a"].difference == pytest.approx(1 / 3)


def test_paired_bootstrap_spread_matches_theory() -> None:
    generator = np.random.default_rng(1)
    ours = {"a": generator.random(200), "b": generator.random(50)}
    theirs = {name: generator.random(len(x)) for name, x in ours.items()}
    per_benchmark, average = s.paired_bootstrap(ours, theirs, num_resamples=20_000)
    errors = {k: np.std(ours[k] - theirs[k]) / math.sqrt(len(ours[k])) for k in ours}
    for name, r in per_benchmark.items():
        assert (r.high - r.low) / (2 * 1.96) == pytest.approx(errors[name], rel=0.04)
    combined = math.hypot(*errors.values()) / 2  # independent strata, plain mean of two
    assert (average.high - average.low) / (2 * 1.96) == pytest.approx(combined, rel=0.04)
    assert average.difference == pytest.approx(
        (per_benchmark["a"].difference + per_benchmark["b"].difference) / 2
    )


def test_paired_bootstrap_is_deterministic_and_streams_are_separate() -> None:
    generator = np.random.default_rng(2)
    ours = {name: generator.random(40) for name in ("a", "b")}
    theirs = {name: generator.random(40) for name in ("a", "b")}
    first = s.paired_bootstrap(ours, theirs)
    assert s.paired_bootstrap(ours, theirs) == first
    alone, _ = s.paired_bootstrap({"a": ours["a"]}, {"a": theirs["a"]})
    assert alone["a"] == first[0]["a"]
    reordered = s.paired_bootstrap(dict(reversed(ours.items())), theirs)
    assert reordered[1] == pytest.approx(first[1])


ONE, TWO = {"ai2d": [1, 0]}, {"ai2d": [[1, 0], [0, 1]]}


@pytest.mark.parametrize(
    ("scores", "theirs", "message"),
    [
        ({"a": [1], "c": [1]}, {"a": [1]}, r"\['c'\]"),
        ({"mmmu": [1, 0]}, {"mmmu": [1, 0, 1]}, "mmmu: 2 .* 3"),
        ({"ai2d": [1.0, 54.0]}, ONE, r"ai2d: found 54\.0"),
        ({"ai2d": [0.0, math.nan]}, ONE, "found nan"),
        ({}, {}, "no benchmark"),
        ({"ai2d": []}, ONE, r"shape \(0,\)"),
        ({"ai2d": [[[1.0]]]}, ONE, r"shape \(1, 1, 1\)"),
        (TWO | {"mmmu": [[1, 0]]}, TWO | {"mmmu": [[1, 0]]}, "mmmu: 1 seeds, .* 2"),
    ],
)
def test_bad_scores_are_refused(scores: s.Scores, theirs: s.Scores, message: str) -> None:
    with pytest.raises(MeritError, match=message):
        s.paired_bootstrap(scores, theirs)


# --- seeds and questions ------------------------------------------------------------------------


def by_seed(values: list[float], num_questions: int = 20) -> np.ndarray:
    """One row a seed, all questions alike: no noise of questions."""
    return np.repeat(np.array(values)[:, None], num_questions, axis=1)


@pytest.fixture
def deviation(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """The standard deviation of the resampled averages."""

    def find(terms: list[tuple[float, s.Scores]], **options: bool) -> float:
        with monkeypatch.context() as patch:
            patch.setattr(s, "_percentile", lambda draws: s.Interval(draws.std(), 0.0))
            return s.contrast_bootstrap(terms, num_resamples=20_000, **options)[1].low

    return find


def test_two_seeds_by_hand() -> None:
    # counts (0, 2), (1, 1), (2, 0) with chances 1/4, 1/2, 1/4: weights 1/2 -+ sqrt(2)/2, so that
    # the mean 0.5 moves by 0.2 sqrt(2)/2 = 0.1 sqrt(2) to either side; its variance
    # 1/2 * 0.02 = 0.01 is s^2 / 2 with s^2 = 0.02, and not the plain bootstrap's 0.005
    scores = {"a": by_seed([0.4, 0.6]), "b": by_seed([0.4, 0.6], 7)}
    per_benchmark, average = s.contrast_bootstrap([(1.0, scores)])
    for found in (*per_benchmark.values(), average):
        assert found.difference == pytest.approx(0.5)
        assert (found.low, found.high) == (
            pytest.approx(0.5 - 0.1 * math.sqrt(2)),
            pytest.approx(0.5 + 0.1 * math.sqrt(2)),
        )
    assert s.bootstrap_interval({"a": by_seed([0.0, 0.1])}).low == 0.0  # cut to 0..1


@pytest.mark.parametrize("values", [[0.2, 0.5], [0.1, 0.3, 0.8], [0.3, 0.4, 0.45, 0.5, 0.9]])
def test_variance_over_seeds_is_the_unbiased_one(values: list[float]) -> None:
    n = len(values)
    weights = 1 / n + s._column_weights([n], 100_000)
    assert weights.sum(axis=1) == pytest.approx(1.0)
    spread = float(np.std(weights @ values))
    assert spread == pytest.approx(np.std(values, ddof=1) / math.sqrt(n), rel=0.01)


def test_seeds_of_a_method_are_the_same_draw_in_every_benchmark() -> None:
    # were they drawn apart for every benchmark, the average would be sqrt(2) narrower
    scores = {"a": by_seed([0.2, 0.4, 0.6]), "b": by_seed([0.2, 0.4, 0.6])}
    per_benchmark, average = s.contrast_bootstrap([(1.0, scores)])
    assert average[:4] == pytest.approx(per_benchmark["a"][:4])
    # and seeds that are good at one benchmark and bad at the other leave the average certain
    opposed = {"a": by_seed([0.25, 0.5, 0.75]), "b": by_seed([0.75, 0.5, 0.25])}
    assert s.bootstrap_interval(opposed) == (pytest.approx(0.5), pytest.approx(0.5))


def test_one_seed_is_resampled_over_questions_alone() -> None:
    generator = np.random.default_rng(5)
    ours, theirs = (generator.integers(0, 3, (1, 30)) / 2 for _ in range(2))
    # the same as drawing from the distinct differences, from the benchmark's own stream
    difference = (ours - theirs)[0]
    distinct, counts = np.unique(difference, return_counts=True)
    stream = np.random.default_rng([0, zlib.crc32(b"ai2d")])
    draws = stream.multinomial(30, counts / 30, size=500) @ distinct / 30
    _, found = s.paired_bootstrap({"ai2d": ours}, {"ai2d": theirs}, num_resamples=500)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p_value == (1 + (draws <= 1e-12).sum()) / 501
    flat = s.paired_bootstrap({"ai2d": ours[0]}, {"ai2d": theirs[0]}, num_resamples=500)
    assert flat[1] == found


def test_the_base_against_several_seeds() -> None:
    # 0.4 and 0.6 against 0.3: the seeds of only one side move the difference
    _, found = s.paired_bootstrap({"a": by_seed([0.4, 0.6])}, {"a": by_seed([0.3])})
    half = 0.1 * math.sqrt(2)
    assert found[:3] == (pytest.approx(0.2), pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert found.num_questions == 20


def test_pairing_removes_what_seeds_have_in_common() -> None:
    seeds = [0.2, 0.5, 0.7]
    ours, theirs = {"a": by_seed([x + 0.1 for x in seeds])}, {"a": by_seed(seeds)}
    _, paired = s.paired_bootstrap(ours, theirs)
    assert paired[:3] == (pytest.approx(0.1),) * 3
    _, apart = s.paired_bootstrap(ours, theirs, paired_seeds=False)
    assert apart.low < 0 < apart.high
    # other numbers of seeds cannot be the same ones
    fewer = {"a": by_seed(seeds[:2])}
    assert s.paired_bootstrap(ours, fewer) == s.paired_bootstrap(ours, fewer, paired_seeds=False)


def test_independent_seeds_add_their_variances(deviation: Callable[..., float]) -> None:
    rng = np.random.default_rng(7)
    ours, theirs = rng.random(5), rng.random(5)
    terms: list[tuple[float, s.Scores]] = [
        (1.0, {"a": by_seed(list(ours))}),
        (-1.0, {"a": by_seed(list(theirs))}),
    ]
    expected = math.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 5)
    assert deviation(terms, paired_seeds=False) == pytest.approx(expected, rel=0.03)
    together = np.std(ours - theirs, ddof=1) / math.sqrt(5)
    assert deviation(terms, paired_seeds=True) == pytest.approx(together, rel=0.03)


def test_a_contrast_of_four_methods() -> None:
    values = {"w": 0.9, "x": 0.4, "y": 0.7, "z": 0.5}
    terms: list[tuple[float, s.Scores]] = [
        (sign, {"a": by_seed([values[name]] * 2)})
        for sign, name in zip((1.0, -1.0, -1.0, 1.0), "wxyz", strict=True)
    ]
    _, found = s.contrast_bootstrap(terms)
    assert found[:3] == (pytest.approx(0.3),) * 3  # (0.9 - 0.4) - (0.7 - 0.5)
    with pytest.raises(MeritError, match=r"different benchmarks: \['b'\]"):
        s.contrast_bootstrap([*terms, (1.0, {"a": [0.5] * 20, "b": [1.0]})])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 30), st.booleans())
def test_intervals_hold_the_value(seed: int, num_seeds: int, num: int, graded: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((2, num_seeds, num))
    if not graded:
        scores = np.round(scores)
    ours, theirs = {"a": scores[0]}, {"a": scores[1]}
    low, high = s.bootstrap_interval(ours, num_resamples=500)
    mean = float(scores[0].mean())
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    for paired in (True, False):
        _, found = s.paired_bootstrap(ours, theirs, paired_seeds=paired, num_resamples=500)
        assert found.low - 1e-12 <= found.difference <= found.high + 1e-12
        assert found.difference == pytest.approx(mean - scores[1].mean())


# --- shares, Holm -------- --------------------------------------------------------------------


def test_gain_shares_of_table_8_show_two_benchmarks_carry_most() -> None:
    names = ("seedbench", "mmbench", "llava_wild", "mmvet", "textvqa", "ai2d", "mathvista", "mmmu")
    joint = dict(zip(names, (68.6, 80.1, 41.8, 38.5, 68.3, 62.4, 35.0, 40.9), strict=True))
    merit = dict(zip(names, (70.4, 80.3, 52.2, 38.1, 75.1, 63.1, 35.7, 42.1), strict=True))
    shares = s.gain_shares({name: merit[name] - joint[name] for name in names})
    # differences 1.8 0.2 10.4 -0.4 6.8 0.7 0.7 1.2: together 21.4
    assert shares["llava_wild"] == pytest.approx(10.4 / 21.4)
    assert shares["mmvet"] == pytest.approx(-0.4 / 21.4)
    assert shares["textvqa"] == pytest.approx(6.8 / 21.4)  # 80 % with llava_wild
    assert math.fsum(v for v in shares.values() if v is not None) == pytest.approx(1)


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04, made monotone
    adjusted = s.holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.04, "c": 0.06, "d": 0.06})
    assert s.holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert s.holm({}) == {}


def test_parts_of_a_score_may_be_more_than_one() -> None:
    """Of MME and LLaVA-Bench: nothing is cut above."""
    found = s.bootstrap_interval({"mme": [4.0, 4.0, 0.0, 0.0]})
    assert (found.low, found.high) == (0.0, 4.0)

"""merit.eval.measuring.scores: averages and differences in percent, and the paper's way of
writing.
"""

from __future__ import annotations

import pytest

from merit.eval.measuring.scores import average, difference, num_questions, rate_label


def test_average_and_difference_are_means_over_benchmarks_in_percent() -> None:
    ours = {"a": [1.0, 1.0, 0.0, 0.0], "b": [1.0] * 10}
    theirs = {"a": [0.0, 0.0, 0.0, 0.0], "b": [1.0] * 10}
    assert average([ours])[0] == pytest.approx(75.0)
    value, low, high = difference([ours], [theirs])
    assert value == pytest.approx(25.0)  # (50 + 0) / 2
    assert 0 <= low < 25 < high <= 50
    # two models of one method are averaged question by question
    assert difference([ours, theirs], [theirs])[0] == pytest.approx(12.5)
    assert num_questions(ours) == 14


def test_rates_are_written_as_in_the_paper() -> None:
    assert [rate_label(rate) for rate in (3e-5, 8e-5, 2e-4, 0.03, 1.0, 1.5e-4)] == [
        "3e-5", "8e-5", "2e-4", "3e-2", "1e0", "1.5e-4",
    ]  # fmt: skip

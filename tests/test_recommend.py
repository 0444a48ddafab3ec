"""What is shipped, by hand-made losses of two tasks of three examples."""

from __future__ import annotations

import numpy as np
import pytest

from merit.eval.studies.held_out.recommend import (
    Candidate,
    behind,
    mean_loss,
    recommend,
    strata,
)

NOISE = np.array([[-0.3, 0.0, 0.3]])  # over examples, the same for all candidates


def candidate(
    method: str, loss: float, branches: int = 1, c: float = 1.0, own_noise: float = 0.0
) -> Candidate:
    """`own_noise` is the candidate's own, so that differences from it are uncertain."""
    losses = 1.0 + loss + NOISE + own_noise * np.array([[1.0, -2.0, 1.0]])
    return Candidate(method, c, branches, loss, {"a": losses, "b": losses + 1.0})


def test_the_lowest_loss_is_shipped_where_all_others_are_behind() -> None:
    rows = [candidate("base", 3.0, 0), candidate("joint", 1.0), candidate("merit-2d", 1.5, 4)]
    found = recommend(rows)
    assert (found["ship"], found["decided"], found["undecided"]) == ("joint", True, [])
    assert [row["behind"] for row in found["rows"]] == pytest.approx([2.0, 0.0, 0.5])
    assert found["runner_up"]["candidate"] == "merit-2d"
    assert "0.500 [0.500, 0.500] nats" in found["words"]


def test_of_what_is_not_told_apart_the_simplest_is_shipped() -> None:
    rows = [candidate("base", 3.0, 0), candidate("merit-2d", 1.0, 4), candidate("joint", 1.1)]
    told = recommend(rows)
    assert (told["ship"], told["decided"]) == ("merit-2d", True)
    rows[-1] = candidate("joint", 1.1, own_noise=0.5)
    found = recommend(rows)
    assert (found["ship"], found["decided"], found["undecided"]) == ("joint", False, ["merit-2d"])


def test_a_shorter_way_from_the_base_is_shipped_only_if_it_is_better() -> None:
    joint = candidate("joint", 1.0)
    found = recommend([joint, candidate("joint", 0.8, c=0.5)])
    assert (found["ship"], found["c"]) == ("joint at 0.5 times its distance", 0.5)
    found = recommend([joint, candidate("joint", 0.8, c=0.5, own_noise=0.5)])
    assert (found["ship"], found["c"]) == ("joint", 1.0)


def test_training_that_has_not_helped_ships_the_base() -> None:
    rows = [candidate("base", 1.0, 0), candidate("joint", 0.9, own_noise=0.5)]
    assert recommend(rows)["ship"] == "base"


def test_a_loss_is_a_mean_over_tasks_and_differences_are_paired() -> None:
    one, other = candidate("joint", 1.0), candidate("base", 3.0, 0)
    assert mean_loss(one.test) == pytest.approx(2.5)
    assert behind(other, one) == pytest.approx((2.0, 2.0, 2.0))


def test_tasks_of_few_examples_are_drawn_together_with_the_same_mean() -> None:
    """1 and 3 examples: weights 4 / (2 * 1) and 4 / (2 * 3)."""
    few = {"a": np.array([[6.0]]), "b": np.array([[3.0, 6.0, 9.0]])}
    assert strata(few)["all"].tolist() == [[12.0, 2.0, 4.0, 6.0]]
    assert mean_loss(strata(few)) == mean_loss(few) == 6.0
    many = {"a": np.ones((1, 5)), "b": np.ones((1, 9))}
    assert strata(many) is many

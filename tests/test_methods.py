"""The plan by hand: who shares a branch, what everything is called, what it may spend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from merit.config import Experiment
from merit.errors import MeritError
from merit.methods import Branch, Model, Plan, plan
from merit.stages.partition import assign, budget, build_manifests, check_budgets
from tests import synthetic

TASKS = [
    {"task": name, "num_samples": samples, "num_tokens": tokens}
    for name, samples, tokens in [("a", 10, 35), ("b", 20, 40), ("c", 30, 45), ("d", 40, 50)]
]
ONE_EPOCH = 35 + 40 + 45 + 50
# axis 0: a, b | c, d is not balanced (30 : 70), a, b, c | d is (60 : 40)
EMBEDDING = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 0.0]])


def with_methods(joint_batch_size: Any = None, **methods: Any) -> Experiment:
    values = synthetic.experiment().model_dump()
    values["methods"] = methods
    values["report"] |= {"curves": [], "partition": None}
    values["training"]["joint_batch_size"] = joint_batch_size
    return Experiment.model_validate(values)


def test_the_plan_by_hand() -> None:
    planned = plan(
        with_methods(
            **{
                "base": {"partition": "base"},
                "joint-1ep": {"partition": "joint", "seeds": [1, 2]},
                "joint-0.5ep": {"partition": "joint", "epochs": 0.5},
                "random-2": {"partition": "random", "groups": 2, "seeds": [3]},
                "merit-1d-2ep": {"partition": "merit", "axes": 1, "epochs": 2.0},
                "soup-2": {"partition": "soup", "members": 2, "seeds": [1, 2]},
                "shrunk": {"partition": "shrunk", "source": "joint-1ep", "match": "merit-1d-2ep"},
            }
        )
    )
    assert list(planned.branches.values()) == [
        Branch("joint-1ep-s1", "joint", 0, 1, 1.0, 1),
        Branch("joint-1ep-s2", "joint", 0, 1, 1.0, 2),
        Branch("joint-0.5ep-s1", "joint", 0, 1, 0.5, 1),
        Branch("random-2-s3-g0", "random-2-s3", 0, 2, 1.0, 3),
        Branch("random-2-s3-g1", "random-2-s3", 1, 2, 1.0, 3),
        Branch("merit-1d-2ep-s1-g0", "merit-1d", 0, 2, 2.0, 1),
        Branch("merit-1d-2ep-s1-g1", "merit-1d", 1, 2, 2.0, 1),
        # of the soups' members (1, 2) and (2, 3) only this one is new
        Branch("joint-1ep-s3", "joint", 0, 1, 1.0, 3),
    ]
    assert list(planned.models.values()) == [
        Model("base", "base", None, "base"),
        Model("joint-1ep-s1", "joint-1ep", 1, "merge", ("joint-1ep-s1",)),
        Model("joint-1ep-s2", "joint-1ep", 2, "merge", ("joint-1ep-s2",)),
        Model("joint-0.5ep-s1", "joint-0.5ep", 1, "merge", ("joint-0.5ep-s1",)),
        Model("random-2-s3", "random-2", 3, "merge", ("random-2-s3-g0", "random-2-s3-g1")),
        Model(
            "merit-1d-2ep-s1",
            "merit-1d-2ep",
            1,
            "merge",
            ("merit-1d-2ep-s1-g0", "merit-1d-2ep-s1-g1"),
        ),
        Model("soup-2-s1", "soup-2", 1, "merge", ("joint-1ep-s1", "joint-1ep-s2")),
        Model("soup-2-s2", "soup-2", 2, "merge", ("joint-1ep-s2", "joint-1ep-s3")),
        Model("shrunk-s1", "shrunk", 1, "shrunk", (), "joint-1ep-s1", "merit-1d-2ep-s1"),
    ]


def test_two_names_of_one_method_share_their_branches() -> None:
    """A method's name is the user's: branches are called after what they are."""
    planned = plan(
        with_methods(
            mine={"partition": "merit", "axes": 1}, yours={"partition": "merit", "axes": 1}
        )
    )
    assert list(planned.branches) == ["merit-1d-s1-g0", "merit-1d-s1-g1"]
    assert planned.models["mine-s1"].branches == planned.models["yours-s1"].branches


# --- manifests and budgets ----------------------------------------------------------------------


def made(**methods: Any) -> tuple[Plan, dict[str, dict[str, Any]]]:
    experiment = with_methods(joint_batch_size=16, **methods)
    planned = plan(experiment)
    partitions, _ = assign(planned, TASKS, EMBEDDING)
    return planned, build_manifests(experiment, planned, TASKS, partitions)


METHODS: dict[str, dict[str, Any]] = {
    "joint-1ep": {"partition": "joint"},
    "joint-0.5ep": {"partition": "joint", "epochs": 0.5},
    "soup-2": {"partition": "soup", "members": 2},
    "random-4": {"partition": "random", "groups": 4},
    "merit-1d": {"partition": "merit", "axes": 1},
    "merit-2ep": {"partition": "merit", "axes": 1, "epochs": 2.0},
}


def test_manifests_by_hand() -> None:
    _, manifests = made(**METHODS)
    assert manifests["merit-1d-s1-g0"] == {
        "branch": "merit-1d-s1-g0",
        "partition": "merit-1d",
        "group": 0,
        "num_groups": 2,
        "epochs": 1.0,
        "seed": 1,
        "tasks": ["a", "b", "c"],
        "num_samples": 60,
        "num_tokens": 120,
        "batch_size": synthetic.BATCH_SIZE,
        "partition_hash": manifests["merit-1d-s1-g1"]["partition_hash"],
    }
    assert manifests["merit-1d-s1-g1"]["tasks"] == ["d"]
    assert manifests["merit-1d-2ep-s1-g1"]["num_tokens"] == 2 * 50
    joint = manifests["joint-1ep-s1"]
    assert (joint["tasks"], joint["num_tokens"]) == (["a", "b", "c", "d"], ONE_EPOCH)
    assert joint["batch_size"] == 16  # joint training alone has a batch size of its own
    assert manifests["joint-0.5ep-s1"]["num_tokens"] == ONE_EPOCH / 2


def test_every_method_spends_its_epochs_of_the_mixture() -> None:
    planned, manifests = made(**METHODS)
    check_budgets(planned, manifests)
    due = {
        model.method: budget(model, planned.branches, ONE_EPOCH)
        for model in planned.models.values()
    }
    assert due == {
        "joint-1ep": ONE_EPOCH,
        "joint-0.5ep": ONE_EPOCH / 2,
        "soup-2": 2 * ONE_EPOCH,
        "random-4": ONE_EPOCH,
        "merit-1d": ONE_EPOCH,
        "merit-2ep": 2 * ONE_EPOCH,
    }
    spent = {
        model.method: sum(manifests[branch]["num_tokens"] for branch in model.branches)
        for model in planned.models.values()
    }
    assert spent == due
    # every task lies in exactly one group of a partition
    for label in ("random-4-s1", "merit-1d-s1"):
        tasks = [t for b, m in manifests.items() if b.startswith(label) for t in m["tasks"]]
        assert sorted(tasks) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("branch", ["merit-1d-s1-g0", "random-4-s1-g3", "joint-0.5ep-s1"])
def test_a_wrong_budget_is_refused(branch: str) -> None:
    planned, manifests = made(**METHODS)
    manifests[branch]["num_tokens"] += 10
    with pytest.raises(AssertionError, match=r"-s1 spends \d+ tokens, its budget is"):
        check_budgets(planned, manifests)


@pytest.mark.parametrize(
    ("method", "key", "groups"),
    [
        ({"partition": "merit", "axes": 3}, "merit-3d", 8),
        ({"partition": "random", "groups": 5}, "random-5-s1", 5),
    ],
)
def test_more_groups_than_tasks_is_refused(method: dict[str, Any], key: str, groups: int) -> None:
    planned = plan(with_methods(m=method))
    embedding = np.hstack([EMBEDDING, EMBEDDING])
    with pytest.raises(
        MeritError,
        match=f"^partition '{key}': {groups} groups need at least {groups} tasks, found 4",
    ):
        assign(planned, TASKS, embedding)


@pytest.mark.parametrize("method", ["merit-1d", "random-4"])
def test_a_task_without_examples_is_refused(method: str) -> None:
    planned = plan(with_methods(m=METHODS[method]))
    tasks = [*TASKS[:2], {"task": "c", "num_samples": 0, "num_tokens": 0}, TASKS[3]]
    with pytest.raises(MeritError, match=r"^partition '.*': task 'c' has 0 samples; remove it"):
        assign(planned, tasks, EMBEDDING)

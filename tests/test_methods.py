"""The plan by hand: who shares a branch, what everything is called, what it may spend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from merit.config import Encoding, Experiment, Optimizer, Runtime
from merit.config.branches import Branch, Model, Partition, Plan, optimizer_of, plan
from merit.errors import MeritError
from merit.io.artifacts import Artifacts
from merit.method.rules import Evidence
from merit.partition.stage import assign, build_manifests
from merit.partition.stage import evidence as evidence_of
from tests import synthetic

TASKS = [
    {"task": name, "num_samples": samples, "num_tokens": tokens, "num_loss_tokens": loss_tokens}
    for name, samples, tokens, loss_tokens in [
        ("a", 10, 35, 4),
        ("b", 20, 40, 6),
        ("c", 30, 45, 8),
        ("d", 40, 50, 12),
    ]
]
ONE_EPOCH = 35 + 40 + 45 + 50
ONE_EPOCH_LOSS = 4 + 6 + 8 + 12
# axis 0: a, b | c, d is not balanced (30 : 70), a, b, c | d is (60 : 40)
EMBEDDING = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 0.0]])
# a and d conflict most; b is close to a, c to d
SIMILARITY = np.array(
    [[1, 0.8, 0.1, -0.9], [0.8, 1, 0.0, -0.5], [0.1, 0.0, 1, 0.6], [-0.9, -0.5, 0.6, 1]]
)
# all of one direction, which cosines cannot tell apart; by length a < c < d < b
GRADIENTS = np.array([[1.0, 0.0], [5.0, 0.0], [2.0, 0.0], [3.0, 0.0]], dtype=np.float32)


def evidence(tasks: list[dict[str, Any]] = TASKS) -> Evidence:
    return evidence_of(tasks, GRADIENTS, SIMILARITY, EMBEDDING)


def with_methods(joint_batch_size: Any = None, **methods: Any) -> Experiment:
    values = synthetic.experiment().model_dump()
    values["methods"] = methods
    values["report"] |= {"curves": [], "partition": None}
    values["training"]["joint_batch_size"] = joint_batch_size
    return Experiment.model_validate(values)


def halves(
    run: str, partition: str, epochs: float = 1.0, seed: int = 1, **more: Any
) -> list[Branch]:
    """Both branches of a run over two groups."""
    return [Branch(f"{run}-g{k}", run, partition, k, 2, epochs, seed, **more) for k in range(2)]


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
        Branch("joint-1ep-s1", "joint-1ep", "joint", 0, 1, 1.0, 1),
        Branch("joint-1ep-s2", "joint-1ep", "joint", 0, 1, 1.0, 2),
        Branch("joint-0.5ep-s1", "joint-0.5ep", "joint", 0, 1, 0.5, 1),
        *halves("random-2-s3", "random-2-s3", seed=3),
        *halves("merit-1d-2ep-s1", "merit-1d", epochs=2.0),
        # of the soups' members (1, 2) and (2, 3) only this one is new
        Branch("joint-1ep-s3", "joint-1ep", "joint", 0, 1, 1.0, 3),
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


def test_the_plan_of_the_other_partitions_by_hand() -> None:
    planned = plan(
        with_methods(
            **{
                "conflict-2": {"partition": "conflict"},
                "conflict-2-between": {"partition": "conflict", "reading": "between"},
                "kmeans-2": {"partition": "kmeans", "groups": 2, "seeds": [4]},
                "rawpca-1d": {"partition": "rawpca", "axes": 1, "epochs": 0.5},
            }
        )
    )
    assert planned.partitions == {
        "conflict-2-within": Partition("conflict", "conflict-2-within", 2, {"reading": "within"}),
        "conflict-2-between": Partition(
            "conflict", "conflict-2-between", 2, {"reading": "between"}
        ),
        "kmeans-2-s4": Partition("kmeans", "kmeans-2", 2, {"groups": 2}, seed=4),
        "rawpca-1d": Partition("rawpca", "rawpca-1d", 2, {"axes": 1}),
    }
    assert list(planned.branches.values()) == [
        *halves("conflict-2-within-s1", "conflict-2-within"),
        *halves("conflict-2-between-s1", "conflict-2-between"),
        *halves("kmeans-2-s4", "kmeans-2-s4", seed=4),
        *halves("rawpca-1d-0.5ep-s1", "rawpca-1d", epochs=0.5),
    ]
    assert planned.models["kmeans-2-s4"] == Model(
        "kmeans-2-s4", "kmeans-2", 4, "merge", ("kmeans-2-s4-g0", "kmeans-2-s4-g1")
    )


# --- sweeps -------------------------------------------------------------------------------------


def swept(own: dict[str, Any], **sweep: Any) -> Experiment:
    values = with_methods(**own).model_dump()
    values["sweeps"] = {"s": sweep}
    return Experiment.model_validate(values)


def test_the_plan_of_a_sweep_by_hand() -> None:
    """The experiment's own rate is 1e-3: it adds no branch and no model."""
    planned = plan(
        swept(
            {
                "joint-2ep": {"partition": "joint", "epochs": 2.0},
                "merit-1d": {"partition": "merit", "axes": 1},
                "shrunk": {"partition": "shrunk", "source": "joint-2ep", "match": "merit-1d"},
            },
            methods=["joint-2ep", "merit-1d", "shrunk"],
            learning_rate=[1e-3, 0.5],
            seeds=[2],
        )
    )
    rate: dict[str, Any] = {"optimizer": {"learning_rate": 0.5}, "may_diverge": True}
    run = "merit-1d-lr0.5-s2"
    assert list(planned.branches.values()) == [
        Branch("joint-2ep-s1", "joint-2ep", "joint", 0, 1, 2.0, 1),
        *halves("merit-1d-s1", "merit-1d"),
        Branch("joint-2ep-lr0.5-s2", "joint-2ep-lr0.5", "joint", 0, 1, 2.0, 2, **rate),
        *halves(run, "merit-1d", seed=2, **rate),
    ]
    assert list(planned.partitions) == ["joint", "merit-1d"]
    assert list(planned.models.values())[3:] == [
        Model("joint-2ep-lr0.5-s2", "joint-2ep-lr0.5", 2, "merge", ("joint-2ep-lr0.5-s2",)),
        Model("merit-1d-lr0.5-s2", "merit-1d-lr0.5", 2, "merge", (f"{run}-g0", f"{run}-g1")),
        Model(
            *("shrunk-lr0.5-s2", "shrunk-lr0.5", 2, "shrunk", ()),
            *("joint-2ep-lr0.5-s2", "merit-1d-lr0.5-s2"),
        ),
    ]


def test_what_a_method_changes_in_its_optimizer_is_another_branch() -> None:
    """Or the same one, where it changes a key to the experiment's own value."""
    joint: dict[str, Any] = {"partition": "joint"}
    experiment = with_methods(
        plain=joint,
        same=joint | {"optimizer": {"learning_rate": 1e-3}},
        slow=joint | {"optimizer": {"learning_rate": 1e-4, "schedule": "constant"}},
        soup={"partition": "soup", "members": 2, "optimizer": {"batch_size": 8}},
    )
    planned = plan(experiment)
    assert {name: model.branches for name, model in planned.models.items()} == {
        "plain-s1": ("joint-1ep-s1",),
        "same-s1": ("joint-1ep-s1",),
        "slow-s1": ("joint-1ep-lr0.0001-scheduleconstant-s1",),
        "soup-s1": ("joint-1ep-b8-s1", "joint-1ep-b8-s2"),
    }
    own = experiment.training.optimizer
    assert optimizer_of(experiment, planned.branches["joint-1ep-s1"]) == own
    slow = planned.branches["joint-1ep-lr0.0001-scheduleconstant-s1"]
    assert optimizer_of(experiment, slow) == Optimizer(
        learning_rate=1e-4, batch_size=synthetic.BATCH_SIZE, schedule="constant"
    )


def test_a_branchs_folder_is_that_of_its_run() -> None:
    """Its path is told from only its name; of every kind of name there is."""
    planned = plan(
        swept(
            METHODS | {"kmeans-4": {"partition": "kmeans", "groups": 4, "seeds": [12]}},
            methods=["joint-0.5ep", "soup-2", "random-4", "merit-2ep"],
            algorithm="sgd",
            learning_rate=[2.5e-4],
            batch_size=[16],
        )
    )
    assert {"merit-1d-2ep-sgd-lr0.00025-b16-s1-g1", "kmeans-4-s12-g3"} < set(planned.branches)
    paths = Artifacts("x")
    for branch in planned.branches.values():
        folder = paths.folder / "branches" / branch.run / branch.id
        assert paths.branch(branch.id) == folder
    # the branches of one model share the folder, and but for joint training have it to themselves
    for model in planned.models.values():
        runs = {planned.branches[branch].run for branch in model.branches}
        assert len(runs) == 1
        there = {b.id for b in planned.branches.values() if b.run in runs}
        joint = planned.branches[model.branches[0]].partition == "joint"
        assert there == set(model.branches) or joint


# --- groups -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "key", "groups"),
    [
        ({"partition": "joint"}, "joint", [0, 0, 0, 0]),
        ({"partition": "merit", "axes": 1}, "merit-1d", [0, 0, 0, 1]),
        # by length a, c | d, b: 40 of the 100 samples, and not 10 or 80
        ({"partition": "rawpca", "axes": 1}, "rawpca-1d", [0, 1, 0, 1]),
        # b joins d (-0.5 is the lowest); c then prefers a (0.1) to d and b (0.3)
        ({"partition": "conflict"}, "conflict-2-within", [0, 1, 0, 1]),
        # b joins a (0.8 is the highest), then c joins d
        ({"partition": "conflict", "reading": "between"}, "conflict-2-between", [0, 0, 1, 1]),
        # squared distances 2 - 2C: 0.4 in a, b; 0.8 in c, d; at least 1.8 between
        ({"partition": "kmeans", "groups": 2}, "kmeans-2-s1", [0, 0, 1, 1]),
        ({"partition": "kmeans", "groups": 4}, "kmeans-4-s1", [0, 1, 2, 3]),
    ],
)
def test_every_kind_assigns_by_its_own_rule(
    method: dict[str, Any], key: str, groups: list[int]
) -> None:
    partitions, splits = assign(plan(with_methods(m=method)), evidence())
    assert list(partitions) == [key]
    assert list(partitions[key]) == ["a", "b", "c", "d"]
    assert list(partitions[key].values()) == groups
    # a split is a line in the plane of embedding.npy: other rules have none to show
    assert list(splits) == ([key] if method["partition"] == "merit" else [])


# --- manifests and budgets ----------------------------------------------------------------------


def made(**methods: Any) -> tuple[Plan, dict[str, dict[str, Any]]]:
    experiment = with_methods(joint_batch_size=16, **methods)
    planned = plan(experiment)
    partitions, _ = assign(planned, evidence())
    return planned, build_manifests(experiment, planned, TASKS, partitions)


METHODS: dict[str, dict[str, Any]] = {
    "joint-1ep": {"partition": "joint"},
    "joint-0.5ep": {"partition": "joint", "epochs": 0.5},
    "soup-2": {"partition": "soup", "members": 2},
    "random-4": {"partition": "random", "groups": 4},
    "merit-1d": {"partition": "merit", "axes": 1},
    "merit-2ep": {"partition": "merit", "axes": 1, "epochs": 2.0},
    "rawpca-1d": {"partition": "rawpca", "axes": 1},
    "kmeans-2": {"partition": "kmeans", "groups": 2},
    "conflict-2": {"partition": "conflict"},
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
        "num_loss_tokens": 18,
        "training": {
            "trainable": ["decoder"],
            "optimizer": {
                "algorithm": "adamw",
                "learning_rate": 1e-3,
                "batch_size": synthetic.BATCH_SIZE,
                "schedule": "cosine",
                "warmup_ratio": 0.03,
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
                "betas": [0.9, 0.999],
            },
            # how fast a branch goes (workers, checkpoints) is none of its settings
            **{"precision": "float32", "pack_tokens": None, "gradient_checkpointing": False},
            "lora": None,
        },
        "model": Runtime().model_dump(),
        "encoding": Encoding().model_dump(exclude={"workers"}),
        "may_diverge": False,
        "partition_hash": manifests["merit-1d-s1-g1"]["partition_hash"],
    }
    assert manifests["merit-1d-s1-g1"]["tasks"] == ["d"]
    twice = manifests["merit-1d-2ep-s1-g1"]
    assert (twice["num_tokens"], twice["num_loss_tokens"]) == (2 * 50, 2 * 12)
    assert twice["num_samples"] == 40  # samples do not count epochs
    joint = manifests["joint-1ep-s1"]
    assert (joint["tasks"], joint["num_tokens"]) == (["a", "b", "c", "d"], ONE_EPOCH)
    assert joint["training"]["optimizer"]["batch_size"] == 16  # only joint training has its own
    half = manifests["joint-0.5ep-s1"]
    assert (half["num_tokens"], half["num_loss_tokens"]) == (ONE_EPOCH / 2, ONE_EPOCH_LOSS / 2)


KEYS = ("algorithm", "batch_size")


def test_a_sweeps_manifests_hold_its_settings() -> None:
    experiment = swept(
        {"joint-1ep": {"partition": "joint"}, "merit-1d": {"partition": "merit", "axes": 1}},
        methods=["joint-1ep", "merit-1d"],
        algorithm="sgd",
        batch_size=[synthetic.BATCH_SIZE, 7],
    )
    training = experiment.training.model_copy(update={"joint_batch_size": 16})
    experiment = experiment.model_copy(update={"training": training})
    planned = plan(experiment)
    partitions, _ = assign(planned, evidence())
    manifests = build_manifests(experiment, planned, TASKS, partitions)
    found = {
        name: (*(m["training"]["optimizer"][k] for k in KEYS), m["may_diverge"])
        for name, m in manifests.items()
        if not name.endswith("-g1")
    }
    assert found == {
        "joint-1ep-s1": ("adamw", 16, False),
        "merit-1d-s1-g0": ("adamw", 4, False),
        "joint-1ep-sgd-s1": ("sgd", 16, True),  # joint training's own size, where none is swept
        "merit-1d-sgd-s1-g0": ("sgd", 4, True),
        "joint-1ep-sgd-b7-s1": ("sgd", 7, True),
        "merit-1d-sgd-b7-s1-g0": ("sgd", 7, True),
    }
    # the groups are those of the experiment's own branches
    assert manifests["merit-1d-sgd-b7-s1-g0"]["tasks"] == manifests["merit-1d-s1-g0"]["tasks"]


def test_every_method_spends_its_epochs_of_the_mixture() -> None:
    planned, manifests = made(**METHODS)
    passes = {name: 1.0 for name in METHODS} | {
        "joint-0.5ep": 0.5,
        "soup-2": 2.0,  # a whole run each
        "merit-2ep": 2.0,
    }
    for key, one_epoch in (("num_tokens", ONE_EPOCH), ("num_loss_tokens", ONE_EPOCH_LOSS)):
        due = {name: times * one_epoch for name, times in passes.items()}
        spent = {
            model.method: sum(manifests[branch][key] for branch in model.branches)
            for model in planned.models.values()
        }
        assert spent == due
    # every task lies in exactly one group of a partition
    labels = ("random-4", "merit-1d", "rawpca-1d", "kmeans-2", "conflict-2-within")
    for label in (f"{label}-s1" for label in labels):
        tasks = [t for b, m in manifests.items() if b.startswith(label) for t in m["tasks"]]
        assert sorted(tasks) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("method", "key", "groups"),
    [
        ({"partition": "merit", "axes": 3}, "merit-3d", 8),
        ({"partition": "kmeans", "groups": 5}, "kmeans-5-s1", 5),
    ],
)
def test_more_groups_than_tasks_is_refused(method: dict[str, Any], key: str, groups: int) -> None:
    found = f"^partition '{key}': {groups} groups need at least {groups} tasks, found 4"
    with pytest.raises(MeritError, match=found):
        assign(plan(with_methods(m=method)), evidence())


def test_kmeans_refuses_more_groups_than_directions() -> None:
    """c and d have one gradient: three directions at most."""
    similarity = np.eye(4)
    similarity[2, 3] = similarity[3, 2] = 1.0
    planned = plan(with_methods(m={"partition": "kmeans", "groups": 4}))
    known = evidence_of(TASKS, GRADIENTS, similarity, EMBEDDING)
    with pytest.raises(MeritError, match=r"^partition 'kmeans-4-s1': 4 groups .* found 3; use"):
        assign(planned, known)


def test_a_task_without_examples_is_refused() -> None:
    planned = plan(with_methods(m=METHODS["merit-1d"]))
    empty = {"task": "c", "num_samples": 0, "num_tokens": 0, "num_loss_tokens": 0}
    tasks = [*TASKS[:2], empty, TASKS[3]]
    with pytest.raises(MeritError, match=r"^partition '.*': task 'c' has 0 samples; remove it"):
        assign(planned, evidence(tasks))

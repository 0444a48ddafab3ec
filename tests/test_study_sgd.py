"""The study `sgd`: the plain gradient step, and the sweep of learning rates (table 18)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from merit.config import Experiment, Optimizer
from merit.config.branches import plan
from merit.errors import MeritError
from merit.eval.studies import Sgd
from merit.eval.studies.sgd import measure as sgd
from merit.io.artifacts import Artifacts, read_json
from merit.train.optimizers import build_optimizers, step_all
from tests import synthetic
from tests.scored import write_predictions

METHODS = ["joint-1ep", "merit-1d", "merit-3d"]


def experiment(**changes: Any) -> Experiment:
    sweep = {"methods": METHODS, "algorithm": "sgd", "learning_rate": [1e-4, 1e-3]} | changes
    methods = ["base", *METHODS, "joint-shrunk"]
    return synthetic.experiment(methods=methods, benchmarks=["a"], sweeps={"sgd": sweep})


# --- the optimiser ------------------------------------------------------------------------------


def test_sgd_is_the_plain_gradient_step() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    settings = Optimizer(algorithm="sgd", learning_rate=0.5, batch_size=1, weight_decay=0.1)
    stepper = build_optimizers({"w": parameter}, settings)
    for gradient in ([2.0, 4.0], [2.0, 4.0]):  # twice: momentum would make the second step longer
        parameter.grad = torch.tensor(gradient)
        step_all(stepper, 0.5)
    # theta - 0.5 (g + 0.1 theta): 1 -> -0.05 -> -1.0475, -2 -> -3.9 -> -5.705
    assert_close(parameter.detach(), torch.tensor([-1.0475, -5.705]))


# --- the study on a pipeline's output -----------------------------------------------------------

# the own rate of the experiment is 1e-3, so that it is no part of the names
RIGHT = {
    "base": 4,
    "joint-1ep-sgd-lr0.0001-s2": 4, "merit-1d-sgd-lr0.0001-s2": 4, "merit-3d-sgd-lr0.0001-s2": 0,
    "joint-1ep-sgd-s2": 4, "merit-1d-sgd-s2": 10, "merit-3d-sgd-s2": 5,
    "joint-1ep-sgd-lr0.01-s2": 2, "merit-3d-sgd-lr0.01-s2": 3,
}  # fmt: skip


def test_the_study_reads_what_the_pipeline_trained_and_scored(tmp_path: Path) -> None:
    settings, paths = (
        experiment(learning_rate=[1e-2, 1e-4, 1e-3], seeds=[2]),
        Artifacts("synthetic", tmp_path),
    )
    synthetic.write(tmp_path, settings, num_tasks=16, diverged=["merit-1d-sgd-lr0.01-s2-g1"])
    assert set(RIGHT) < set(plan(settings).models)
    for model, right in RIGHT.items():
        write_predictions(paths, model, {"a": (right, 10)})
    result = json.loads(json.dumps(sgd.measure(settings, paths, Sgd())))
    assert result["learning_rates"] == [1e-4, 1e-3, 1e-2]
    assert result["methods"] == METHODS
    assert result["base"][0] == pytest.approx(40.0)
    table = {row.pop("method"): row for row in result["tables"]["table18_sgd_lr_sweep"]}
    assert {name: list(row.values()) for name, row in table.items()} == {
        "base": pytest.approx([40.0] * 3),
        "joint-1ep": pytest.approx([40.0, 40.0, 20.0]),
        "merit-1d": [pytest.approx(40.0), pytest.approx(100.0), None],
        "merit-3d": pytest.approx([0.0, 50.0, 30.0]),
    }
    assert list(table["base"]) == ["1e-4", "1e-3", "1e-2"]
    rows = {(r["method"], r["learning_rate"]): r for r in result["tables"]["sgd_sweep"]}
    for method, model in (("joint-1ep", "joint-1ep-sgd-s2"), ("merit-3d", "merit-3d-sgd-s2")):
        record = read_json(paths.model(model) / "merge.json")
        assert rows[method, 1e-3]["displacement"] == record["displacement"]
    best = rows["merit-1d", 1e-3]
    assert best["minus_joint"] == best["minus_base"] == pytest.approx(60.0)
    assert 0 < best["minus_joint_low"] < 60 < best["minus_joint_high"]
    lost = rows["merit-1d", 1e-2]
    assert [lost[key] for key in ("avg", "minus_joint", "minus_base", "displacement")] == [None] * 4
    found = result["summary"]
    assert (found["seed"], found["num_questions"], found["largest_rate"]) == (2, 10, 1e-2)
    # at the largest rate merit-1d diverged, so that merit-3d is the best: 30 beside 20
    assert (found["best_at_largest_rate"], found["gain_at_largest_rate"]) == (
        "merit-3d", pytest.approx(10.0),
    )  # fmt: skip
    assert found["collapse_at_smallest_rate"] == pytest.approx(-40.0)
    assert found["collapse_at_smallest_rate_high"] < 0
    assert found["ahead_merit-1d"] == [1e-3]
    assert found["behind_merit-3d"] == [1e-4]


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({}, "no-such", r"studies\.sgd\.sweep`: 'no-such'"),
        ({"algorithm": "muon"}, "sgd", r"studies\.sgd\.sweep`: 'sgd'"),
        ({"learning_rate": []}, "sgd", r"learning rates"),
        ({"methods": ["joint-1ep", "merit-3d", "joint-shrunk"]}, "sgd", r"'joint-shrunk'"),
        ({"methods": ["merit-1d"]}, "sgd", r"joint method"),
    ],
)
def test_other_sweeps_are_refused(changes: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(MeritError, match=message):
        sgd.check_sweep(experiment(**changes), Sgd(sweep=name))

"""Is the base merge-ready, and what `merit tune` takes by that rule, on hand-made numbers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eval import tune
from eval.studies import compare, readiness
from eval.studies.loss import Losses, Meter
from eval.studies.readiness import Split, conditions, geometry, outcome, reference_models
from eval.studies.runs import Candidate, Run, Trained
from merit.config import Experiment, Params
from merit.config_studies import Readiness, Thresholds
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, write_json
from tests import synthetic

SETTINGS = Readiness(joint="joint-1ep", random="random-2", num_points=5)
BEHIND = (2.0, 1.0, 3.0)  # random - joint in points, with its interval
NAMES = ["mini_scene", "mini_describe"]  # one of choice, one open-ended


# --- the four conditions ------------------------------------------------------------------------


def model(kind: str, name: str, loss: float, relative: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": name,
        "displacement": 10 * relative,
        "relative_displacement": relative,
        "loss": loss,
        "loss_se": 0.01,
    }


def path_row(name: str, share: float) -> dict[str, Any]:
    """Ends with losses 1 and 3: mean 2."""
    return {
        "path": name,
        "loss_at_0": 1.0,
        "loss_max": 3.0 + share,
        "loss_at_1": 3.0,
        "barrier": 2 * share,
        "barrier_share": share,
    }


def found(
    share: float = 0.0, branch: float = 2.0, joint: float = 0.05
) -> dict[str, list[dict[str, Any]]]:
    """Measured as in `geometry`; the arguments are what decides (a), (b) and (c)."""
    return {
        "models": [
            model("base", "base", 4.0, 0.0),
            model("joint", "joint-1ep-s1", 0.5, joint),
            model("joint", "joint-1ep-s2", 0.7, joint / 2),
            model("branch", "random-2-s1-g0", 1.0, 0.03),
            model("branch", "random-2-s1-g1", branch, 0.05),
            model("merged", "random-2-s1", 1.6, 0.02),
        ],
        "paths": [path_row("g0 to g1", 0.0), path_row("g0 to merged", share)],
    }


def holding(behind: tuple[float, float, float] = BEHIND, **measured: float) -> str:
    """The letters of the conditions that hold."""
    rows = conditions(found(**measured), behind, Thresholds())
    return "".join(row["condition"] for row in rows if row["holds"])


def test_conditions_by_hand() -> None:
    rows = conditions(found(share=0.004), BEHIND, Thresholds())
    assert [(r["condition"], r["value"], r["low"], r["high"], r["bound"]) for r in rows] == [
        ("a", 0.004, None, None, 0.01),
        ("b", 0.5, None, None, 1.0),  # the worst branch's 2 of the base's 4
        ("c", 0.05, None, None, 0.10),  # the farther of two joint runs
        ("d", 2.0, 1.0, 3.0, -1.0),
    ]
    assert [row["holds"] for row in rows] == [True] * 4
    assert [row["measured"] for row in rows] == list(readiness.CONDITIONS.values())


@pytest.mark.parametrize(
    ("behind", "measured", "expected"),
    [
        (BEHIND, {"share": 0.01}, "abcd"),  # exactly at the threshold holds
        (BEHIND, {"share": 0.0101}, "bcd"),
        (BEHIND, {"branch": 3.999}, "abcd"),
        (BEHIND, {"branch": 4.0}, "acd"),  # no lower than the base is not lower
        (BEHIND, {"branch": 4.001}, "acd"),
        (BEHIND, {"joint": 0.10}, "abcd"),
        (BEHIND, {"joint": 0.1001}, "abd"),
        ((-1.0, -2.0, 0.0), {}, "abcd"),
        ((-1.01, -2.0, 0.0), {}, "abc"),
        ((-0.5, -9.0, 9.0), {}, "abcd"),  # the value decides, not its interval
        ((-5.0, -9.0, 9.0), {"share": 1.0, "branch": 5.0, "joint": 1.0}, ""),
    ],
)
def test_every_condition_around_its_threshold(
    behind: tuple[float, float, float], measured: dict[str, float], expected: str
) -> None:
    assert holding(behind, **measured) == expected


def test_thresholds_are_the_settings() -> None:
    wide = Thresholds(barrier_share=0.5, joint_displacement=0.3, random_behind=0.0)
    rows = conditions(found(share=0.4, joint=0.3), (0.0, -1.0, 1.0), wide)
    assert [row["bound"] for row in rows] == [0.5, 1.0, 0.3, 0.0]
    assert all(row["holds"] for row in rows)
    rows = conditions(found(), (-0.1, -1.0, 1.0), wide)
    assert [row["condition"] for row in rows if not row["holds"]] == ["d"]


# --- the outcome --------------------------------------------------------------------------------


def outcome_of(behind: tuple[float, float, float] = BEHIND, **measured: float) -> dict[str, Any]:
    return outcome(found(**measured), behind, SETTINGS, num_questions=120, num_batches=40)


def test_the_summary_by_hand() -> None:
    result = outcome_of(share=0.004)
    summary = result["summary"]
    assert summary == {
        "merge_ready": True,
        "failed": [],
        "decided_by_d": True,  # without (d) it would be the other conditions' to decide
        "loss_base": 4.0,
        "loss_joint": pytest.approx(0.6),
        "loss_branches": [1.0, 2.0],
        "loss_merged": 1.6,
        "worst_branch_over_merged": 1.25,
        "joint_over_merged": pytest.approx(0.375),
        "max_barrier_share": 0.004,
        "relative_displacement": {
            "joint": pytest.approx(0.0375),
            "branch": pytest.approx(0.04),
            "merged": 0.02,
        },
        "random_minus_joint": [2.0, 1.0, 3.0],
        "joint": "joint-1ep",
        "random": "random-2",
        "num_examples": 640,
        "num_batches": 40,
        "num_questions": 120,
        "verdict": "Merge-ready: conditions (a) to (d) hold.",
    }
    assert list(result["tables"]) == ["readiness", "readiness_models", "readiness_paths"]
    assert result["tables"]["readiness"] == conditions(
        found(share=0.004), BEHIND, SETTINGS.thresholds
    )
    assert result["tables"]["readiness_models"] == found()["models"]
    assert json.loads(json.dumps(result)) == result  # nothing of numpy's or torch's


@pytest.mark.parametrize(
    ("behind", "measured", "failed", "by_d", "verdict"),
    [
        (BEHIND, {}, "", True, "Merge-ready: conditions (a) to (d) hold."),
        ((-3.0, -4.0, -2.0), {}, "d", True, "Not merge-ready: condition (d) fails."),
        (BEHIND, {"joint": 0.2}, "c", False, "Not merge-ready: condition (c) fails."),
        (
            (-3.0, -4.0, -2.0),
            {"share": 0.2},
            "ad",
            False,
            "Not merge-ready: conditions (a) and (d) fail.",
        ),
        (
            BEHIND,
            {"share": 0.2, "branch": 5.0, "joint": 0.2},
            "abc",
            False,
            "Not merge-ready: conditions (a) and (b) and (c) fail.",
        ),
    ],
)
def test_the_verdict_in_a_sentence(
    behind: tuple[float, float, float],
    measured: dict[str, float],
    failed: str,
    by_d: bool,
    verdict: str,
) -> None:
    result = outcome_of(behind, **measured)
    summary = result["summary"]
    assert summary["failed"] == list(failed)
    assert summary["merge_ready"] == (not failed)
    assert summary["decided_by_d"] == by_d
    assert summary["verdict"] == verdict
    assert result["text"].startswith(f"{verdict} Joint training moves")
    assert result["text"].endswith("No MERIT model takes part.")


def test_the_words_hold_the_numbers() -> None:
    text = outcome_of((-3.0, -4.04, -2.0), share=0.004)["text"]
    for words in (
        "by 3.8% of the base's norm, a branch of random-2 by 4.0%, their average by 2.0%",
        "base 4.00, joint 0.60, branches 1.00 to 2.00, merged 1.60",
        "1.25 times the merged loss (paper, table 5: 1.25), joint 0.37 times (table 1: 0.48)",
        "The largest barrier is 0.40% of its ends' mean loss",
        "random-2 minus joint-1ep on 120 validation questions: -3.0 points",
        "(95 % interval -4.0 to -2.0)",
    ):
        assert words in text


# --- losses, distances, barriers ----------------------------------------------------------------


@dataclass(frozen=True)
class Toy(Meter):
    """Two batches of one weight, L(theta) = |theta - goal|^2 / 2 + bump exp(-|theta|^2 / width)."""

    goal: torch.Tensor
    bump: float = 0.0
    width: float = 0.05

    def losses(self, theta: torch.Tensor) -> Losses:
        x = theta.double()
        value = 0.5 * float((x - self.goal.double()).square().sum())
        value += self.bump * float(torch.exp(-x.square().sum() / self.width))
        return np.array([value - 0.1, value + 0.1])

    def read(self, path: Path) -> torch.Tensor:
        from merit.io.checkpoints import Checkpoint

        return Checkpoint(path).read("w").flatten()


def toy(*goal: float, bump: float = 0.0) -> Toy:
    batches = [np.arange(3), np.arange(3)]
    parameters = {"w": torch.zeros(len(goal))}
    counts = np.array([2, 2])
    return Toy(None, parameters, None, batches, counts, torch.tensor(goal), bump)  # type: ignore[arg-type]


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values)


BASE = vector(3.0, 4.0)  # of norm 5
TWO = Split("random-2-s1", [vector(1.0, 0.0), vector(-1.0, 0.0)], vector(0.0, 0.0))


def test_losses_and_displacements_by_hand() -> None:
    """L = |theta|^2 / 2, from a base at (3, 4)."""
    second = Split("random-2-s2", [vector(3.0, 0.0), vector(0.0, 4.0)], vector(1.5, 2.0))
    joints = {"joint-1ep-s1": vector(3.0, 2.0)}
    rows = geometry(toy(0.0, 0.0), BASE, joints, [TWO, second], 5)["models"]
    assert [(r["kind"], r["model"]) for r in rows] == [
        ("base", "base"),
        ("joint", "joint-1ep-s1"),
        ("branch", "random-2-s1-g0"),
        ("branch", "random-2-s1-g1"),
        ("merged", "random-2-s1"),
        ("branch", "random-2-s2-g0"),
        ("branch", "random-2-s2-g1"),
        ("merged", "random-2-s2"),
    ]
    losses = [12.5, 6.5, 0.5, 0.5, 0.0, 4.5, 8.0, 3.125]
    distances = [0.0, 2.0, 20**0.5, 32**0.5, 5.0, 4.0, 3.0, 2.5]
    assert [r["loss"] for r in rows] == pytest.approx(losses)
    assert [r["displacement"] for r in rows] == pytest.approx(distances)
    assert [r["relative_displacement"] for r in rows] == pytest.approx([d / 5 for d in distances])
    assert [r["loss_se"] for r in rows] == pytest.approx([0.1] * 8)


def test_a_bowl_has_no_barrier() -> None:
    paths = geometry(toy(0.5, 0.0), BASE, {}, [TWO], 5)["paths"]
    assert [(p["path"], p["barrier"], p["barrier_share"]) for p in paths] == [
        ("random-2-s1-g0 to random-2-s1-g1", 0.0, 0.0),
        ("random-2-s1-g0 to random-2-s1", 0.0, 0.0),
        ("random-2-s1-g1 to random-2-s1", 0.0, 0.0),
    ]
    ends = [(p["loss_at_0"], p["loss_max"], p["loss_at_1"]) for p in paths]
    # losses (x - 0.5)^2 / 2 at x = 1, -1 and 0
    expected = [(0.125, 1.125, 1.125), (0.125, 0.125, 0.125), (1.125, 1.125, 0.125)]
    assert np.array(ends) == pytest.approx(np.array(expected))


def test_a_bump_between_two_branches_is_a_barrier() -> None:
    """A bump of height 2 in the middle: 2 there, 1/2 at both branches, exp(-20) elsewhere."""
    paths = geometry(toy(0.0, 0.0, bump=2.0), BASE, {}, [TWO], 3)["paths"]
    first, second, third = paths
    assert first["loss_max"] == pytest.approx(2.0)
    assert first["barrier"] == pytest.approx(2.0 - 0.5)
    assert first["barrier_share"] == pytest.approx(1.5 / 0.5)
    # downhill to the bump's top, where the average lies: no more than the straight line there
    for entry in (second, third):
        assert (entry["loss_at_1"], entry["barrier"]) == (pytest.approx(2.0), 0.0)
    rows = conditions({"models": found()["models"], "paths": paths}, BEHIND, Thresholds())
    assert (rows[0]["value"], rows[0]["holds"]) == (pytest.approx(3.0), False)


def test_paths_run_round_the_first_split_and_to_its_average() -> None:
    corners = [vector(1.0, 1.0), vector(-1.0, 1.0), vector(-1.0, -1.0), vector(1.0, -1.0)]
    four = Split("random-4-s1", corners, vector(0.0, 0.0))
    names = [p["path"] for p in geometry(toy(0.0, 0.0), BASE, {}, [four, TWO], 3)["paths"]]
    short = [name.replace("random-4-s1-", "") for name in names]
    assert short == [
        "g0 to g1", "g1 to g2", "g2 to g3", "g3 to g0",
        *(f"g{k} to random-4-s1" for k in range(4)),
    ]  # fmt: skip


# --- the study on a pipeline's output -----------------------------------------------------------


def test_models_of_both_kinds_one_a_seed() -> None:
    joints, randoms = reference_models(synthetic.experiment(seeds=(1, 2)), SETTINGS)
    assert [m.id for m in joints] == ["joint-1ep-s1", "joint-1ep-s2"]
    assert [m.id for m in randoms] == ["random-2-s1", "random-2-s2"]
    assert randoms[0].branches == ("random-2-s1-g0", "random-2-s1-g1")


@pytest.mark.parametrize(
    ("key", "value"),
    [("random", "random-8"), ("random", "merit-3d"), ("joint", "random-2"), ("joint", "none")],
)
def test_no_such_method_is_one_line_with_the_key(key: str, value: str) -> None:
    """An experiment without random splits (here: random-8), or with another kind in its place."""
    experiment = synthetic.experiment(methods=["base", "joint-1ep", "random-2", "merit-3d"])
    with pytest.raises(MeritError) as caught:
        reference_models(experiment, SETTINGS.model_copy(update={key: value}))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(
        f"experiments/synthetic.yaml: key `studies.readiness.{key}`: found {value!r}, which is no "
        f"{key} method that is run; readiness is measured on joint training and random splits"
    )


def right(share: float) -> compare.Scores:
    """50 questions a benchmark, of which this share is right."""
    count = round(50 * share)
    return {name: [1.0] * count + [0.0] * (50 - count) for name in NAMES}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The study on two seeds; a model's answers are right by its name."""
    experiment = synthetic.build(
        tmp_path, seeds=(1, 2), methods=["base", "joint-1ep", "random-2", "merit-1d"]
    )
    paths = Artifacts("synthetic", tmp_path)

    def score(
        experiment: Experiment, benchmarks: Path, models: list[Candidate], *others: object
    ) -> dict[str, compare.Scores]:
        assert benchmarks == paths.data / "benchmarks" / "validation"
        assert others[-1] == "readiness"
        assert all(set(candidate.tensors()) == {"w"} for candidate in models)
        return {c.name: right(0.5 if c.name.startswith("random") else 0.4) for c in models}

    monkeypatch.setattr(readiness, "score_models", score)
    monkeypatch.setattr(readiness, "load_params", lambda: Params(experiments=["synthetic"]))
    monkeypatch.setattr(readiness, "open_meter", lambda *arguments: toy(*[0.0] * 30))
    return readiness.measure(experiment, paths, SETTINGS)


def test_the_study_measures_joint_and_random_models_alone(measured: dict[str, Any]) -> None:
    tables, summary = measured["tables"], measured["summary"]
    kinds = [row["kind"] for row in tables["readiness_models"]]
    assert kinds == ["base", "joint", "joint", *(["branch", "branch", "merged"] * 2)]
    assert not any("merit" in row["model"] for row in tables["readiness_models"])
    assert len(tables["readiness_paths"]) == 1 + 2
    value, low, high = summary["random_minus_joint"]
    assert value == pytest.approx(10.0)
    assert low <= value <= high
    assert (summary["num_questions"], summary["num_batches"]) == (100, 2)
    base, *rest = tables["readiness_models"]
    assert base["displacement"] == 0.0
    assert all(row["displacement"] > 0 for row in rest)


def test_the_drawing(measured: dict[str, Any], tmp_path: Path) -> None:
    readiness.draw(json.loads(json.dumps(measured)), tmp_path / "drawn")
    image = tmp_path / "drawn" / "figures" / "readiness.png"
    assert image.stat().st_size > 5000
    bump = outcome_of(share=0.2)  # with a barrier
    readiness.draw(bump, tmp_path / "bump")
    assert (tmp_path / "bump" / "figures" / "readiness.png").stat().st_size > 5000


# --- merit tune ---------------------------------------------------------------------------------


def grid_row(
    rate: float, size: int, joint: float, *, ready: bool = True, draws: int = 1
) -> dict[str, Any]:
    """A point whose joint model has `joint` % on one benchmark and 10 less on the other."""
    measured = found(joint=0.05 if ready else 0.2)
    measured["models"] += [
        model("merged", f"random-2-s{k}", 1.6, 0.02) for k in range(2, draws + 1)
    ]
    return {
        "point": (rate, size),
        "models": measured["models"],
        "conditions": conditions(measured, BEHIND, Thresholds()),
        "scores": {"mini_scene": joint, "mini_describe": joint - 10},
    }


def test_of_the_merge_ready_points_joints_best_average_is_chosen() -> None:
    rows = [
        grid_row(1e-4, 8, 40.0),
        grid_row(5e-4, 8, 50.0),
        grid_row(1e-3, 8, 45.0),
        grid_row(2e-3, 8, 90.0, ready=False),  # better, but too far away
    ]
    assert tune.choose(rows) is rows[1]
    assert tune.choose(rows[2:]) is rows[2]
    assert tune.choose(rows[3:]) is None
    assert tune.choose([]) is None


def test_one_condition_is_enough_to_rule_a_point_out() -> None:
    good, best = grid_row(1e-4, 8, 40.0), grid_row(5e-4, 8, 50.0)
    for condition in best["conditions"]:
        condition["holds"] = False
        assert tune.choose([good, best]) is good
        condition["holds"] = True
    assert tune.choose([good, best]) is best


@pytest.fixture
def tuned(tmp_path: Path) -> tuple[Experiment, Artifacts]:
    """An experiment with a joint batch size of its own, and the encode stage's task table."""
    settings = synthetic.experiment(benchmarks=NAMES)
    training = settings.training.model_copy(update={"joint_batch_size": 32})
    paths = Artifacts("synthetic", tmp_path)
    tasks = [
        {"task": f"t{i}", "num_samples": 10 + i, "num_tokens": 100, "num_loss_tokens": 20}
        for i in range(6)
    ]
    write_json(paths.encoded / "tasks.json", tasks)
    return settings.model_copy(update={"training": training}), paths


GRID = [(rate, size) for rate in (5e-4, 1e-3) for size in (4, 16)]


def test_the_grid_by_hand(tuned: tuple[Experiment, Artifacts]) -> None:
    settings, paths = tuned
    runs, parts = tune.plan_grid(settings, paths, SETTINGS, GRID, [1, 2])
    names = [run.name for run in runs]
    assert len(names) == len(set(names)) == 4 * (1 + 2 * 2)
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)  # file names
    assert list(parts) == GRID
    by_name = {run.name: run for run in runs}
    for (rate, size), models in parts.items():
        assert list(models) == ["joint", "random-1", "random-2"]
        assert [len(branches) for branches in models.values()] == [1, 2, 2]
        for branches in models.values():
            found = [by_name[name] for name in branches]
            # one batch size for all: joint training has none of its own on the grid
            assert {run.manifest["batch_size"] for run in found} == {size}
            assert {run.training.optimizer.batch_size for run in found} == {size}
            assert {run.training.optimizer.learning_rate for run in found} == {rate}
            assert {run.training.joint_batch_size for run in found} == {None}
            held = [task for run in found for task in run.manifest["tasks"]]
            assert sorted(held) == [f"t{i}" for i in range(6)]
            assert sum(run.manifest["num_tokens"] for run in found) == 600
            assert sum(run.manifest["num_loss_tokens"] for run in found) == 120
    used = {name for models in parts.values() for names in models.values() for name in names}
    assert used == set(names)
    # the same draws at every point; two draws differ
    first, last = (
        [by_name[name].manifest["tasks"] for name in parts[point]["random-1"]]
        for point in (GRID[0], GRID[-1])
    )
    assert first == last
    assert first != [by_name[name].manifest["tasks"] for name in parts[GRID[0]]["random-2"]]
    # the settings themselves are as they were
    assert settings.training.joint_batch_size == 32


def page_of(rows: list[dict[str, Any]], lost: tuple[str, ...] = ()) -> str:
    return tune.page(synthetic.experiment(benchmarks=NAMES), SETTINGS, rows, right(0.4), list(lost))


def test_the_page_marks_the_choice() -> None:
    rows = [grid_row(1e-4, 8, 40.0, draws=2), grid_row(5e-4, 16, 50.0, draws=2)]
    text = page_of(rows)
    lines = text.splitlines()
    assert lines[0] == "# Learning rate and batch size of synthetic"
    assert "joint-1ep, seed 1, and random-2 in 2 draws at every point" in text
    assert "losses on 640 examples" in text
    assert lines[-1] == "The rule's choice: **lr 0.0005, batch 16**."
    assert sum(line.startswith("| **lr") for line in lines) == 1
    assert (
        "| **lr 0.0005, batch 16** | 5.0% | 4.00 | 0.50 | 1.00 to 2.00 | 1.60 | 0.00% | 0.50 | yes "
        "| +2.0 [+1.0, +3.0] | yes | 45.0 | 50.0 |"
    ) in lines
    # every row has as many cells as its table's head
    table = [line for line in lines if line.startswith("|")]
    widths = [line.count("|") for line in table]
    assert len(set(widths[:4])) == 1
    assert len(set(widths[4:])) == 1
    assert "| base | 40.0 | 40.0 |" in lines
    assert "| lr 0.0001, batch 8 | 40.0 | 30.0 |" in lines


def test_the_page_says_when_nothing_is_merge_ready() -> None:
    rows = [grid_row(1e-3, 8, 40.0, ready=False), grid_row(2e-3, 8, 50.0, ready=False)]
    text = page_of(rows, ("lr 0.01, batch 8",))
    assert text.splitlines()[-1] == "The rule's choice: none is merge-ready."
    assert "**" not in text
    assert text.count("| no | +2.0 [+1.0, +3.0] | no |") == 2
    assert "lr 0.01, batch 8: a training did not stay finite." in text


def test_a_point_is_judged_by_the_four_conditions(
    tuned: tuple[Experiment, Artifacts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two random draws beside joint training, each average weighted by all tokens."""
    settings, paths = tuned
    point = (5e-4, 4)
    _, parts = tune.plan_grid(settings, paths, SETTINGS, [point], [1, 2])
    places = {"joint": [(3.0, 2.0)], "random-1": [(1.0, 0.0), (-1.0, 0.0)]}
    places["random-2"] = [(0.0, 2.0), (0.0, 0.0)]
    trained = {}
    for name, branches in parts[point].items():
        for branch, place in zip(branches, places[name], strict=True):
            save_file({"w": vector(*place)}, tmp_path / f"{branch}.safetensors")
            file = tmp_path / f"{branch}.safetensors"
            trained[branch] = Trained(file, 300, 60, 30, 1.0, 0.1, failure=None)
    monkeypatch.setattr(tune, "open_meter", lambda *arguments: toy(0.0, 0.0))
    monkeypatch.setattr(tune, "base_vector", lambda *arguments: BASE)
    shares = {"joint": 0.4, "random-1": 0.5, "random-2": 0.3}
    scores = {f"lr 0.0005, batch 4 {name}": right(share) for name, share in shares.items()}
    row = tune.point_row(settings, paths, SETTINGS, point, parts[point], trained, scores)
    assert row["point"] == point
    merged = [m for m in row["models"] if m["kind"] == "merged"]
    assert [m["loss"] for m in merged] == pytest.approx([0.0, 0.5])  # at (0, 0) and (0, 1)
    a, b, c, d = row["conditions"]
    assert (a["value"], a["holds"]) == (0.0, True)
    assert (b["value"], b["holds"]) == (pytest.approx(2.0 / 12.5), True)
    assert (c["value"], c["holds"]) == (pytest.approx(2.0 / 5.0), False)
    assert (d["value"], d["holds"]) == (pytest.approx(0.0), True)
    assert row["scores"] == {name: pytest.approx(40.0) for name in NAMES}
    assert tune.choose([row]) is None


@pytest.mark.parametrize(
    ("present", "missing"), [((), "tuning"), (("tuning",), "studies.readiness")]
)
def test_tune_without_its_settings_is_one_line(
    monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...], missing: str
) -> None:
    values = synthetic.experiment().model_dump()
    if "tuning" in present:
        values["tuning"] = {"learning_rate": [1e-3], "batch_size": [4]}
    settings = Experiment.model_validate(values)
    monkeypatch.setattr(tune, "load_experiment", lambda name: settings)
    with pytest.raises(MeritError) as caught:
        tune.tune("synthetic")
    assert str(caught.value) == (
        f"experiments/synthetic.yaml: key `{missing}` is missing: nothing to search"
    )


def test_tune_writes_the_page_and_drops_what_did_not_stay_finite(
    tuned: tuple[Experiment, Artifacts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, paths = tuned
    values = settings.model_dump()
    values["tuning"] = {"learning_rate": [5e-4, 1e-2], "batch_size": [4], "num_random": 2}
    values["studies"]["readiness"] = SETTINGS.model_dump()
    settings = Experiment.model_validate(values)
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def train(runs: list[Run], *arguments: object) -> dict[str, Trained]:
        trained = {}
        for number, run in enumerate(runs):
            file = tmp_path / f"{run.name}.safetensors"
            save_file({"w": BASE + 0.01 * (number % 3)}, file)
            lost = "nan" if run.training.optimizer.learning_rate > 1e-3 else None
            trained[run.name] = Trained(file, 300, 60, 30, 1.0, 0.1, failure=lost)
        return trained

    def score(
        experiment: Experiment, benchmarks: Path, models: list[Candidate], *others: object
    ) -> dict[str, compare.Scores]:
        assert benchmarks == paths.data / "benchmarks" / "validation"  # never the test split
        asked.extend(candidate.name for candidate in models)
        return {candidate.name: right(0.5) for candidate in models}

    monkeypatch.setattr(tune, "load_experiment", lambda name: settings)
    monkeypatch.setattr(tune, "Artifacts", lambda name: paths)
    monkeypatch.setattr(tune, "load_params", lambda: Params(experiments=["synthetic"]))
    monkeypatch.setattr(tune, "train_runs", train)
    monkeypatch.setattr(tune, "score_models", score)
    monkeypatch.setattr(tune, "open_meter", lambda *arguments: toy(4.0, 5.0))
    monkeypatch.setattr(tune, "base_vector", lambda *arguments: BASE)
    tune.tune("synthetic")
    label = "lr 0.0005, batch 4"
    assert asked == ["base", *(f"{label} {n}" for n in ("joint", "random-1", "random-2"))]
    text = (tmp_path / "docs" / "tuning-synthetic.md").read_text(encoding="utf-8")
    assert "lr 0.01, batch 4: a training did not stay finite." in text
    assert text.count("| lr 0.01, batch 4 |") == 0
    assert "random-2 in 2 draws" in text

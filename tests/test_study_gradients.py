"""Studies on gradients and cost: hand-computed tables, a quadratic's curvature, restored stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merit.config import Gradients
from merit.errors import MeritError
from merit.eval.studies import Calibration, Cost, Fidelity
from merit.eval.studies.calibration import measure as calibration
from merit.eval.studies.cost import measure as cost
from merit.eval.studies.fidelity import measure as fidelity
from merit.eval.studies.fidelity.full_gradients import fill_gradients, spread
from merit.eval.studies.hessian import measure as hessian
from merit.io.artifacts import Artifacts, write_json, write_jsonl
from merit.method.gradients import Stride
from merit.train.task_gradients import BaseGradients
from tests import synthetic
from tests.conftest import Tiny

OWNER = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])  # tasks of the tiny fixture's mixture


@pytest.fixture
def base(tiny: Tiny) -> BaseGradients:
    from copy import deepcopy

    from merit.train.model import set_trainable

    model = deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    parameters = set_trainable(model, ["decoder"])
    return BaseGradients(model, parameters, tiny.encoded, OWNER, ["a", "b", "c"], batch_size=2)


# --- gradients at the base ---------------------------------------------------------------------


def test_task_gradients(base: BaseGradients) -> None:
    whole = base.task_gradient(2, 200, seed=0)
    at_once = replace(base, batch_size=10).task_gradient(2, 200, seed=0)
    torch.testing.assert_close(whole, at_once, rtol=1e-4, atol=1e-6)
    next(iter(base.parameters.values())).data.fill_(torch.nan)
    with pytest.raises(MeritError, match="task 'b'"):
        base.task_gradient(1, 200, seed=0)


# --- fidelity ----------------------------------------------------------------------------------


def test_moved_share_ignores_how_groups_are_numbered() -> None:
    ours = np.array([0, 0, 1, 1, 2, 2])
    assert fidelity.moved_share(ours, np.array([2, 2, 0, 0, 1, 1])) == 0.0
    assert fidelity.moved_share(ours, np.array([2, 0, 0, 0, 1, 1])) == pytest.approx(1 / 6)
    assert fidelity.moved_share(ours, np.zeros(6, dtype=np.int64)) == pytest.approx(4 / 6)


def test_norm_table_by_hand() -> None:
    rows = {row["metric"]: row for row in fidelity.norm_table(np.arange(1.0, 11.0), [0.1, 0.2])}
    assert list(rows["datasets"].values())[1:] == [10, 8, 6]  # raw, and two trims
    assert rows["max_over_min"]["trimmed_10pct"] == pytest.approx(9 / 2)


def test_fidelity_errors_by_hand() -> None:
    """|a - b| is 0.1 for all pairs but one, 0.5 for that of tasks 0 and 1."""
    full = np.eye(5) + 0.1 * (1 - np.eye(5))
    full[0, 1] = full[1, 0] = 0.5
    full[2, 3] = full[3, 2] = 0.2
    doubled = full.copy()
    doubled[~np.eye(5, dtype=bool)] *= 2
    errors = fidelity.fidelity_errors(full, doubled)
    # sums over the six pairs without task t: of 0.5 with 0.2 left, of 0.2 with 0.5 left, of both
    parts = np.array([0.7, 0.7, 1.0, 1.0, 1.1]) / 6
    expected = np.sqrt(4 / 5 * np.sum((parts - parts.mean()) ** 2))
    assert errors["mean_absolute_difference"] == pytest.approx(expected)
    assert errors["pearson"] == pytest.approx(0.0, abs=1e-9)  # doubled exactly


def test_fidelity_table_by_hand() -> None:
    full = np.eye(5) + 0.1 * (1 - np.eye(5))
    full[0, 1] = full[1, 0] = 0.5
    full[2, 3] = full[3, 2] = 0.2
    shifted = full + 0.05
    groups = {
        1: np.array([0, 0, 1, 1, 1]),
        2: np.array([1, 1, 0, 0, 0]),
        5: np.array([0, 1, 1, 1, 1]),
    }
    rows = fidelity.fidelity_table(full, {2: full, 5: shifted}, groups, stride=5)
    by_metric = {row["metric"]: row for row in rows}
    assert by_metric["pearson"]["value"] == pytest.approx(1.0)
    error = by_metric["mean_absolute_difference"]
    assert error["value"] == pytest.approx(0.05)
    assert error["stride_2"] == 0.0
    assert error["std_error"] == pytest.approx(0.0, abs=1e-12)
    moved = by_metric["tasks_in_another_group"]
    assert (moved["stride_2"], moved["value"]) == (0.0, pytest.approx(0.2))
    assert moved["std_error"] is None
    assert moved["num_tasks"] == 5


# --- calibration -------------------------------------------------------------------------------


def test_cosines_to_last_by_hand() -> None:
    parts = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0])]
    # running sums (1, 0), (1, 1), (3, 3)
    found = calibration.cosines_to_last(iter(parts), np.zeros((3, 2), np.float32))
    assert found == pytest.approx([0.5**0.5, 1.0, 1.0])


def test_calibration_table_by_hand() -> None:
    cosines = np.array([[[0.8, 1.0], [0.6, 1.0]], [[0.9, 1.0], [0.9, 1.0]]])
    first, last = calibration.calibration_table(cosines, [50, 100])
    assert first["mean_cosine"] == pytest.approx(0.8)  # of 0.7 and 0.9
    assert first["std"] == pytest.approx(0.02**0.5)
    # t(0.975, 1) = 12.706, standard error 0.1
    assert first["low"] == pytest.approx(0.8 - 1.27062, abs=1e-4)
    assert first["high"] == 1.0
    assert first["std_draws"] == pytest.approx(0.02**0.5 / 2)  # of 0.8, 0.6 and of none
    assert (last["n"], last["mean_cosine"], last["std"]) == (100, 1.0, 0.0)
    (row,) = calibration.calibration_table(np.array([[[0.8]]]), [50])
    assert (row["std"], row["low"], row["std_draws"]) == (None,) * 3  # of one unit


def test_calibration_units_pool_families_that_are_large_enough(
    base: BaseGradients, tmp_path: Path
) -> None:
    paths = Artifacts("x", tmp_path)
    families = {"a": "one", "b": "two", "c": "one"}
    entries = [{"task": task, "family": family} for task, family in families.items()]
    write_json(paths.mixture / "tasks.json", entries)
    pooled = calibration._units(base, paths, Calibration(sizes=[2], reference=5))
    assert {name: pool.tolist() for name, pool in pooled.items()} == {"one": [0, 1, 2, 6, 7, 8, 9]}
    alone = calibration._units(base, paths, Calibration(sizes=[2], reference=4, unit="task"))
    assert {name: pool.tolist() for name, pool in alone.items()} == {"c": [6, 7, 8, 9]}
    with pytest.raises(MeritError, match=r"no task holds 5 examples, the largest has 4"):
        calibration._units(base, paths, Calibration(sizes=[2], reference=5, unit="task"))


# --- hessian -----------------------------------------------------------------------------------


def test_curvature_product_agrees_with_differences_of_its_gradient(base: BaseGradients) -> None:
    curvature = hessian.Curvature(base, [np.array([0, 1, 2]), np.array([6, 7, 8, 9])])
    tensors = list(base.parameters.values())
    theta = torch.nn.utils.parameters_to_vector(tensors).detach().clone()
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(0))
    product = curvature.product(v / v.norm())
    unit = v / v.norm()
    difference = hessian.hvp_central_difference(
        lambda t: curvature.gradient_along(unit, t), unit, 0.05
    )
    assert hessian.relative_difference(difference, product) < 0.01
    # the model is as it was
    assert torch.equal(torch.nn.utils.parameters_to_vector(tensors), theta)


def test_alignment_table_of_directions_that_are_eigenvectors() -> None:
    eye = torch.eye(100)
    mixed = torch.stack([eye[0] + eye[50], eye[1] + eye[51], eye[2] + eye[52]]) / 2**0.5
    spectra = {"exact": (torch.ones(5), eye[:5]), "central_difference": (torch.ones(5), eye[50:55])}
    table = hessian.alignment_table({"raw": eye[:3], "centered": mixed}, spectra, "exact", 1000)
    rows = {row["metric"]: row for row in table}
    assert rows["raw_max_abs_cos"]["value"] == pytest.approx(1.0)
    assert rows["raw_max_abs_cos"]["central_difference"] == pytest.approx(0.0)
    assert rows["centered_mean_top1_abs_cos"]["value"] == pytest.approx(0.5**0.5)
    assert rows["centered_leading_principal_angle_deg"]["value"] == pytest.approx(45.0, abs=1e-4)
    assert rows["raw_leading_principal_angle_deg"]["central_difference"] == pytest.approx(90.0)
    assert rows["raw_z_score"]["value"] > rows["centered_z_score"]["value"] > 3


# --- cost --------------------------------------------------------------------------------------

SECONDS = {
    "base": 100.0,
    "gradients": 5.0,
    "partition": 1.0,
    "train-joint-1ep-s1": 20.0,
    "merge-joint-1ep-s1": 0.0,
    "train-joint-1ep-s2": 20.0,
    "merge-joint-1ep-s2": 0.0,
    "train-merit-1d-s1-g0": 12.0,
    "train-merit-1d-s1-g1": 9.0,
    "merge-merit-1d-s1": 1.0,
    "train-merit-1d-s2-g0": 11.0,
    "train-merit-1d-s2-g1": 14.0,
    "merge-merit-1d-s2": 1.0,
}


def timed(folder: Path, seconds: dict[str, float]) -> tuple[Any, Artifacts]:
    experiment = synthetic.experiment(seeds=(1, 2), methods=("base", "joint-1ep", "merit-1d"))
    paths = Artifacts(experiment.name, folder)
    for name, value in seconds.items():
        write_json(paths.folder / "timings" / f"{name}.json", {"seconds": value})
        if name.startswith("train-"):
            loop = [{"seconds": 1.0}, {"seconds": value / 2}]
            write_jsonl(paths.timing(name.removeprefix("train-")), loop)
    return experiment, paths


def test_cost_by_hand(tmp_path: Path) -> None:
    result = cost.measure(*timed(tmp_path, SECONDS), Cost(methods=["merit-1d"]))
    rows = {row["stage"]: row for row in result["tables"]["table15_wall_clock"]}
    merit = rows["merit-1d: branches + merge"]
    assert merit["seconds"] == pytest.approx(24.0)  # 22 and 26
    assert merit["std"] == pytest.approx(8**0.5)
    assert merit["wall_seconds"] == pytest.approx(14.0)  # 13 and 15
    assert (merit["branches"], merit["runs"]) == (2, 2)
    assert merit["overhead_percent"] == pytest.approx(20.0)
    assert merit["first_overhead_percent"] == pytest.approx(50.0)
    assert rows["basin preparation"]["seconds"] == 100.0
    # seed by seed 0.1 and 0.3: t(0.975, 1) = 12.7062, std / sqrt(2) = 0.1
    summary = result["summary"]
    assert summary["overhead_share"] == pytest.approx(0.2)
    assert summary["overhead_share_low"] == pytest.approx(0.2 - 1.27062, abs=1e-5)
    assert summary["overhead_share_high"] == pytest.approx(0.2 + 1.27062, abs=1e-5)
    assert summary["overhead_verdict"] == "undecided"
    for wide, verdict in ((0.01, "holds"), (0.01 + 1, "fails")):
        found = cost.overhead_interval([wide, wide + 0.001])
        assert cost.overhead_verdict(found) == verdict
    found = cost.overhead_interval([0.2])
    assert (found["overhead_share"], found["overhead_share_low"]) == (0.2, None)  # of one seed
    with pytest.raises(MeritError, match=r"'merit-9d'"):
        cost.measure(*timed(tmp_path, SECONDS), Cost(methods=["merit-9d"]))


def test_cost_says_what_was_restored_and_then_compares_loops(tmp_path: Path) -> None:
    experiment, paths = timed(tmp_path, SECONDS)
    for name in ("gradients", "train-merit-1d-s1-g0", "merge-merit-1d-s2"):
        (paths.folder / "timings" / f"{name}.json").unlink()
    result = cost.measure(experiment, paths, Cost(methods=["merit-1d"]))
    rows = {row["stage"]: row for row in result["tables"]["table15_wall_clock"]}
    assert rows["gradient extraction"]["seconds"] is None
    assert rows["gradient extraction"]["note"] == cost.RESTORED
    merit = rows["merit-1d: branches + merge"]
    assert merit["seconds"] == pytest.approx((10.5 + 1 + 12.5) / 2)
    assert merit["note"].startswith(cost.LOOPS)
    assert merit["overhead_percent"] == pytest.approx(20.0)  # 12 beside 10
    assert merit["first_overhead_percent"] is None
    nothing = cost.measure(*timed(tmp_path / "none", {}), Cost(methods=["merit-1d"]))
    assert nothing["summary"]["overhead_share"] is None


# --- strides and sketches ------------------------------------------------------------------------


def test_spread_over_draws_by_hand() -> None:
    full = np.eye(4) + 0.1 * (1 - np.eye(4))
    full[0, 1] = full[1, 0] = 0.5
    groups = {1: np.array([0, 0, 1, 1])}
    swapped, crossed = {1: np.array([1, 1, 0, 0])}, {1: np.array([0, 1, 0, 1])}
    cells = spread(full, [full, full + 0.02], groups, [swapped, crossed])
    assert cells["draws"] == 2
    assert cells["rmse"] == pytest.approx(0.01)
    assert cells["rmse_std"] == pytest.approx(0.02 / 2**0.5)
    # of equal groups, 1, whatever their numbers; of these crossed ones, -1/2
    assert cells["rand_index_1d"] == pytest.approx(0.25)
    one = spread(full, [full], groups, [swapped])
    assert (one["rand_index_1d"], one["rand_index_1d_std"], one["rmse_std"]) == (1.0, None, None)


def test_resamples_are_drawn_with_replacement_from_the_stage_s_examples(
    base: BaseGradients, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []

    def gradient(_: BaseGradients, examples: np.ndarray, __: Any) -> torch.Tensor:
        drawn.append(examples.tolist())
        return torch.ones(2)

    monkeypatch.setattr(BaseGradients, "gradient", gradient)
    rows = np.zeros((3, 2), np.float32)
    chosen = Gradients(num_examples=3)
    for resample in (None, 0, 1, 0):
        fill_gradients(rows, base, chosen, resample)
    plain, first, second, again = (drawn[i : i + 3] for i in (0, 3, 6, 9))
    assert first == again != second
    for mine, others in zip(plain, first, strict=True):
        assert len(others) == len(mine)
        assert set(others) <= set(mine)


def test_fidelity_compares_strides_sketches_and_resamples(
    base: BaseGradients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = replace(base, owner=np.arange(10) // 2, tasks=list("abcde"))
    monkeypatch.setattr(BaseGradients, "load", lambda *_: base)
    paths = Artifacts("x", tmp_path)
    write_json(paths.gradients / "tasks.json", {"tasks": base.tasks, "stride": 5})
    write_json(paths.encoded / "tasks.json", [{"num_samples": 2}] * 5)
    kept = [base.task_gradient(task, 200, 0, Stride(5)).numpy() for task in range(5)]
    np.save(paths.gradients / "gradients.npy", np.stack(kept))
    chosen = Fidelity(strides=[2], sketch_sizes=[256, 4096], num_sketches=2, num_resamples=1)
    result = fidelity.measure(synthetic.experiment(), paths, chosen)
    assert result["summary"]["stored_relative_difference"] == 0.0
    rows = {row["gradients"]: row for row in result["tables"]["gradient_representations"]}
    assert list(rows) == [
        *("stride 2", "stride 5", "sketch 256", "sketch 4096", "resampled examples")
    ]
    assert rows["stride 5"]["num_entries"] == -(-base.num_parameters // 5)
    assert rows["stride 5"]["rmse"] == result["summary"]["rmse"]
    for size in (256, 4096):
        row = rows[f"sketch {size}"]
        assert row["draws"] == 2
        assert row["rmse"] < 3 * row["predicted_rmse"]
    ratio = rows["sketch 256"]["predicted_rmse"] / rows["sketch 4096"]["predicted_rmse"]
    assert ratio == pytest.approx(4.0)
    # without room for the full gradients sketches stand for them and for their strided entries: of
    # more sums than there are entries they are those but for signs
    large = chosen.model_copy(
        update={"max_scratch_gb": 1e-9, "reference_size": 20 * base.num_parameters}
    )
    again = fidelity.measure(synthetic.experiment(), paths, large)
    for table in result["tables"]:
        for ours, theirs in zip(again["tables"][table], result["tables"][table], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5), table
    assert again["norms"] == pytest.approx(result["norms"], rel=1e-6)

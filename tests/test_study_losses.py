"""The studies that measure losses of finished checkpoints, on losses known in closed form."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from merit.errors import MeritError
from merit.eval.measuring.losses import LossEvaluator, flatten, make_evaluator
from merit.eval.measuring.scores import sample_std
from merit.eval.studies import Epochs, Gain, Surface
from merit.eval.studies.connectivity import measure as connectivity
from merit.eval.studies.epochs import measure as epochs
from merit.eval.studies.gain import measure as gain
from merit.eval.studies.surface import measure as surface
from merit.io.artifacts import Artifacts, read_json
from merit.io.progress import Progress
from merit.method.hessian import hvp_central_difference
from merit.train.loss import forward_loss
from tests import synthetic
from tests.conftest import Tiny
from tests.evaluators import analytic

# --- the evaluator --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluator(tiny: Tiny) -> LossEvaluator:
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    return make_evaluator(model, ["decoder"], tiny.encoded, num_examples=100)


def current(evaluator: LossEvaluator) -> torch.Tensor:
    return flatten(evaluator.parameters.values())


def test_the_meter_measures_the_mean_loss_per_token(evaluator: LossEvaluator, tiny: Tiny) -> None:
    assert evaluator.num_examples == len(tiny.encoded)  # fewer than asked for
    whole = forward_loss(evaluator.model, tiny.encoded.batch(range(len(tiny.encoded))), None)
    assert evaluator.loss(current(evaluator)) == pytest.approx(whole.item(), rel=1e-5)
    assert evaluator.num_tokens.sum() == tiny.encoded.num_loss_tokens().sum()


def test_the_meter_forgets_the_model_measured_before(evaluator: LossEvaluator) -> None:
    theta = current(evaluator)
    before = evaluator.losses(theta)
    assert evaluator.loss(1.1 * theta) != pytest.approx(evaluator.mean(before), rel=1e-6)
    np.testing.assert_array_equal(evaluator.losses(theta), before)
    assert torch.equal(current(evaluator), theta)


def test_a_bfloat16_base_is_measured_in_float32(evaluator: LossEvaluator, tiny: Tiny) -> None:
    """What a branch learnt is smaller than bfloat16's steps."""
    low = copy.deepcopy(tiny.model).bfloat16()
    theta = current(evaluator)
    expected = evaluator.losses(theta)
    found = make_evaluator(low, ["decoder"], tiny.encoded, evaluator.num_examples)
    assert found.losses(theta) == pytest.approx(expected, rel=1e-6)


def test_samples_are_nested_and_drawn_over_the_mixture(tiny: Tiny) -> None:
    model = copy.deepcopy(tiny.model)
    few, more = (make_evaluator(model, ["decoder"], tiny.encoded, n).batches[0] for n in (4, 9))
    assert len(set(more.tolist())) == 9
    assert more[:4].tolist() == few.tolist() != [0, 1, 2, 3]


def test_a_checkpoint_is_read_in_the_parameters_order(
    evaluator: LossEvaluator, tmp_path: Path
) -> None:
    theta = current(evaluator)
    tensors = {name: tensor.detach() + 1 for name, tensor in evaluator.parameters.items()}
    save_file({"visual.other": torch.ones(2), **tensors}, tmp_path / "model.safetensors")
    assert torch.equal(evaluator.read(tmp_path / "model.safetensors"), theta + 1)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.ones(3)}, tmp_path / "wrong.safetensors")
    with pytest.raises(
        MeritError, match=rf"wrong.safetensors: tensor '{name}': found shape \(3,\)"
    ):
        evaluator.read(tmp_path / "wrong.safetensors")


def test_hessian_products_are_the_gradient_s_differences(evaluator: LossEvaluator) -> None:
    theta = current(evaluator)
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(0))
    parameters = list(evaluator.parameters.values())

    def gradient(at: torch.Tensor) -> torch.Tensor:
        evaluator.place(at)
        total = torch.zeros_like(at)
        for indices, count in zip(evaluator.batches, evaluator.num_tokens.tolist(), strict=True):
            value = forward_loss(evaluator.model, evaluator.data.batch(indices), None)
            total += count * flatten(torch.autograd.grad(value, parameters))
        return total / int(evaluator.num_tokens.sum())

    product = evaluator.hessian_product(theta, v)
    expected = hvp_central_difference(lambda t: gradient(theta + t * v), v, epsilon=1e-2)
    assert (product - expected).norm() < 1e-2 * product.norm()
    evaluator.place(theta)


def test_the_standard_error_is_the_ratio_estimator_s() -> None:
    two = analytic(np.eye(2))
    assert two.mean(np.array([1.0, 3.0])) == 2.0
    # shares 1/2: sqrt(2/1 (1/4 + 1/4)) = 1, the textbook std / sqrt(n) of (1, 3)
    assert two.standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)
    uneven = LossEvaluator(None, {}, None, [np.arange(1)] * 2, np.array([3, 1]))  # type: ignore[arg-type]
    # mean 3/4 * 1 + 1/4 * 5 = 2; deviations 3/4 * -1 and 1/4 * 3
    assert uneven.mean(np.array([1.0, 5.0])) == 2.0
    assert uneven.standard_error(np.array([1.0, 5.0])) == pytest.approx((2 * 2 * 0.75**2) ** 0.5)
    assert uneven.standard_error(np.array([1.0])) == 0.0


# --- connectivity -----------------------------------------------------------------------------


def test_every_path_is_walked_once_and_merged_comes_last() -> None:
    points = {"b0": torch.tensor([1.0]), "b1": torch.tensor([-1.0]), "merged": torch.zeros(1)}
    curves = connectivity.all_paths(analytic([[2.0]]), points, np.array([0, 0.5, 1]))
    means = {path: [float(losses.mean()) for losses in curve] for path, curve in curves.items()}
    assert list(means) == ["b0-b1", "b0-merged", "b1-merged"]
    assert means == {"b0-b1": [1, 0, 1], "b0-merged": [1, 0.25, 0], "b1-merged": [1, 0.25, 0]}


def test_a_barrier_by_hand() -> None:
    evaluator = analytic(np.eye(1))
    flat = [np.array([v, v]) for v in (2.0, 1.0, 4.0)]
    row = connectivity.path_row(evaluator, "b0-b1", np.array([0, 0.5, 1]), flat)
    assert (row["loss_min"], row["alpha_at_min"]) == (1.0, 0.5)
    assert (row["barrier"], row["largest_inner_excess"]) == (0.0, -2.0)
    bump = [np.array([2.0, 2.0]), np.array([3.5, 4.5]), np.array([4.0, 4.0])]
    row = connectivity.path_row(evaluator, "b0-b1", np.array([0, 0.5, 1]), bump)
    assert row["barrier"] == 1.0  # 4 above the middle of 2 and 4
    assert row["barrier_share"] == pytest.approx(1 / 3)
    assert row["excess_se"] == pytest.approx(0.5)  # the excesses 0.5 and 1.5 of the two batches
    summary = connectivity.summarise([row], loss_base=8.0)
    assert summary["max_barrier_over_base_loss"] == 0.125
    assert (summary["num_zero"], summary["all_zero"]) == (0, False)


# --- surface ----------------------------------------------------------------------------------


def test_the_plane_holds_its_three_points() -> None:
    joint, merged = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([3.0, 4.0, 2.0])
    axes = surface.plane(joint, merged)
    torch.testing.assert_close(axes, torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]))
    row = surface.point_row(analytic(np.eye(3)), "merged", merged + 1, torch.ones(3), axes)
    assert (row["x"], row["y"]) == pytest.approx((5.0, 2.0))
    assert row["share_in_plane"] == pytest.approx(1.0)
    assert row["loss"] == pytest.approx(0.5 * (16 + 25 + 9))
    with pytest.raises(MeritError, match="span no plane"):
        surface.plane(joint, 0.5 * joint)


def test_the_grid_surrounds_the_points_and_measures_rows_by_y() -> None:
    x, y = surface.grid(np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0]]), 3)
    assert x.tolist() == [-1.0, 2.0, 5.0]  # a margin of a quarter of the longer side
    assert y.tolist() == [-1.0, 1.0, 3.0]
    losses = surface.grid_losses(analytic(np.diag([2.0, 20.0])), torch.zeros(2), torch.eye(2), x, y)
    np.testing.assert_allclose(losses, x[None] ** 2 + 10 * y[:, None] ** 2, rtol=1e-6)


# --- epochs -----------------------------------------------------------------------------------


def test_perturbation_uses_one_noise_for_all_models_and_sigmas() -> None:
    theta = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 3.0])}
    found = epochs.perturbed(analytic(np.eye(2)), theta, [0.1, 0.2], 2)
    for d in range(2):
        z = epochs.gaussian(2, d).double().numpy()
        for s, sigma in enumerate([0.1, 0.2]):
            common = 0.5 * sigma**2 * z @ z
            assert found["a"][d, s] == pytest.approx(sigma * z[0] + common, abs=1e-6)
            assert found["b"][d, s] == pytest.approx(3 * sigma * z[1] + common, abs=1e-6)
    assert not np.allclose(found["a"][0], found["a"][1])


def test_the_spread_over_draws() -> None:
    increases = np.array([[1.0, 3.0], [2.0, 2.0]])
    assert sample_std(np.array([4.5, 5.0])) == pytest.approx(0.5 / 2**0.5)
    assert sample_std(np.array([4.5])) is None
    rows = epochs.perturbation_rows(["m"], [1.0, 3.0], {"m": increases}, {"m": 2.0})
    assert [row["delta_loss"] for row in rows] == [1.5, 2.5]
    assert [row["sigma_over_weight_rms"] for row in rows] == [0.5, 1.5]


def test_only_methods_of_equal_epochs_are_paired() -> None:
    experiment = synthetic.experiment()
    pairs = epochs.paired_models(experiment, Epochs(joint=["joint-1ep"], merged=["merit-1d"]))
    assert [(e, a.id, b.id) for e, a, b in pairs] == [(1.0, "joint-1ep-s1", "merit-1d-s1")]
    with pytest.raises(MeritError, match=r"'merit-1d' trains for 1.0 epochs, 'joint-2ep' for 2.0"):
        epochs.paired_models(experiment, Epochs(joint=["joint-2ep"], merged=["merit-1d"]))
    with pytest.raises(MeritError, match="1 joint methods but 2 merged"):
        epochs.paired_models(experiment, Epochs(joint=["joint-1ep"], merged=["merit-1d"] * 2))


# --- gain -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), num_branches=st.integers(2, 4))
def test_prediction_and_measurement_agree_on_a_quadratic_loss(seed: int, num_branches: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(3, 3))
    base = torch.from_numpy(rng.normal(size=3))
    deltas = rng.normal(size=(num_branches, 3))
    weights = rng.dirichlet(np.ones(num_branches))
    rows = gain.gains(
        analytic(root @ root.T),
        base,
        base + torch.from_numpy(deltas),
        weights.tolist(),
        [0.5, 1.0],
        Progress("gain", 1),
        torch.empty(num_branches, 3, dtype=torch.float64),
    )
    # theorem 3.1: half the variance under the merge weights, weighed by H = R R^T
    centred = (deltas - weights @ deltas) @ root
    expected = 0.5 * weights @ (centred**2).sum(axis=1)
    for row in rows:
        for key in ("measured", "predicted", "predicted_at_base"):
            assert row[key] == pytest.approx(row["t"] ** 2 * expected, rel=1e-6, abs=1e-9)


def test_a_quartic_loss_leaves_the_quadratic_model_as_t_grows() -> None:
    branches = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    evaluator = analytic([[1.0]], quartic=1.0, noise=0.25)
    base = torch.zeros(1, dtype=torch.float64)
    progress, room = Progress("gain", 1), torch.empty_like(branches)
    rows = gain.gains(evaluator, base, branches, [0.5, 0.5], [0.1, 1.0], progress, room)
    # t = 1: L(2) = 2 + 4, L(0) = 0, L(1) = 3/4; the curvature is 1 at the base, 4 at merged
    assert rows[1]["measured"] == 0.5 * 6 - 0.75
    assert rows[1]["measured_se"] == pytest.approx(0.0, abs=1e-12)  # the noise is common to all
    assert (rows[1]["predicted"], rows[1]["predicted_at_base"]) == (2.0, 0.5)
    assert rows[0]["predicted_over_measured"] == pytest.approx(1.03 / 1.035)
    for row in rows:
        row["method"] = "m"
    summary = gain.summarise(rows)
    assert (summary["num_positive"], summary["largest_close_t"]) == (2, 0.1)


# --- whole studies ----------------------------------------------------------------------------


def test_studies_of_a_pipelines_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on L(theta) = 1/2 |theta|^2."""
    experiment = synthetic.build(tmp_path, methods=["base", "joint-1ep", "merit-1d", "merit-2d"])
    paths = Artifacts("synthetic", tmp_path)
    size = int(np.prod(synthetic.SHAPE))
    joint, merged = (
        read_json(paths.model(name) / "merge.json")["displacement"]
        for name in ("joint-1ep-s1", "merit-1d-s1")
    )

    def measured(study: ModuleType, options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        monkeypatch.setattr(study, "open_evaluator", lambda *args, **kwargs: analytic(np.eye(size)))
        result = json.loads(json.dumps(study.measure(experiment, paths, options)))
        return result, next(iter(result["tables"].values()))

    result, rows = measured(surface, Surface(method="merit-1d", resolution=3))
    assert rows[2]["displacement"] == pytest.approx(merged, rel=1e-5)
    assert rows[2]["share_in_plane"] == pytest.approx(1.0)
    assert np.shape(result["losses"]) == (3, 3)

    options = Epochs(joint=["joint-1ep"], merged=["merit-1d"], num_draws=2)
    result, (row,) = measured(epochs, options)
    assert result["summary"]["displacement_ratio"] == [pytest.approx(joint / merged)]
    gap = row["train_loss_merged"] - row["train_loss_joint"]
    assert row["train_loss_gap"] == pytest.approx(gap, abs=1e-6)
    assert row["score_gap_low"] <= row["score_gap"] <= row["score_gap_high"]

    result, rows = measured(gain, Gain(methods=["merit-1d", "merit-2d"]))
    assert result["summary"]["largest_close_t"] == 1.0
    assert all(row["predicted"] == pytest.approx(row["measured"], rel=1e-3) for row in rows)

"""Heavy studies hold a few flat vectors, never a matrix of them: what is alive is counted."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from merit.config import Gradients
from merit.eval.studies.fidelity.full_gradients import (
    fill_gradients,
    sketched_cosines,
    stored_difference,
)
from merit.eval.studies.gain import measure as gain
from merit.eval.studies.hessian import measure as hessian
from merit.io.progress import Progress
from merit.io.rows import scratch_rows
from merit.method import hessian as core
from merit.method import similarity
from merit.method.gradients import Sketch, Stride
from merit.train import task_gradients as stage
from merit.train.task_gradients import BaseGradients
from tests.conftest import Tiny

DIM = 10_007  # no other array here has as many entries


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[np.ndarray]:
    """Room for sixteen long rows on disk."""
    with scratch_rows(tmp_path, 16, DIM) as found:
        found[:] = np.random.default_rng(0).standard_normal(found.shape)
        yield found


class Largest(TorchDispatchMode):
    """The most entries of a tensor that an operation has made in memory of its own."""

    def __init__(self, *on_disk: torch.Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in on_disk}
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.entries = max(self.entries, storage.nbytes() // tensor.element_size())
        return result


def long_vectors(*on_disk: np.ndarray) -> int:
    """How many tensors of DIM entries are alive, but for views of these rows."""
    ranges = [(rows.ctypes.data, rows.ctypes.data + rows.nbytes) for rows in on_disk]
    alive = {
        found.data_ptr()
        for found in gc.get_objects()
        if issubclass(type(found), torch.Tensor) and found.numel() == DIM
    }
    return sum(not any(low <= pointer < high for low, high in ranges) for pointer in alive)


def test_lanczos_makes_nothing_larger_than_a_vector_beside_its_rows(rows: np.ndarray) -> None:
    basis, vectors = torch.from_numpy(rows[:12]), torch.from_numpy(rows[12:])
    room = [basis, vectors]
    diagonal = torch.linspace(0, 1, DIM) ** 8
    with Largest(basis, vectors) as largest:
        core.lanczos(lambda v: diagonal * v, DIM, 12, num_vectors=4, empty=lambda *_: room.pop(0))
    assert largest.entries == DIM
    # the same numbers as in memory
    values, expected = core.lanczos(lambda v: diagonal * v, DIM, 12, num_vectors=4)
    assert values[0] > 0.9
    assert torch.equal(vectors, expected)


def test_conflict_directions_and_alignment_go_block_by_block(
    rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "COLUMN_BLOCK", 100)
    gradients, out = torch.from_numpy(rows[:4]), torch.from_numpy(rows[4:7])
    with Largest(gradients, out) as largest:
        core.conflict_directions(gradients, centred=True, out=out)
        core.max_abs_cos(out, gradients)
        core.principal_angles(out, gradients)
    assert largest.entries <= 1000


@pytest.fixture
def base(tiny: Tiny) -> BaseGradients:
    """Fifteen tasks, each of one example."""
    from copy import deepcopy

    from merit.train.model import set_trainable

    model = deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    parameters = set_trainable(model, ["decoder"])
    names = [f"t{i:02d}" for i in range(15)]
    return BaseGradients(model, parameters, tiny.encoded, np.arange(15), names, batch_size=2)


def test_differences_of_gradients_are_not_stacked(base: BaseGradients) -> None:
    """Four tasks' gradients are one vector, added up; parameters move block by block."""
    curvature = hessian.Curvature(base, [np.array([i]) for i in range(4)])
    v = torch.ones(base.num_parameters)
    with Largest() as largest:
        core.hvp_central_difference(lambda t: curvature.gradient_along(v, t), v)
    # activations are a little larger than this tiny model; a stack would be four times as large
    assert largest.entries < 2 * base.num_parameters


def test_full_gradients_and_their_cosines_stay_on_disk(
    base: BaseGradients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "_CHUNK", 256)
    with scratch_rows(tmp_path, 15, base.num_parameters) as found:
        with Largest(torch.from_numpy(found)) as largest:
            fill_gradients(found, base, Gradients())
            sketched_cosines(found, Sketch(64))
        assert largest.entries < found.size / 3  # the longest activation is four gradients here
        assert np.array_equal(found[3], base.task_gradient(3, 200, 0).numpy())
        tracemalloc.start()
        similarity.cosine_matrix(found[:, ::5])
        assert stored_difference(found, found[:, ::5], Stride(5)) == 0.0
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < found.nbytes / 3


def test_the_gradients_stage_holds_a_row_at_a_time(base: BaseGradients, tmp_path: Path) -> None:
    whole = Gradients(stride=1)
    stage.extract(base, whole, tmp_path, "")  # whatever is made on first use
    (tmp_path / "again").mkdir()
    tracemalloc.start()
    stage.extract(base, whole, tmp_path / "again", "")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    found = np.load(tmp_path / "again" / "gradients.npy", mmap_mode="r")
    assert np.array_equal(found, np.load(tmp_path / "gradients.npy"))
    assert found.shape == (15, base.num_parameters)
    assert peak < found.nbytes / 2


def test_gain_keeps_branches_on_disk(rows: np.ndarray) -> None:
    counts = []

    class LossEvaluator:
        def losses(self, theta: torch.Tensor) -> np.ndarray:
            counts.append(long_vectors(rows))
            return np.array([float(theta.double().square().sum())])

        def mean(self, losses: np.ndarray) -> float:
            return float(losses.mean())

        def standard_error(self, losses: np.ndarray) -> float:
            return 0.0

        def hessian_product(self, at: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            counts.append(long_vectors(rows))
            return 2 * v

    branches, room = torch.from_numpy(rows[:8]), torch.from_numpy(rows[8:])
    base, weights = torch.zeros(DIM), [1 / 8] * 8
    found = gain.gains(LossEvaluator(), base, branches, weights, [0.5], Progress("", 1), room)  # type: ignore[arg-type]
    assert found[0]["predicted"] == pytest.approx(found[0]["measured"], rel=1e-4)
    assert max(counts) <= 5  # the base, the merged model, their difference, a product

"""Golden values, stage by stage, from inputs that no trained base decides: the same everywhere.

What floating point computes is the same to one part in ten thousand on every machine, the rest to
the bit. A value that changes is a change of results: find out why before it is written anew.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from merit.config import Optimizer
from merit.method.average import interpolate, weighted_average
from merit.method.gradients import Sketch, Stride, mean_gradients
from merit.method.mergers.ties import ties
from merit.method.partition import conflict_groups, kmeans_groups, merit_groups, random_groups
from merit.method.similarity import cosine_matrix, gradient_coordinates, pca
from merit.train.batches import data_order
from merit.train.branch import displacement
from merit.train.checkpoint import Record
from merit.train.dataset import IGNORED
from merit.train.loop import train
from merit.train.loss import forward_loss
from merit.train.model import set_trainable
from tests.conftest import Tiny
from tests.golden_values import data_hashes

MATRICES = torch.tensor(  # theta0 and three branches, exact in float32
    [
        [[0.0, 1.0], [2.0, -1.0]],
        [[1.0, 1.5], [2.0, -3.0]],
        [[-0.5, 1.25], [4.0, -1.0]],
        [[0.5, 0.0], [2.0, 0.0]],
    ]
)


def test_the_generated_world(world: Path) -> None:
    assert data_hashes(world) == {
        "texts": "fca7659790743a05e06d8644244298c44cef867d8c288e95d3dc304ab994d152",
        "images": "2c4b8b65956ccb04bcc9b9fd581c7c8dd3895f816fb0d16651acb90e322bd48e",
        "benchmarks": "32d83c6095c4ec3dd2749db7b7d28fe46eae700163fda7187728c1c8ba1ffcb6",
    }


def test_five_steps_of_training(tiny: Tiny) -> None:
    model = copy.deepcopy(tiny.model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parameters = set_trainable(model, ["decoder"])
    records: list[Record] = []
    train(
        model,
        parameters,
        tiny.encoded,
        data_order(len(tiny.encoded), 20 / 15, seed=1),
        Optimizer(learning_rate=3e-3, batch_size=4, warmup_ratio=0.0),
        what="branch",
        log=lambda record, timing: records.append(record),
    )
    assert [r["num_tokens"] for r in records] == [367, 543, 856, 1200, 1484]
    assert [r["loss"] for r in records] == pytest.approx(
        [5.904346, 5.744984, 5.593661, 5.548364, 5.419255], rel=1e-4
    )
    assert [r["gradient_norm"] for r in records] == pytest.approx(
        [1.774732, 1.916537, 1.825269, 1.449247, 1.268790], rel=1e-4
    )
    moved = displacement((p.detach(), before[name]) for name, p in parameters.items())
    assert moved == pytest.approx(0.9262583, rel=1e-4)


def test_gradients_and_cosines(tiny: Tiny) -> None:
    """Of three tasks: the examples of the first, second and third mixture file."""
    model = copy.deepcopy(tiny.model)
    parameters = set_trainable(model, ["decoder"])

    def gradients(examples: list[int]) -> list[np.ndarray]:
        batch = tiny.encoded.batch(np.array(examples))
        count = int((batch["labels"][:, 1:] != IGNORED).sum())
        found = mean_gradients(
            [lambda: (forward_loss(model, batch, None), count)],
            parameters,
            [Stride(1), Sketch(1024, seed=3)],
        )
        return [gradient.numpy() for gradient in found]

    tasks = [gradients(part) for part in ([0, 1, 2], [3, 4, 5], [6, 7, 8, 9])]
    whole, sketched = (np.stack(rows) for rows in zip(*tasks, strict=True))
    assert np.linalg.norm(whole, axis=1) == pytest.approx([6.691601, 2.045477, 4.294485], rel=1e-4)
    upper = np.triu_indices(3, 1)
    assert cosine_matrix(whole)[upper] == pytest.approx(
        [0.07732112, 0.27487698, 0.00525253], rel=1e-4
    )
    assert cosine_matrix(sketched)[upper] == pytest.approx(
        [0.08449492, 0.27097801, 0.00520332], rel=1e-4
    )


def test_partitions_of_a_given_matrix() -> None:
    """Twelve tasks whose gradients are small integers, so that no rounding decides."""
    i, j = np.mgrid[:12, :6]
    gradients = ((7 * i * i + 3 * i * j + 5 * j) % 11 - 5).astype(np.float32)
    names, counts = [f"t{k:02d}" for k in range(12)], np.arange(10, 130, 10)
    cosines = cosine_matrix(gradients)
    embedding = pca(cosines, 2).embedding
    found = {
        "merit-1d": merit_groups(embedding, counts, names, 1)[0],
        "merit-2d": merit_groups(embedding, counts, names, 2)[0],
        "random-3": random_groups(counts, names, 3, seed=1),
        "kmeans-3": kmeans_groups(gradient_coordinates(cosines), names, 3, seed=1),
        "within": conflict_groups(cosines, names, "within"),
        "between": conflict_groups(cosines, names, "between"),
    }
    assert {key: "".join(map(str, groups)) for key, groups in found.items()} == {
        "merit-1d": "101101010101",
        "merit-2d": "303212031203",
        "random-3": "112201210120",
        "kmeans-3": "012121102110",
        "within": "110001001011",
        "between": "010111101110",
    }


def test_merges_of_given_matrices() -> None:
    base, *branches = MATRICES
    assert weighted_average(branches, [0.5, 0.25, 0.25]).tolist() == [
        [0.5, 1.0625],
        [2.5, -1.75],
    ]
    assert interpolate(base, branches[0], 0.25).tolist() == [[0.25, 1.125], [2.0, -1.5]]
    # kept of the deltas: (1, -2), (-0.5, 2), (-1, 1)
    assert ties(base, branches, density=0.5).tolist() == [[1.0, 0.0], [4.0, -3.0]]

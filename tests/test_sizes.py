"""What a training takes of a GPU's memory, by arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from merit.config import load_experiment
from merit.train.sizes import base_sizes, training_memory

ROOT = Path(__file__).parents[1]
CARD = 79.1 * 2**30  # what an A100 or H100 of 80 GB has


def test_the_7b_experiment_fits_eight_cards_of_80_gb() -> None:
    """Qwen2.5-7B: 28 layers of 233 M, two tables of 152,064 x 3,584; the vision part 677 M, of
    which the projector 45 M.
    """
    experiment = load_experiment("vision_176_7b", ROOT / "experiments")
    sizes = base_sizes(experiment.base, Path("nothing is built"))
    table, decoder = 152_064 * 3584, 7_615_616_512
    assert (sizes.decoder, sizes.layers, sizes.tied) == (decoder, 28, False)
    projector = 5120 * 5120 + 5120 + 5120 * 3584 + 3584 + 1280
    assert sizes.projector == projector

    branch = training_memory(sizes, experiment.training, 2)
    layer = (decoder - 2 * table) / 28
    assert branch == pytest.approx(
        {
            "trained, cut over processes": 16 * decoder / 2,
            "trained, whole": 0,
            "frozen": 2 * sizes.vision,
            "gathered": 2 * 2 * layer + 2 * 2 * table + 6 * table,
            "inputs of layers": 2 * 8192 * 3584 * 28,
            "layers kept": 2 * 8192 * (4 * 18944 + 12 * 3584),
            "logits": 10 * 2048 * 152_064,
        }
    )
    assert 75e9 < sum(branch.values()) < 76e9 < CARD
    assert sum(training_memory(sizes, experiment.training, 1).values()) > CARD

    align, tune = experiment.base.phases
    first = training_memory(sizes, align, 8)
    assert first["trained, whole"] == 16 * projector
    assert first["frozen"] == 2 * (decoder + sizes.vision - projector)
    tuned = training_memory(sizes, tune, 8)
    assert tuned["trained, cut over processes"] == 2 * decoder
    assert (tuned["trained, whole"], first["gathered"]) == (16 * projector, 0)
    assert 30e9 < sum(tuned.values()) < 31e9

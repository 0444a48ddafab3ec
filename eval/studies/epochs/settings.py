from __future__ import annotations

from typing import Annotated

from pydantic import Field

from merit.config.settings import PositiveFloat, PositiveInt
from merit.eval.studies.study import Study


class Epochs(Study):
    """Joint and merged over epochs: distance, training loss, score, perturbation (1, 6, 7).

    The i-th of `joint` and of `merged` are methods trained for the same number of epochs.
    """

    title = "Joint and merged over epochs"

    joint: Annotated[list[str], Field(min_length=1)] = ["joint-1ep", "joint-2ep", "joint-3ep"]
    merged: Annotated[list[str], Field(min_length=1)] = [
        "merit-3d",
        "merit-3d-2ep",
        "merit-3d-3ep",
    ]
    seed: int = 1
    num_examples: PositiveInt = 512  # of the full mixture, on which the loss is measured
    sigmas: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.01, 0.05, 0.1]
    num_draws: PositiveInt = 5  # random directions a sigma

from typing import Annotated

from pydantic import Field

from merit.config.settings import PositiveFloat, PositiveInt
from merit.eval.studies.study import Seeds, Study


class Control(Study):
    """Every method at its own best distance from the base, and all of them at one distance.

    theta0 + c (theta - theta0), with c from `scales` chosen on validation, the same grid for all.
    """

    title = "Every method at its best distance"

    joint: str = "joint-1ep"
    random: str = "random-8"
    method: str = "merit-3d"
    others: list[str] = []  # further methods that get a best distance
    seeds: Seeds = [1, 2, 3]
    scales: Annotated[list[PositiveFloat], Field(min_length=2)] = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
    num_examples: PositiveInt = 640  # of the full mixture, on which the loss is measured

from typing import Annotated

from pydantic import Field

from merit.config.settings import PositiveFloat, PositiveInt, Settings
from merit.eval.studies.study import NumPoints, Study


class Thresholds(Settings):
    """What counts as merge-ready; all four must hold."""

    barrier_share: PositiveFloat = 0.01  # (a) of the mean loss at a path's ends
    # (b) has no threshold: every branch of a random split has a lower mixture loss than the base
    joint_displacement: PositiveFloat = 0.10  # (c) of the base's norm
    random_behind: Annotated[float, Field(ge=0)] = 1.0  # (d) points behind joint, on validation


class Readiness(Study):
    """Is the base merge-ready? Decided only by joint training and random splits (section 4)."""

    title = "Is the base merge-ready?"
    without_benchmarks = True

    joint: str = "joint-1ep"
    random: str = "random-8"
    num_examples: PositiveInt = 640  # of the full mixture, on which the loss is measured
    num_points: NumPoints = 5  # along every path, ends included
    thresholds: Thresholds = Thresholds()

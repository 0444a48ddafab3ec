from __future__ import annotations

from typing import Annotated

from pydantic import Field

from merit.config.settings import PositiveFloat, PositiveInt
from merit.eval.studies.study import Study


class HeldOut(Study):
    """Every method on the held-out examples (`data.held_out`), and which checkpoint to ship.

    theta0 + c (theta - theta0) with c from `scales`, the same for all, chosen on one half of the
    examples and reported on the other.
    """

    title = "Held-out examples"
    reads_scores = False
    without_benchmarks = True

    num_examples: PositiveInt = 1000  # over all tasks
    scales: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0]

from __future__ import annotations

from merit.config.settings import PositiveInt
from merit.eval.studies.study import Study


class HeldOut(Study):
    """Every model's loss on each task's held-out examples (`data.held_out`): for own mixtures."""

    title = "Loss on held-out examples"
    reads_scores = False

    num_examples: PositiveInt = 200  # at most, a task
    batch_size: PositiveInt = 8

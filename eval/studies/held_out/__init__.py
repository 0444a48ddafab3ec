from merit.config.settings import PositiveInt
from merit.eval.studies.study import Scales, Study


class HeldOut(Study):
    """Every method on the held-out examples (`data.held_out`), and which checkpoint to ship.

    theta0 + c (theta - theta0) with c from `scales`, the same for all, chosen on one half of the
    examples and reported on the other.
    """

    title = "Held-out examples"
    reads_scores = False
    without_benchmarks = True

    num_examples: PositiveInt = 1000  # over all tasks
    scales: Scales = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0]

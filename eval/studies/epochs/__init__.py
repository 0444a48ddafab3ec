from merit.config.settings import PositiveInt
from merit.eval.studies.study import Methods, Scales, Study


class Epochs(Study):
    """Joint and merged over epochs: distance, training loss, score, perturbation (1, 6, 7).

    The i-th of `joint` and of `merged` are methods trained for the same number of epochs.
    """

    title = "Joint and merged over epochs"

    joint: Methods = ["joint-1ep", "joint-2ep", "joint-3ep"]
    merged: Methods = ["merit-3d", "merit-3d-2ep", "merit-3d-3ep"]
    seed: int = 1
    num_examples: PositiveInt = 512  # of the full mixture, on which the loss is measured
    sigmas: Scales = [0.01, 0.05, 0.1]
    num_draws: PositiveInt = 5  # random directions a sigma

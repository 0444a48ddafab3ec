from merit.config.settings import PositiveInt
from merit.eval.studies.study import Methods, Scales, Study


class Gain(Study):
    """Merging gain by the quadratic prediction of theorem 3.1 against the measured one."""

    title = "Merging gain, predicted and measured"

    methods: Methods = ["merit-1d", "merit-2d", "merit-3d"]
    seed: int = 1
    shrinkages: Scales = [0.1, 0.25, 0.5, 1.0]
    num_examples: PositiveInt = 256  # every branch takes a Hessian product a shrinkage

from merit.config.settings import PositiveInt
from merit.eval.studies.study import NumPoints, Study


class Connectivity(Study):
    """Linear mode connectivity of one method's branches and merged model (table 5)."""

    title = "Linear mode connectivity"

    method: str = "merit-2d"
    seed: int = 1
    num_points: NumPoints = 21
    num_examples: PositiveInt = 512  # of the full mixture, on which the loss is measured

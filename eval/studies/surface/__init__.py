from merit.config.settings import PositiveInt
from merit.eval.studies.study import NumPoints, Study


class Surface(Study):
    """Loss on the plane through the base, the joint and the merged model (figure 2)."""

    title = "Loss surface"

    joint: str = "joint-1ep"
    method: str = "merit-3d"
    seed: int = 1
    resolution: NumPoints = 21  # points a side
    num_examples: PositiveInt = 256

from merit.config.settings import PositiveFloat, PositiveInt
from merit.eval.studies.study import Study


class Hessian(Study):
    """Conflict directions against leading Hessian eigenvectors at the base (table 21)."""

    title = "Conflict directions and curvature"

    num_examples: PositiveInt = 50  # a task
    num_steps: PositiveInt = 50  # of Lanczos
    num_eigenvectors: PositiveInt = 10
    epsilon: PositiveFloat = 0.1  # of the central differences, over a unit vector
    num_random: PositiveInt = 10_000  # Gaussian vectors behind the z-score; their cost is nothing

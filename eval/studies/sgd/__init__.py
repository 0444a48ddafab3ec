from merit.eval.studies.study import Study


class Sgd(Study):
    """Branches and joint training under SGD over a sweep of learning rates (table 18)."""

    title = "SGD learning rates"

    sweep: str = "sgd"

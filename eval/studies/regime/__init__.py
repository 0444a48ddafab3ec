from merit.eval.studies.study import Study


class Regime(Study):
    """joint, shrunk joint, random and merit over learning rate x base, as in `sweeps.<sweep>`.

    The experiment's own learning rate is always a part of the map.
    """

    title = "When does splitting help?"

    sweep: str = "regime"
    other: str | None = None  # an experiment with the same methods from another base
    joint: str = "joint-1ep"
    random: str = "random-8"
    method: str = "merit-3d"
    shrunk: str = "joint-shrunk"

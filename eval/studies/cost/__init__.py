from merit.eval.studies.study import Methods, Study


class Cost(Study):
    """Wall-clock time of the method's steps beside joint training's (table 15)."""

    title = "Wall-clock time"
    timed = True

    joint: str = "joint-1ep"
    methods: Methods = ["merit-1d", "merit-2d", "merit-3d"]

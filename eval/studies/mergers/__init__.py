from merit.eval.studies.study import Scales, Seeds, Study


class Mergers(Study):
    """Post-hoc mergers on one method's branches, at default and at swept scale (table 12)."""

    title = "Post-hoc mergers"

    method: str = "merit-2d"
    seeds: Seeds = [1]
    scales: Scales = [0.125, 0.25, 0.5, 1.0, 2.0]

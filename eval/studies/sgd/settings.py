"""Settings of the study `sgd`."""

from __future__ import annotations

from merit.eval.studies.study import Study


class Sgd(Study):
    """Branches and joint training under SGD over a sweep of learning rates (table 18)."""

    title = "SGD learning rates"
    reads = ("models", "evaluation/scores.json")
    tables = ("table18_sgd_lr_sweep",)

    sweep: str = "sgd"

"""Who may ask the hub: the stages of an experiment that names something there, and no other."""

from __future__ import annotations

import os

from merit.config import Experiment
from merit.config.data import PublicData

VARIABLE = "HF_HUB_OFFLINE"  # of the user, where it is set: then it decides
ANSWERING = ("evaluate", "studies")  # stages in which lm-eval loads its tasks' data


def needs_hub(experiment: Experiment, stage: str) -> bool:
    """Whether the stage reads what the experiment's YAML names on the hub.

    These are public sources that may be fetched, the base or what it is assembled from, and
    lm-eval's own tasks without a folder of their data.
    """
    data, base, evaluation = experiment.data, experiment.base, experiment.evaluation
    if stage == "data":
        return isinstance(data, PublicData) and data.download
    if stage == "base":
        parts = [base.assemble.vision, base.assemble.decoder] if base.assemble else []
        return base.hub is not None or any(origin.hub is not None for origin in parts)
    if stage in ANSWERING and evaluation.text_data is None:
        from merit.eval.benchmarks import benchmark

        return any(benchmark(name).kind == "lm_eval" for name in evaluation.benchmarks)
    return False


def uses_hub(experiment: Experiment) -> bool:
    """Whether any stage does."""
    return any(needs_hub(experiment, stage) for stage in ("data", "base", "evaluate"))


def set_access(allowed: bool) -> None:
    """Before the hub's client is imported, which reads the variable once."""
    os.environ.setdefault(VARIABLE, "0" if allowed else "1")

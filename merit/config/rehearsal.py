"""<name>_rehearsal: an experiment cut down to minutes, through the same stages.

It tests credentials, downloads, disk and memory before the long run: models, images, lengths and
batches stay as they are; tasks, examples, steps of the base and questions are few.
"""

from __future__ import annotations

from merit.config.data import JsonlData, PublicData
from merit.config.experiment import REHEARSAL, Experiment
from merit.config.methods import Method
from merit.errors import MeritError

NUM_TASKS, NUM_EXAMPLES, NUM_QUESTIONS = 3, 50, 20
NUM_STEPS = 2  # of each of the base's phases
METHODS = {
    "base": Method(partition="base"),
    "merit-1d": Method(partition="merit", axes=1),  # two branches
}


def rehearsed(experiment: Experiment) -> Experiment:
    """3 tasks (at least one per source) of 50 examples, two branches, 20 questions.

    Raises MeritError for a generated mixture, for which there is `merit smoke`.
    """
    data = experiment.data
    if not isinstance(data, PublicData | JsonlData):
        file = f"experiments/{experiment.name.removesuffix(REHEARSAL)}.yaml"
        raise MeritError(
            f"{file}: key `data.source`: {data.source!r} is generated and needs no rehearsal; "
            "`merit smoke` runs it at a tiny size"
        )
    few = data.cut_down(NUM_TASKS, NUM_EXAMPLES)
    phases = [
        phase.model_copy(update={"num_steps": min(NUM_STEPS, phase.num_steps)})
        for phase in experiment.base.phases
    ]
    report = {"curves": [], "partition": "merit-1d", "also_tables": {}}
    return experiment.model_copy(
        update={
            "data": few,
            "base": experiment.base.model_copy(update={"phases": phases}),
            "gradients": experiment.gradients.model_copy(update={"num_examples": NUM_EXAMPLES}),
            "methods": METHODS,
            "sweeps": {},
            "evaluation": experiment.evaluation.model_copy(update={"max_questions": NUM_QUESTIONS}),
            "report": experiment.report.model_copy(update=report),
            "studies": {},
        }
    )

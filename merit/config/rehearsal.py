"""<name>_rehearsal: an experiment cut down to minutes, through the same stages.

It tests credentials, downloads, disk and memory before the long run: models, images, lengths and
batches stay as they are; tasks, examples, steps of the base and questions are few.
"""

from __future__ import annotations

from typing import TypeVar

from merit.config.data import JsonlData, PublicData, PublicSource, TaskRule
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
    phases = [
        phase.model_copy(update={"num_steps": min(NUM_STEPS, phase.num_steps)})
        for phase in experiment.base.phases
    ]
    report = {"curves": [], "partition": "merit-1d", "also_tables": {}}
    return experiment.model_copy(
        update={
            "data": _few_tasks(data, NUM_TASKS) if isinstance(data, JsonlData) else _public(data),
            "base": experiment.base.model_copy(update={"phases": phases}),
            "gradients": experiment.gradients.model_copy(update={"num_examples": NUM_EXAMPLES}),
            "methods": METHODS,
            "sweeps": {},
            "evaluation": experiment.evaluation.model_copy(update={"max_questions": NUM_QUESTIONS}),
            "report": experiment.report.model_copy(update=report),
            "studies": {},
        }
    )


Tasks = TypeVar("Tasks", JsonlData, PublicSource)


def _public(data: PublicData) -> PublicData:
    """The same sources, with `NUM_TASKS` over all of them; the base's phases as briefly.

    A phase reads only the first 20 `NUM_EXAMPLES` records, some of which are broken: its files have
    up to three million. A task that it lists may stand anywhere.
    """
    share = max(1, NUM_TASKS // len(data.sources))
    sources = [_few_tasks(entry, share) for entry in data.sources]

    def first(entry: PublicSource) -> PublicSource:
        update = {"max_records": 20 * NUM_EXAMPLES} if entry.tasks == TaskRule() else {}
        return _few_examples(entry).model_copy(update=update)

    phases = {name: [first(entry) for entry in phase] for name, phase in data.pretraining.items()}
    return data.model_copy(update={"sources": sources, "pretraining": phases})


def _few_tasks(data: Tasks, number: int) -> Tasks:
    """The first of a list of tasks, else as many drawn, with few examples each."""
    if isinstance(data.tasks, TaskRule):
        rule = data.tasks.model_copy(update={"draw": min(number, data.tasks.draw or number)})
        return _few_examples(data.model_copy(update={"tasks": rule}))
    return _few_examples(data.model_copy(update={"tasks": data.tasks[:number]}))


def _few_examples(data: Tasks) -> Tasks:
    few = min(NUM_EXAMPLES, data.max_examples or NUM_EXAMPLES)
    return data.model_copy(update={"max_examples": few})

"""encode: the mixture as arrays, with the frozen vision part's image embeddings cached.

The vision part is frozen from here on, so every branch would compute the same embeddings again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from merit.data.examples import Example, has_image, read_examples
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, read_json, write_json
from merit.training.encoded import encode_examples, vision_features


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/encoded."""
    paths = Artifacts(name)
    tasks, examples = read_mixture(paths.mixture)

    from merit.training.models import load_model, load_processor, project, use_one_thread

    use_one_thread()
    model, processor = load_model(paths.base), load_processor(paths.base)
    images = sorted({image for example in examples for image in example.images})
    features = vision_features(
        model, processor, [paths.mixture / image for image in images], lambda h: project(model, h)
    )
    encoded = encode_examples(examples, processor, features, {p: i for i, p in enumerate(images)})
    num_tokens, num_loss_tokens = encoded.num_tokens(), encoded.num_loss_tokens()
    index = {task: i for i, task in enumerate(tasks)}
    owner = np.array([index[example.task] for example in examples], dtype=np.int32)
    with atomic_folder(paths.encoded) as folder:
        encoded.save(folder)
        np.save(folder / "task_of_example.npy", owner)
        write_json(
            folder / "tasks.json",
            [
                {
                    "task": task,
                    "num_samples": int((owner == i).sum()),
                    "num_tokens": int(num_tokens[owner == i].sum()),
                    "num_loss_tokens": int(num_loss_tokens[owner == i].sum()),
                }
                for i, task in enumerate(tasks)
            ],
        )


def read_mixture(folder: Path) -> tuple[list[str], list[Example]]:
    """The task names in their order, and all examples, task by task.

    Raises MeritError where a task's file is missing, empty or malformed, or holds another task's
    examples, or where an image does not exist.
    """
    tasks = [entry["task"] for entry in read_json(folder / "tasks.json")]
    if len(set(tasks)) != len(tasks):
        raise MeritError(f"{folder}/tasks.json: a task is listed twice")
    examples: list[Example] = []
    for task in tasks:
        path = task_file(folder, task)
        for number, example in enumerate(read_examples(path), start=1):
            if example.task != task:
                raise MeritError(
                    f"{path}, line {number}: key `task`: found {example.task!r}, expected {task!r}"
                )
            for image in example.images:
                if not has_image(folder / image):
                    raise MeritError(
                        f"{path}, line {number}: image {folder / image} does not exist"
                    )
            examples.append(example)
    return tasks, examples

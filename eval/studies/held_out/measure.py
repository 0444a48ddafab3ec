"""held_out: every model's loss on each task's held-out examples, which nothing was trained on.

The measure for a mixture without a benchmark: it needs no engine, no questions and no judge.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from merit.config import Encoding, Experiment
from merit.config.branches import Model, plan
from merit.data.examples import read_examples
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.eval.measuring.losses import failed, mean_loss
from merit.eval.measuring.scores import Row
from merit.eval.studies.held_out.settings import HeldOut
from merit.io.artifacts import Artifacts, read_json
from merit.io.progress import Progress
from merit.train.dataset import TokenizedDataset
from merit.train.images import ImageReader
from merit.train.model import load_model, load_processor, use_one_thread
from merit.train.tokenize import encode_examples


def measure(experiment: Experiment, paths: Artifacts, settings: HeldOut) -> dict[str, Any]:
    """A row per model: mean loss per token, plainly over tasks; and a row per task.

    Raises MeritError where nothing was held out.
    """
    listed = paths.data / "held_out" / "tasks.json"
    if not listed.is_file():
        raise MeritError(
            f"{listed}: nothing was held out; set `data.held_out`, 0.1 for a tenth of every task"
        )
    tasks = [entry["task"] for entry in read_json(listed)]
    use_one_thread()
    data = {task: held_out(paths, task, experiment.encoding, settings) for task in tasks}
    models = [m for m in plan(experiment).models.values() if not failed(paths, m)]
    losses: dict[str, list[float]] = {}
    with Progress(f"{experiment.name}, held-out loss", len(models) * len(tasks)) as progress:
        for model in models:
            loaded = load_model(paths.model(model.id), experiment.model)
            losses[model.id] = []
            for task in tasks:
                losses[model.id].append(mean_loss(loaded, data[task], settings.batch_size))
                progress.advance()
    by_task = [
        {"task": task, "num_examples": len(data[task])}
        | {name: values[i] for name, values in losses.items()}
        for i, task in enumerate(tasks)
    ]
    by_model = [row_of(model, losses) for model in models]
    return {
        "tables": {"held_out": by_model, "held_out_tasks": by_task},
        "summary": {
            "num_tasks": len(tasks),
            "num_examples": sum(map(len, data.values())),
            "loss": {row["model"]: row["loss"] for row in by_model},
        },
    }


def held_out(
    paths: Artifacts, task: str, encoding: Encoding, settings: HeldOut
) -> TokenizedDataset:
    """The first `num_examples` of the task's held-out examples, tokenized."""
    path = task_file(paths.data / "held_out", task)
    examples = read_examples(path)[: settings.num_examples]
    processor = load_processor(paths.base)
    images = sorted({image for example in examples for image in example.images})
    ids = {image: i for i, image in enumerate(images)}
    grids, read = np.zeros((0, 3), dtype=np.int32), None
    if images and hasattr(processor, "image_processor"):
        limits = encoding.min_pixels, encoding.max_pixels
        read = ImageReader(paths.mixture, processor.image_processor, *limits)
        grids = np.array([read.grid(image) for image in images], dtype=np.int32)
    found = encode_examples(examples, processor, ids, grids, encoding)
    return replace(found, read_images=read)


def row_of(model: Model, losses: dict[str, list[float]]) -> Row:
    """The model's mean over tasks, and in how many its loss is below the base's."""
    mine, base = losses[model.id], losses.get("base")
    better = None if base is None else sum(a < b for a, b in zip(mine, base, strict=True))
    return {
        "model": model.id,
        "method": model.method,
        "seed": model.seed,
        "loss": float(np.mean(mine)),
        "tasks_below_base": better,
    }

"""What was held out of every task: each example's loss, and greedy answers where answers are short.

The measure of a mixture without a benchmark: it needs no engine, no questions and no judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merit.config import Encoding, Experiment
from merit.data.examples import read_examples
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.eval.answering.batches import Batch
from merit.eval.answering.generate import generate
from merit.eval.measuring.scores import Scores
from merit.eval.statistics import LARGEST
from merit.io.artifacts import Artifacts, read_json
from merit.train.dataset import TokenizedDataset
from merit.train.images import ImageReader
from merit.train.loss import forward_loss
from merit.train.model import load_model, load_processor
from merit.train.tokenize import encode_examples

BATCH_SIZE = 16  # answers generated side by side
SHORT = 12  # tokens of an answer, its end mark included, up to which it is matched exactly
Array = NDArray[np.float64]
HeldOut = dict[str, TokenizedDataset]  # by task


def load_held_out(paths: Artifacts, encoding: Encoding, num_examples: int) -> HeldOut:
    """Every task's first held-out examples, tokenized: `num_examples` over all tasks, evenly.

    Raises MeritError where nothing was held out.
    """
    listed = paths.data / "held_out" / "tasks.json"
    if not listed.is_file():
        raise MeritError(
            f"{listed}: nothing was held out; set `data.held_out`, 0.1 for a tenth of every task"
        )
    tasks = [entry["task"] for entry in read_json(listed)]
    each, processor = max(2, num_examples // len(tasks)), load_processor(paths.base)
    return {task: _tokenized(paths, task, encoding, processor, each) for task in tasks}


def _tokenized(
    paths: Artifacts, task: str, encoding: Encoding, processor: Any, count: int
) -> TokenizedDataset:
    examples = read_examples(task_file(paths.data / "held_out", task))[:count]
    images = sorted({image for example in examples for image in example.images})
    ids = {image: i for i, image in enumerate(images)}
    grids, read = np.zeros((0, 3), dtype=np.int32), None
    if images and hasattr(processor, "image_processor"):
        limits = encoding.min_pixels, encoding.max_pixels
        read = ImageReader(paths.mixture, processor.image_processor, *limits)
        grids = np.array([read.grid(image) for image in images], dtype=np.int32)
    return replace(encode_examples(examples, processor, ids, grids, encoding), read_images=read)


def example_losses(model: Any, data: TokenizedDataset) -> Array:
    """(n,): every example's mean loss per supervised token, in nats; 20 if it is more or no number.

    A model at twice its distance from the base may have lost itself.
    """
    with torch.inference_mode():
        found = [forward_loss(model, data.batch([i]), None).item() for i in range(len(data))]
    return np.fmin(found, LARGEST)


def short_answers(data: TokenizedDataset, processor: Any) -> dict[int, int]:
    """{example: where its last answer begins}, of those whose last answer is short and whole."""
    marks, found = set(getattr(processor, "tokenizer", processor).all_special_ids), {}
    for i in range(len(data)):
        tokens, labels, _ = data.example(i)
        supervised = np.flatnonzero(labels >= 0)
        breaks = np.flatnonzero(np.diff(supervised) > 1)
        start = int(supervised[breaks[-1] + 1 if len(breaks) else 0])
        if supervised[-1] - start < SHORT and int(tokens[supervised[-1]]) in marks:
            found[i] = start
    return found


def exact_matches(
    model: Any, processor: Any, data: TokenizedDataset, starts: Mapping[int, int]
) -> Array:
    """1 for every example whose last answer the model gives word for word (greedily), else 0."""
    tokenizer = getattr(processor, "tokenizer", processor)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    found: list[bool] = []
    asked = list(starts.items())
    for part in (asked[i : i + BATCH_SIZE] for i in range(0, len(asked), BATCH_SIZE)):
        width = max(start for _, start in part)
        ids = torch.full((len(part), width), pad)
        known = torch.zeros_like(ids)
        wanted = []
        for row, (i, start) in enumerate(part):
            tokens = torch.from_numpy(data.example(i)[0])
            ids[row, width - start :], known[row, width - start :] = tokens[:start], 1
            answer = tokenizer.decode(tokens[start:], skip_special_tokens=True)
            wanted.append(answer.strip())
        inputs = {"input_ids": ids, "attention_mask": known}
        seen = data.batch([i for i, _ in part])
        if "pixel_values" in seen:
            inputs |= {"pixel_values": seen["pixel_values"], "image_grid_thw": seen["grids"]}
            inputs["mm_token_type_ids"] = (ids == data.image_token).int() * known
        answers = generate(model, processor, Batch([i for i, _ in part], SHORT, inputs))
        found += [ours == theirs for ours, theirs in zip(answers, wanted, strict=True)]
    return np.array(found, dtype=np.float64)


def match_scores(
    experiment: Experiment, paths: Artifacts, models: Sequence[str], num_examples: int = 1000
) -> dict[str, Scores]:
    """{model: {task: exact matches of its held-out examples}}; no task where answers are long."""
    data = load_held_out(paths, experiment.encoding, num_examples)
    processor = load_processor(paths.base)
    starts = {task: short_answers(found, processor) for task, found in data.items()}
    scores: dict[str, Scores] = {}
    for name in models if any(starts.values()) else ():
        model = load_model(paths.model(name), experiment.model, generates=True)
        scores[name] = {
            task: exact_matches(model, processor, data[task], found)  # type: ignore[misc]
            for task, found in starts.items()
            if found
        }
    return scores

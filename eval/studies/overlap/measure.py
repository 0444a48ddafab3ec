"""overlap: which benchmark questions and images stand in the training data as well.

An image is the same where its decoded pixels are, and near where its difference hash is; a question
where its words stand in a training prompt as a whole, a line or a sentence of it
(docs/decisions.md). Questions are read from VLMEvalKit's TSV files, from JSONL files, and from
lm-eval's own tasks.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from merit.config import Evaluation, Experiment
from merit.data.examples import iter_examples
from merit.data.images import as_seen, load_image, open_image
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.eval.answering.answers import question_files
from merit.eval.benchmarks import benchmark
from merit.eval.measuring.scores import Row
from merit.eval.studies.overlap import Overlap
from merit.eval.studies.overlap.contamination import (
    difference_hash,
    near,
    normalised,
    pixel_hash,
    question_parts,
)
from merit.io.artifacts import Artifacts, read_json, read_jsonl
from merit.io.progress import Progress

QUESTION_KEYS = ("question", "query", "ctx", "problem", "prompt", "sentence", "premise")
SHORTEST_IMAGE = 64  # characters; what is shorter names the row that holds the image
# Training tasks that are a benchmark's own training set or have its images, by their names.
NAMED = {
    **{"bool_q": "boolq", "hellaswag": "hellaswag"},
    **{"arc_challenge": "arc_challenge", "arc_easy": "arc_challenge"},
    **{"AI2D+visual_question_answering": "ai2d", "ai2d": "ai2d"},
    **{"DOCVQA+question_answer": "docvqa", "docvqa": "docvqa"},
    **{"textcaps+caption_generation": "textvqa", "textcaps": "textvqa", "textvqa": "textvqa"},
}


@dataclass
class Question:
    """One question of a benchmark, with what of the training data was found in it."""

    text: str
    images: list[str]  # base64
    tasks_of_text: set[str] = field(default_factory=set)
    tasks_of_image: set[str] = field(default_factory=set)
    tasks_of_near: set[str] = field(default_factory=set)


def measure(experiment: Experiment, paths: Artifacts, settings: Overlap) -> dict[str, Any]:
    """The table of benchmarks, and that of tasks which are a benchmark's own training data.

    Raises MeritError where a file of questions is missing or cannot be read.
    """
    benchmarks = benchmark_questions(experiment, paths, settings)
    tasks = read_json(paths.mixture / "tasks.json")
    names = [entry["task"] for entry in tasks]
    compare(benchmarks, paths.mixture, names, settings.images)
    rows = [summarise(name, questions) for name, questions in benchmarks.items()]
    named = named_tasks(tasks)
    return {
        "tables": {"overlap": rows} | ({"overlap_tasks": named} if named else {}),
        "summary": {"num_tasks": len(tasks), "num_named_tasks": len(named)},
    }


def benchmark_questions(
    experiment: Experiment, paths: Artifacts, settings: Overlap
) -> dict[str, list[Question]]:
    """Each benchmark's questions: of the settings' files, else of the experiment's own benchmarks.

    VLMEvalKit's lie in `$LMUData`, the minis' where the data stage wrote them; those of lm-eval's
    own tasks are what lm-eval loads.
    """
    if settings.files:
        named = {name: Path(os.path.expandvars(file)) for name, file in settings.files.items()}
        return {name: read_questions(path) for name, path in named.items()}
    files = question_files(paths, experiment.evaluation)
    found = {name: read_questions(path) for name, path in files.items()}
    tasks = [name for name in experiment.evaluation.benchmarks if name not in files]
    return found | {name: lm_eval_questions(name, experiment.evaluation) for name in tasks}


def lm_eval_questions(name: str, settings: Evaluation) -> list[Question]:
    """The questions of one of lm-eval's own tasks, or of all tasks of its group.

    A document's own text of the question where it has one, else what lm-eval asks.
    """
    from merit.eval.answering.lm_public import all_tasks, data_of, quiet, task

    record = benchmark(name)
    with quiet(), data_of(record, settings.text_data):
        tasks = all_tasks().load([task(record, settings)])["tasks"].values()
        return [Question(_asked(each, doc), []) for each in tasks for doc in each.eval_docs]


def _asked(task: Any, doc: Mapping[str, Any]) -> str:
    key = next((key for key in QUESTION_KEYS if isinstance(doc.get(key), str)), None)
    return str(task.doc_to_text(doc) if key is None else doc[key])


# --- questions ----------------------------------------------------------------------------------


def read_questions(path: Path) -> list[Question]:
    """The questions of a TSV file (VLMEvalKit's columns) or of a JSONL file.

    Raises MeritError where the file is missing, or has no column of questions.
    """
    if not path.is_file():
        raise MeritError(f"{path}: file not found; key `studies.overlap.files`")
    rows = _read_tsv(path) if path.suffix == ".tsv" else read_jsonl(path)
    key = next((key for key in QUESTION_KEYS if rows and key in rows[0]), None)
    if key is None:
        raise MeritError(f"{path}: no column of questions; expected one of {list(QUESTION_KEYS)}")
    images = {str(row.get("index")): _images(row) for row in rows}
    return [
        Question(str(row[key]), [found for i in _images(row) for found in _resolved(i, images)])
        for row in rows
    ]


def _read_tsv(path: Path) -> list[Row]:
    csv.field_size_limit(sys.maxsize)  # an image is a cell
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _images(row: Row) -> list[str]:
    """A row's cells of images; a list of them is written as one."""
    cell = row.get("image") or ""
    if cell.startswith("["):
        return [str(part) for part in json.loads(cell.replace("'", '"'))]
    return [cell] if cell else []


def _resolved(cell: str, images: Mapping[str, list[str]]) -> list[str]:
    return images.get(cell, []) if len(cell) <= SHORTEST_IMAGE else [cell]


# --- comparison ---------------------------------------------------------------------------------


def compare(
    benchmarks: Mapping[str, list[Question]], mixture: Path, tasks: list[str], images: bool
) -> None:
    """Note in every question the tasks whose training examples hold it or its images."""
    every = [question for questions in benchmarks.values() for question in questions]
    texts: dict[str, list[Question]] = {}
    for question in every:
        texts.setdefault(normalised(question.text), []).append(question)
    tasks_of_picture: dict[str, set[str]] = {}
    with Progress("overlap, questions", len(tasks)) as progress:
        for task in tasks:
            for example in iter_examples(task_file(mixture, task)):
                for image in example.images:
                    tasks_of_picture.setdefault(image, set()).add(task)
                for message in example.messages:
                    if message["role"] == "user":
                        for part in question_parts(message["content"]):
                            for question in texts.get(part, ()):
                                question.tasks_of_text.add(task)
            progress.advance()
    if images and any(question.images for question in every):
        _compare_images(every, mixture, tasks_of_picture)


def _compare_images(
    questions: list[Question], mixture: Path, tasks_of_picture: dict[str, set[str]]
) -> None:
    names = sorted(tasks_of_picture)
    tasks_of_hash: dict[str, set[str]] = {}
    rows = np.empty((len(names), 4), dtype=np.uint64)
    found = _hashes(names, lambda name: load_image(mixture / name), "overlap, training images")
    for i, (exact, rough) in enumerate(found):
        tasks_of_hash.setdefault(exact, set()).update(tasks_of_picture[names[i]])
        rows[i] = rough
    cells = sorted({cell for question in questions for cell in question.images})
    hashes = dict(zip(cells, _hashes(cells, _decoded, "overlap, benchmark images"), strict=True))
    for question in questions:
        for cell in question.images:
            exact, rough = hashes[cell]
            question.tasks_of_image |= tasks_of_hash.get(exact, set())
            for i in near(rough, rows):
                question.tasks_of_near |= tasks_of_picture[names[i]]


def _hashes(
    names: list[str], read: Callable[[str], Image.Image], label: str
) -> Iterator[tuple[str, np.ndarray]]:
    def both(name: str) -> tuple[str, np.ndarray]:
        image = read(name)
        return pixel_hash(image), difference_hash(image)

    with Progress(label, len(names)) as progress, ThreadPoolExecutor() as threads:
        for start in range(0, len(names), 1024):
            for pair in threads.map(both, names[start : start + 1024]):
                progress.advance()
                yield pair


def _decoded(cell: str) -> Image.Image:
    try:
        content = io.BytesIO(base64.b64decode(cell))
    except ValueError as error:
        raise MeritError(f"an image of a benchmark is not readable ({error})") from None
    with open_image(content, "an image of a benchmark") as image:
        return as_seen(image)


# --- tables -------------------------------------------------------------------------------------


def summarise(name: str, questions: list[Question]) -> Row:
    """How many of a benchmark's questions, and which tasks hold the most of them."""
    counts = Counter(
        task for q in questions for task in q.tasks_of_text | q.tasks_of_image | q.tasks_of_near
    )
    most = sorted(counts, key=lambda task: (-counts[task], task))[:3]
    pictured = [q for q in questions if q.images]
    seen = [q for q in questions if q.tasks_of_image or q.tasks_of_near]
    return {
        "benchmark": name,
        "num_questions": len(questions),
        "num_with_image": len(pictured),
        "same_question": sum(bool(q.tasks_of_text) for q in questions),
        "same_image": sum(bool(q.tasks_of_image) for q in pictured),
        "near_image": sum(bool(q.tasks_of_near) for q in pictured),
        "same_question_and_image": sum(bool(q.tasks_of_text) for q in seen),
        "tasks": "; ".join(f"{task} ({counts[task]})" for task in most),
    }


def named_tasks(tasks: list[Row]) -> list[Row]:
    """The mixture's tasks that are a benchmark's training set or have its images, by name."""
    return [
        {"task": task, "benchmark": NAMED[name], "num_examples": entry["num_examples"]}
        for entry in tasks
        if (name := (task := entry["task"]).rpartition("/")[2]) in NAMED  # without a prefix
    ]

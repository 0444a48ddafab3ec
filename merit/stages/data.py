"""data: write the mixture, the base's conversations and the benchmarks of one experiment."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from merit.config import MiniTextData, MiniWorldData, load_experiment
from merit.data.examples import Example, make_example
from merit.data.text.write import write_mini_text
from merit.data.world.benchmarks import RECIPES, benchmark_rows, png
from merit.data.world.conversations import (
    DESCRIBE,
    READ,
    converse,
    description,
    known_skills,
    reading,
)
from merit.data.world.draw import Pen, draw_scene
from merit.data.world.scene import KINDS, Scene, sample_scene
from merit.data.world.tasks import Task, all_sources, all_tasks, ask_task, task_sizes
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, atomic_write, write_json, write_jsonl
from merit.progress import Progress

# one independent stream of random numbers for each part, so that resizing one leaves the others
STREAMS = {"mixture": 1, "conversations": 2, "test": 3, "validation": 4, "recaptions": 5}


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/data."""
    settings = load_experiment(name).data
    with atomic_folder(Artifacts(name).data) as folder:
        if isinstance(settings, MiniTextData):
            write_mini_text(settings, folder)
        else:
            write_mini_world(settings, folder)


def write_mini_world(settings: MiniWorldData, folder: Path) -> None:
    """The generated world in the canonical formats (docs/formats.md)."""
    (folder / "images").mkdir()
    pen = Pen("train")
    tasks = all_sources() if settings.units == "sources" else all_tasks()
    with Progress("data", len(tasks) + len(RECIPES) * 2 + 1) as progress:
        rng = _stream(settings, "mixture")
        pool = _image_pool(settings.num_images, rng)
        for index, scene in enumerate(pool):
            _image(folder, "m", index).write_bytes(png(draw_scene(scene, pen)))
        sizes = task_sizes(tasks, settings.num_examples, settings.size_spread, rng)
        for task, size in zip(tasks, sizes, strict=True):
            examples = mixture_examples(task, size, pool, rng)
            rows = [example.to_json() for example in examples]
            write_jsonl(folder / "mixture" / f"{task.name}.jsonl", rows)
            progress.advance()
        write_json(
            folder / "tasks.json",
            [
                {"task": t.name, "family": t.family, "style": t.style, "num_examples": size}
                for t, size in zip(tasks, sizes, strict=True)
            ],
        )
        write_conversations(settings, folder)
        if settings.num_recaptions:
            _write_recaptions(settings, folder, pen)
        progress.advance()
        for split, size in (
            ("test", settings.num_questions),
            ("validation", settings.num_validation_questions),
        ):
            target = folder / "benchmarks" / ("" if split == "test" else split)
            for i, benchmark in enumerate(RECIPES):
                rng = np.random.default_rng([settings.seed, STREAMS[split], i])
                write_tsv(
                    target / f"{benchmark}.tsv", benchmark_rows(benchmark, size, rng, Pen("test"))
                )
                progress.advance()


def mixture_examples(
    task: Task, size: int, pool: list[Scene], rng: np.random.Generator
) -> list[Example]:
    """`size` examples of one task over images of the pool that allow its question.

    Raises MeritError where the pool seems to hold no such image.
    """
    fitting = [i for i, scene in enumerate(pool) if scene.kind in task.kinds]
    examples: list[Example] = []
    misses = 0  # in a row
    while len(examples) < size:
        if misses > 100 * len(fitting):
            raise MeritError(
                f"task {task.name!r}: none of {len(fitting)} images allows its question; raise "
                "`data.num_images`"
            )
        image = fitting[int(rng.integers(len(fitting)))]
        turn = ask_task(task, pool[image], rng)
        misses = misses + 1 if turn is None else 0
        if turn is not None:
            identifier = f"{task.name}-{len(examples)}"
            examples.append(make_example(identifier, task.name, [turn], (_relative("m", image),)))
    return examples


def write_conversations(settings: MiniWorldData, folder: Path) -> None:
    """conversations.jsonl and captions.jsonl, with their images (`folder`/images exists)."""
    rng, pen = _stream(settings, "conversations"), Pen("train")
    known = known_skills(settings.num_new_skills)
    conversations, captions = [], []
    for i in range(settings.num_conversations):
        turns: list[tuple[str, str]] = []
        while not turns:
            scene = sample_scene(rng)
            turns = converse(scene, rng, known)
        _image(folder, "c", i).write_bytes(png(draw_scene(scene, pen)))
        images = (_relative("c", i),)
        conversations.append(make_example(f"conversation-{i}", "conversation", turns, images))
        caption = [(READ[int(rng.integers(len(READ)))], reading(scene))]
        captions.append(make_example(f"caption-{i}", "caption", caption, images))
    write_jsonl(folder / "conversations.jsonl", [e.to_json() for e in conversations])
    write_jsonl(folder / "captions.jsonl", [e.to_json() for e in captions])


def _write_recaptions(settings: MiniWorldData, folder: Path, pen: Pen) -> None:
    """Long captions of further images: what stage 1.5 learns from (METHOD 4, the scaled base)."""
    rng = _stream(settings, "recaptions")
    captions = []
    for i in range(settings.num_recaptions):
        scene = sample_scene(rng)
        _image(folder, "r", i).write_bytes(png(draw_scene(scene, pen)))
        prompts, text = (DESCRIBE, description(scene)) if i % 2 else (READ, reading(scene))
        turn = (prompts[int(rng.integers(len(prompts)))], text)
        captions.append(make_example(f"recaption-{i}", "recaption", [turn], (_relative("r", i),)))
    write_jsonl(folder / "recaptions.jsonl", [e.to_json() for e in captions])


def _image_pool(count: int, rng: np.random.Generator) -> list[Scene]:
    """Scenes of the mixture; the kinds in the proportion of the tasks that ask about them."""
    shares = {"shapes": 0.5, "sign": 0.16, "chart": 0.2, "sum": 0.14}
    counts = {kind: max(8, round(count * shares[kind])) for kind in KINDS}
    return [sample_scene(rng, kind) for kind in KINDS for _ in range(counts[kind])]


def write_tsv(path: Path, rows: list[dict[str, str]]) -> None:
    """Tab-separated values as VLMEvalKit reads them; a column that a row lacks is empty."""
    columns = [c for c in ("index", "image", "question", *"ABCD", "answer", "category")]
    used = [column for column in columns if any(column in row for row in rows)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, used, delimiter="\t", lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, buffer.getvalue())


def _stream(settings: MiniWorldData, part: str) -> np.random.Generator:
    return np.random.default_rng([settings.seed, STREAMS[part]])


def _relative(prefix: str, index: int) -> str:
    return f"images/{prefix}{index:05d}.png"


def _image(folder: Path, prefix: str, index: int) -> Path:
    return folder / _relative(prefix, index)

"""The mini world's files, in the canonical formats (docs/formats.md)."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from merit.config import MiniWorldData
from merit.data.examples import Example, make_example
from merit.errors import MeritError
from merit.io.artifacts import atomic_write, write_json, write_jsonl
from merit.io.progress import Progress
from merit.mini.world.base_conversations import (
    DESCRIBE,
    READ,
    converse,
    description,
    known_skills,
    reading,
)
from merit.mini.world.draw import Pen, draw_scene
from merit.mini.world.scene import KINDS, Scene, sample_scene
from merit.mini.world.telling import tell
from merit.mini.world.world_benchmarks import (
    RECIPES,
    TOLD_RECIPES,
    benchmark_rows,
    png,
    told_rows,
)
from merit.mini.world.world_tasks import Task, all_sources, all_tasks, ask_task, task_sizes

Turn = tuple[str, str]
# an independent stream of random numbers per part: resizing one leaves the others unchanged
STREAMS = {"mixture": 1, "conversations": 2, "test": 3, "validation": 4, "recaptions": 5}

# an archive per part, beside the examples that refer to it
PICTURES = {
    "mixture": "images.zip/m",
    "conversations": "conversations.zip/c",
    "recaptions": "recaptions.zip/r",
}


def write_mini_world(settings: MiniWorldData, folder: Path) -> None:
    """The mixture, the base's conversations and captions, and the benchmarks' two splits."""
    pen, told = Pen("train"), settings.source == "mini_text"
    recipes = TOLD_RECIPES if told else RECIPES
    tasks = all_sources() if settings.units == "sources" else all_tasks()
    with Progress("data", len(tasks) + len(recipes) * 2 + 1) as progress:
        rng = _stream(settings, "mixture")
        pool = _image_pool(settings.num_images, rng)
        if not told:
            _write_pictures(folder / "mixture", "mixture", pool, pen)
        sizes = task_sizes(tasks, settings.num_examples, settings.size_spread, rng)
        for task, size in zip(tasks, sizes, strict=True):
            examples = mixture_examples(task, size, pool, rng, told)
            rows = [example.to_json() for example in examples]
            write_jsonl(folder / "mixture" / f"{task.name}.jsonl", rows)
            progress.advance()
        write_json(
            folder / "mixture" / "tasks.json",
            [
                {"task": t.name, "family": t.family, "style": t.style, "num_examples": size}
                for t, size in zip(tasks, sizes, strict=True)
            ],
        )
        if settings.num_conversations:
            write_conversations(settings, folder / "pretraining")
        if settings.num_recaptions:
            _write_recaptions(settings, folder / "pretraining", pen)
        progress.advance()
        for split, size in (
            ("test", settings.num_questions),
            ("validation", settings.num_validation_questions),
        ):
            target = folder / "benchmarks" / ("" if split == "test" else split)
            for i, benchmark in enumerate(recipes):
                rng = np.random.default_rng([settings.seed, STREAMS[split], i])
                if told:
                    rows = told_rows(benchmark, size, rng)
                    write_jsonl(target / f"{benchmark}.jsonl", rows)
                else:
                    rows = benchmark_rows(benchmark, size, rng, Pen("test"))
                    write_tsv(target / f"{benchmark}.tsv", rows)
                progress.advance()


def mixture_examples(
    task: Task, size: int, pool: list[Scene], rng: np.random.Generator, told: bool = False
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
            seen = pool[image] if told else _picture("mixture", image)
            examples.append(_example(identifier, task.name, [turn], seen))
    return examples


def write_conversations(settings: MiniWorldData, folder: Path) -> None:
    """conversations.jsonl and captions.jsonl, with their images in conversations.zip."""
    rng, told = _stream(settings, "conversations"), settings.source == "mini_text"
    known = known_skills(settings.num_new_skills)
    conversations, captions, scenes = [], [], []
    for i in range(settings.num_conversations):
        turns: list[tuple[str, str]] = []
        while not turns:
            scene = sample_scene(rng)
            turns = converse(scene, rng, known)
        scenes.append(scene)
        seen = scene if told else _picture("conversations", i)
        conversations.append(_example(f"conversation-{i}", "conversation", turns, seen))
        caption = [(READ[int(rng.integers(len(READ)))], reading(scene))]
        captions.append(_example(f"caption-{i}", "caption", caption, seen))
    write_jsonl(folder / "conversations.jsonl", [e.to_json() for e in conversations])
    write_jsonl(folder / "captions.jsonl", [e.to_json() for e in captions])
    if not told:
        _write_pictures(folder, "conversations", scenes, Pen("train"))


def _write_recaptions(settings: MiniWorldData, folder: Path, pen: Pen) -> None:
    """Long captions of more images, for stage 1.5 (the scaled base, table 3)."""
    rng = _stream(settings, "recaptions")
    captions, scenes = [], []
    for i in range(settings.num_recaptions):
        scene = sample_scene(rng)
        scenes.append(scene)
        prompts, text = (DESCRIBE, description(scene)) if i % 2 else (READ, reading(scene))
        turn = (prompts[int(rng.integers(len(prompts)))], text)
        images = (_picture("recaptions", i),)
        captions.append(make_example(f"recaption-{i}", "recaption", [turn], images))
    write_jsonl(folder / "recaptions.jsonl", [e.to_json() for e in captions])
    _write_pictures(folder, "recaptions", scenes, pen)


def _image_pool(count: int, rng: np.random.Generator) -> list[Scene]:
    """Scenes of the mixture; kinds in proportion to the tasks that ask about them."""
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


def _write_pictures(folder: Path, part: str, scenes: Iterable[Scene], pen: Pen) -> None:
    """A part's pictures in one archive; the same scenes are the same bytes."""
    path = folder / Path(_picture(part, 0)).parent
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:  # uncompressed: PNG is compressed already
        for index, scene in enumerate(scenes):
            member = zipfile.ZipInfo(Path(_picture(part, index)).name)  # dated 1980-01-01
            archive.writestr(member, png(draw_scene(scene, pen)))


def _example(identifier: str, task: str, turns: list[Turn], seen: Scene | str) -> Example:
    """An example about a picture, given by its place, or about a scene that is told in words."""
    if isinstance(seen, str):
        return make_example(identifier, task, turns, (seen,))
    (prompt, answer), *rest = turns
    return make_example(identifier, task, [(f"{tell(seen)}\n{prompt}", answer), *rest], ())


def _picture(part: str, index: int) -> str:
    """An example's reference to its image: `images.zip/m00001.png`."""
    return f"{PICTURES[part]}{index:05d}.png"

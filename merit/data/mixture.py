"""A mixture of public sources or of one's own files, as the data stage writes it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from merit.config.data import JsonlData, PublicData, PublicSource, TaskRule
from merit.data.drawing import (
    Part,
    Spool,
    choose_tasks,
    convert_all,
    draw,
    wanted_before_reading,
)
from merit.data.examples import ESCAPED
from merit.data.hub import describe, provide
from merit.data.images import ImageFinder
from merit.data.sources.own import source_of
from merit.data.sources.public import PUBLIC
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.io.artifacts import file_hash, write_json
from merit.io.progress import Progress

DESCRIBED = (".arrow", ".json", ".jsonl", ".parquet", ".zip")  # unpacked images are not hashed
SPLITS = (("mixture", "num_examples"), ("held_out", "num_held_out"))


def write_public(settings: PublicData, folder: Path) -> None:
    """Write the mixture, the share held out of it, the base's data, and `manifest.json`.

    Raises MeritError for what a user can mend.
    """
    entries = [
        _write(_part(entry, settings, folder, f"data.sources[{i}]"), folder)
        for i, entry in enumerate(settings.sources)
    ]
    pretraining = {}
    for name, phase in settings.pretraining.items():
        key = f"data.pretraining.{name}"
        parts = [_part(e, settings, folder, f"{key}[{i}]", name) for i, e in enumerate(phase)]
        pretraining[name] = [_write(part, folder) for part in parts]
    _finish(folder, settings.seed, entries, pretraining)


def write_own(settings: JsonlData, folder: Path) -> None:
    """Write the same from one's own files. Raises MeritError as `write_public` does."""
    root, source = source_of(Path(settings.folder), settings.columns)
    part = Part(
        name=Path(settings.folder).name,
        source=source,
        folder=root,
        images=ImageFinder(root, folder / "mixture"),
        settings=settings,
        tasks=settings.tasks,
        key="data.tasks",
        max_examples=settings.max_examples,
    )
    _finish(folder, settings.seed, [_write(part, folder)], {})


def _part(
    entry: PublicSource, settings: PublicData, folder: Path, key: str, phase: str = ""
) -> Part:
    source = PUBLIC[entry.name]
    if entry.images and source.images in ("rows", "none"):
        raise MeritError(f"key `{key}.images`: {entry.name} has no images outside its own files")
    if entry.revision and source.repository is None:
        raise MeritError(f"key `{key}.revision`: {entry.name} is not read from the hub")
    place = images = Path(entry.folder or f"{settings.folder}/{entry.name}")
    if entry.images or source.images == "shared":
        images = Path(entry.images or f"{settings.folder}/images")
        if not images.is_dir():
            raise MeritError(f"{images}: image folder missing; {entry.name} names its images in it")
    return Part(
        name=entry.name,
        source=replace(source, revision=entry.revision or source.revision),
        folder=place,
        images=ImageFinder(images, folder / "mixture"),
        settings=settings,
        tasks=entry.tasks,
        key=f"{key}.tasks",
        prefix=entry.prefix,
        max_examples=entry.max_examples,
        max_turns=entry.max_turns,
        max_records=entry.max_records,
        phase=phase,
    )


def _write(part: Part, folder: Path) -> dict[str, Any]:
    """Read one source and write what is taken of it; its entry in the manifest."""
    source, wanted = part.source, wanted_before_reading(part)
    archives = source.archives if part.images.root == part.folder else ()
    found = provide(
        part.folder,
        [*source.patterns(wanted), *archives],
        source.repository,
        source.revision,
        isinstance(part.settings, PublicData) and part.settings.download,
        source.hint,
    )
    with tempfile.TemporaryFile(dir=folder) as file:
        spool = Spool(file)
        convert_all(part, spool, wanted)
        chosen, num_found = choose_tasks(part, spool, wanted)
        with Progress(part.name, len(chosen)) as progress:
            tasks = []
            for task in chosen:
                tasks.append(_write_task(part, spool, task, folder))
                progress.advance()
    rule = part.tasks.model_dump() if isinstance(part.tasks, TaskRule) else {"listed": len(chosen)}
    return {
        "source": part.name,
        "repository": source.repository,
        "revision": source.revision,
        "licence": source.licence,
        "files": [describe(part.folder, path) for path in found if path.suffix in DESCRIBED],
        "num_records": spool.num_records,
        "num_records_stated": source.num_records,
        "selection": {"seed": part.settings.seed, "num_tasks_found": num_found, **rule},
        "tasks": tasks,
        "bad_records": [
            {"task": task, **entry} for task in ["", *chosen] for entry in spool.bad[task]
        ],
    }


def _write_task(part: Part, spool: Spool, task: str, folder: Path) -> dict[str, Any]:
    """Draw the task's examples and write them; its entry in the manifest."""
    num_records = spool.count(task) + len(spool.bad[task])
    good = draw(part, spool, task)
    if not good:
        raise MeritError(
            f"{part.folder}: task {task!r}: no example is left of {num_records} records"
        )
    share = 0.0 if part.phase else part.settings.held_out
    num_held = min(len(good) - 1, max(round(share * len(good)), int(share > 0)))
    held, name, num_escaped = set(good[:num_held]), f"{part.prefix}{task}", 0
    for index, (_, example) in zip(sorted(good), spool.read(task, sorted(good)), strict=True):
        split = "held_out" if index in held else "mixture"
        path = task_file(folder / split, name)
        if part.phase:
            path = task_file(folder / "pretraining", part.phase)
        num_escaped += any(ESCAPED in message["content"] for message in example["messages"])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            line = json.dumps({**example, "task": name}, ensure_ascii=False)
            file.write(line.encode() + b"\n")
    return {
        "task": name,
        "num_available": spool.count(task),
        "num_examples": len(good) - num_held,
        "num_held_out": num_held,
        "num_escaped": num_escaped,
    }


def _finish(
    folder: Path,
    seed: int,
    entries: list[dict[str, Any]],
    pretraining: dict[str, list[dict[str, Any]]],
) -> None:
    """Write tasks.json of every split, the manifest, and the folders that later stages expect.

    Raises MeritError if two tasks have one name, or one on file systems that ignore case.
    """
    taken: dict[str, str] = {}  # a task's name without case -> which task that is
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        for task in entry["tasks"]:
            name = task["task"]
            this = f"{name!r} of {entry['source']}"
            if other := taken.get(name.casefold()):
                raise MeritError(
                    f"tasks {other} and {this}: their files would be one where case is "
                    "ignored; give a source a `prefix`, or leave one of them out"
                )
            taken[name.casefold()] = this
            row = {"task": name, "family": entry["source"], "style": ""}
            for split, key in SPLITS:
                if task[key]:
                    task[f"{split}_sha256"] = file_hash(task_file(folder / split, name))
                    rows[split].append({**row, "num_examples": task[key]})
    for split, found in rows.items():
        write_json(folder / split / "tasks.json", sorted(found, key=lambda row: str(row["task"])))
    for name, parts in pretraining.items():
        parts[0]["file_sha256"] = file_hash(task_file(folder / "pretraining", name))
    for name in ("pretraining", "benchmarks"):
        (folder / name).mkdir(exist_ok=True)
    manifest = {"seed": seed, "mixture": entries, "pretraining": pretraining}
    write_json(folder / "manifest.json", manifest)

"""Writers of mixtures that are read: `source: public` and `source: jsonl`, one's own files."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from merit.config.data import JsonlData, PublicData, PublicSource, SourceName, TaskRule
from merit.data.hub import describe, files, provide
from merit.data.images import ImageFinder
from merit.data.mixture import (
    Part,
    Rules,
    Spool,
    append,
    convert_all,
    wanted_before_reading,
    write_part,
)
from merit.data.source import Source
from merit.data.sources.own import source_of
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.io.artifacts import file_hash, write_json

NAMES: tuple[str, ...] = get_args(SourceName)
DESCRIBED = (".json", ".jsonl", ".parquet", ".zip")  # images that lie unpacked are not hashed
Write = Callable[[str, str, dict[str, Any]], None]


def reader(name: str) -> Source:
    """The public source of this name."""
    source: Source = importlib.import_module(f"merit.data.sources.{name}").SOURCE
    return source


def write_public(settings: PublicData, folder: Path) -> None:
    """The mixture, the share held out of it, what the base's phases read, and `manifest.json`.

    Images are referred to, never copied. Raises MeritError for what a user can mend
    (merit.data.hub, merit.data.mixture).
    """
    rules, add = _rules(settings), append(folder)
    entries = [
        _write(_part(entry, settings, folder, f"data.sources[{i}]"), rules, folder, add)
        for i, entry in enumerate(settings.sources)
    ]
    pretraining = {}
    for name, phase in settings.pretraining.items():
        # all tasks in one file, nothing held out
        def write(task: str, split: str, example: dict[str, Any], name: str = name) -> None:
            add(name, "pretraining", example)

        key = f"data.pretraining.{name}"
        whole = replace(rules, held_out=0.0)
        parts = [_part(e, settings, folder, f"{key}[{i}]") for i, e in enumerate(phase)]
        pretraining[name] = [_write(part, whole, folder, write) for part in parts]
    _finish(folder, settings.seed, entries, pretraining)


def write_own(settings: JsonlData, folder: Path) -> None:
    """The same from a folder of JSONL files. Raises MeritError as `write_public` does."""
    root = Path(settings.folder)
    if not root.is_dir():
        raise MeritError(f"key `data.folder`: {root}: no such folder")
    part = Part(
        name=root.name,
        source=source_of(root),
        folder=root,
        pictures=ImageFinder(root, folder / "mixture"),
        tasks=settings.tasks,
        key="data.tasks",
        max_examples=settings.max_examples,
    )
    _finish(folder, settings.seed, [_write(part, _rules(settings), folder, append(folder))], {})


def needs(settings: PublicData) -> list[dict[str, Any]]:
    """What a mixture needs before it can be written, a row a source, nothing fetched.

    `missing` are the patterns that are not in its folder, `gigabytes` (of the whole source; None:
    not known) what the hub has of it, `images` a folder of shared images and whether it is there.
    """
    entries = [*settings.sources, *(e for phase in settings.pretraining.values() for e in phase)]
    rows = []
    for entry in entries:
        source, wanted = reader(entry.name), None
        if source.tasks and not isinstance(entry.tasks, TaskRule):
            wanted = entry.tasks
        place, images = _places(entry, settings)
        patterns = [*source.files(wanted), *(source.archives if images == place else ())]
        missing = [pattern for pattern in patterns if not files(place, [pattern])]
        rows.append(
            {
                "source": entry.name,
                "folder": str(place),
                "repository": source.repository,
                "revision": entry.revision or source.revision,
                "gated": source.gated,
                "missing": missing,
                "gigabytes": source.gigabytes,
                "hint": source.hint,
                "images": "" if images == place else str(images),
                "images_here": images.is_dir(),
            }
        )
    return rows


def _places(entry: PublicSource, settings: PublicData) -> tuple[Path, Path]:
    """(the source's folder, the folder of its images)."""
    place = Path(entry.folder or f"{settings.folder}/{entry.name}")
    if entry.images or reader(entry.name).images == "shared":
        return place, Path(entry.images or f"{settings.folder}/images")
    return place, place


def _part(entry: PublicSource, settings: PublicData, folder: Path, key: str) -> Part:
    source = reader(entry.name)
    if entry.images and source.images in ("rows", "none"):
        raise MeritError(f"key `{key}.images`: {entry.name} has no images outside its own files")
    if entry.revision and source.repository is None:
        raise MeritError(f"key `{key}.revision`: {entry.name} is not read from the hub")
    place, images = _places(entry, settings)
    if images != place and not images.is_dir():
        raise MeritError(f"{images}: image folder missing; {entry.name} names its images in it")
    return Part(
        name=entry.name,
        source=replace(source, revision=entry.revision or source.revision),
        folder=place,
        pictures=ImageFinder(images, folder / "mixture"),
        tasks=entry.tasks,
        key=f"{key}.tasks",
        prefix=entry.prefix,
        max_examples=entry.max_examples,
        max_turns=entry.max_turns,
        max_records=entry.max_records,
        download=settings.download,
    )


def _write(part: Part, rules: Rules, folder: Path, write: Write) -> dict[str, Any]:
    """Read one source and write what is taken of it; its entry in the manifest."""
    source, wanted = part.source, wanted_before_reading(part, rules.seed)
    patterns = source.files(wanted)
    if part.pictures.root == part.folder:
        patterns = [*patterns, *source.archives]
    found = provide(
        part.folder, patterns, source.repository, source.revision, part.download, source.hint
    )
    with tempfile.TemporaryFile(dir=folder) as file:
        spool = Spool(file)
        convert_all(part, spool, wanted)
        result = write_part(part, rules, spool, wanted, write)
    return {
        "source": part.name,
        "repository": source.repository,
        "revision": source.revision,
        "licence": source.licence,
        "files": [describe(part.folder, path) for path in found if path.suffix in DESCRIBED],
        **result,
    }


def _rules(settings: PublicData | JsonlData) -> Rules:
    return Rules(
        settings.seed,
        settings.held_out,
        settings.on_bad_record,
        settings.check_images == "decode",
    )


def _finish(
    folder: Path,
    seed: int,
    entries: list[dict[str, Any]],
    pretraining: dict[str, list[dict[str, Any]]],
) -> None:
    """tasks.json of every split, the manifest, and the folders that later stages look for.

    Raises MeritError where two tasks have one name, or one on file systems that ignore case.
    """
    taken: dict[str, str] = {}  # a task's name, case ignored -> which task that is
    for entry in entries:
        for task in entry["tasks"]:
            name, key = task["task"], task["task"].casefold()
            this = f"{name!r} of {entry['source']}"
            if key in taken:
                raise MeritError(
                    f"tasks {taken[key]} and {this}: their files would be one where case is "
                    "ignored; give a source a `prefix`, or leave one of them out"
                )
            taken[key] = this
            for split, key in (("mixture", "num_examples"), ("held_out", "num_held_out")):
                if task[key]:
                    task[f"{split}_sha256"] = file_hash(task_file(folder / split, name))
    for split, key in (("mixture", "num_examples"), ("held_out", "num_held_out")):
        rows = [
            {
                "task": task["task"],
                "family": entry["source"],
                "style": "",
                "num_examples": task[key],
            }
            for entry in entries
            for task in entry["tasks"]
            if task[key]
        ]
        if rows:
            write_json(
                folder / split / "tasks.json", sorted(rows, key=lambda row: str(row["task"]))
            )
    for name in pretraining:
        pretraining[name][0]["file_sha256"] = file_hash(task_file(folder / "pretraining", name))
    for name in ("pretraining", "benchmarks"):
        (folder / name).mkdir(exist_ok=True)
    write_json(
        folder / "manifest.json",
        {"seed": seed, "mixture": entries, "pretraining": pretraining},
    )

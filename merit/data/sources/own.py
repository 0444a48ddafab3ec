"""One's own mixture: a folder of JSONL files in chat form, one a task; no hub.

`<task>.jsonl`, a line an example: `{"messages": [{"role": "user", "content": "..."}, {"role":
"assistant", "content": "..."}], "images": ["pictures/x.png"]}`. `<image>` in a prompt marks where
the next image stands; `images` are relative to the folder, may lead into zip archives and parquet
files, and may be left out, as `id` and `task` may. A task whose name does not suit a file has it
percent-encoded (`task_file`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from merit.data.examples import BadRecord, Example, escape, example_from
from merit.data.images import ImageFinder
from merit.data.records import text_lines
from merit.data.source import Record, Source
from merit.data.tasks import task_file, task_of_file
from merit.errors import MeritError


def source_of(folder: Path) -> Source:
    """The folder as a source. Raises MeritError where it holds no JSONL file."""
    tasks = tuple(sorted(task_of_file(path) for path in folder.glob("*.jsonl")))
    if not tasks:
        raise MeritError(f"{folder}: no .jsonl file; one for each task is expected there")
    return Source(
        repository=None,
        revision=None,
        licence="the user's own",
        files=lambda wanted: [
            task_file(Path(), task).name for task in tasks if wanted is None or task in wanted
        ],
        records=records,
        convert=convert,
        tasks=tasks,
    )


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every line of the tasks that are wanted; whether it is JSON shows when it is converted."""
    for path in sorted(folder.glob("*.jsonl")):
        task = task_of_file(path)
        if tasks is None or task in tasks:
            for number, line in enumerate(text_lines(path), start=1):
                where = f"{path.name}, line {number}"
                yield Record(where, task, {"line": line}, f"{task}-{number}")


def convert(record: Record, pictures: ImageFinder) -> Example:
    """The line's example, its images found. Raises BadRecord."""
    try:
        value = json.loads(record.value["line"])
    except json.JSONDecodeError as error:
        raise BadRecord(f"not valid JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(value, dict):
        raise BadRecord(f"expected an object, found {value!r:.80}")
    value = {"id": record.id, "task": record.task, "images": [], **value}
    if value["task"] != record.task:
        raise BadRecord(f"`task` is {value['task']!r}, but the file is {record.task!r}'s")
    try:
        example = example_from(value | {"messages": _escaped(value.get("messages"))}, record.where)
    except MeritError as error:
        raise BadRecord(str(error).removeprefix(f"{record.where}: ")) from None
    if not all(m["content"].strip() for m in example.messages if m["role"] == "assistant"):
        raise BadRecord("without an answer: an assistant's message is empty")
    return replace(example, images=tuple(pictures.find(image) for image in example.images))


def _escaped(messages: Any) -> Any:
    """The messages with `<image>` in answers as text."""
    return [
        {**message, "content": escape(message["content"])}
        if isinstance(message, dict)
        and message.get("role") == "assistant"
        and isinstance(message.get("content"), str)
        else message
        for message in messages
    ] if isinstance(messages, list) else messages  # fmt: skip

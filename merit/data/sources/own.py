"""One's own mixture: a folder of JSONL files in chat form, one per task (docs/sources.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from merit.data.examples import BadRecord, Example, escape, example_from
from merit.data.images import ImageFinder
from merit.data.records import Record, Source, TaskOf, text_lines
from merit.data.tasks import task_of_file
from merit.errors import MeritError
from merit.io.texts import parse_object


def source_of(folder: Path) -> Source:
    """The folder as a source. Raises MeritError if it holds no JSONL file."""
    tasks = tuple(sorted(task_of_file(path) for path in folder.glob("*.jsonl")))
    if not tasks:
        raise MeritError(f"{folder}: no .jsonl file; one for each task is expected there")
    return Source(
        repository=None,
        revision=None,
        licence="the user's own",
        files="{task}.jsonl",
        read=lines,
        convert=convert,
        tasks=tasks,
    )


def lines(folder: Path, name: str, task_of: TaskOf) -> Iterator[Record]:
    """Every line of a file, unparsed: one that is not JSON is a bad record."""
    for number, line in enumerate(text_lines(folder / name), start=1):
        task = task_of({})
        yield Record(f"{name}, line {number}", task, {"line": line}, f"{task}-{number}")


def convert(record: Record, images: ImageFinder) -> Example:
    """The line's example, its images found. Raises BadRecord."""
    try:
        stated = parse_object(record.value["line"], record.where)
        value = {"id": record.id, "task": record.task, "images": [], **stated}
        if value["task"] != record.task:
            raise BadRecord(f"`task` is {value['task']!r}, but the file is {record.task!r}'s")
        if isinstance(value.get("messages"), list):
            value["messages"] = [_escaped(message) for message in value["messages"]]
        example = example_from(value, record.where)
    except MeritError as error:
        raise BadRecord(str(error).removeprefix(f"{record.where}: ")) from None
    if not all(m["content"].strip() for m in example.messages if m["role"] == "assistant"):
        raise BadRecord("without an answer: an assistant's message is empty")
    return replace(example, images=tuple(images.find(image) for image in example.images))


def _escaped(message: Any) -> Any:
    """The message; `<image>` in an answer is text."""
    is_answer = isinstance(message, dict) and message.get("role") == "assistant"
    if is_answer and isinstance(message.get("content"), str):
        return {**message, "content": escape(message["content"])}
    return message

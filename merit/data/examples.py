"""The canonical example: what every source is converted to, and what training reads.

One JSON object per line: `id`, `task`, `messages` (turns of `role` and `content`, the first
possibly the system's) and `images`
(paths relative to the file's folder: files, or members of an archive such as `images.zip/x.png`).
`<image>` in a message marks where the next image stands. A source's text that holds these
characters as text would shift every image after it: in answers, and in prompts of a source without
marks, they become `< image>`. A surplus mark in a prompt of a source with marks is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merit.errors import MeritError
from merit.io.texts import jsonl_records

IMAGE_TOKEN = "<image>"
ESCAPED = "< image>"
KEYS = {"id", "task", "messages", "images"}
LLAVA = {"human": "user", "gpt": "assistant", "system": "system"}  # its words for the roles


class BadRecord(MeritError):
    """A record that is no example; the message says why, its reader adds file and number."""


@dataclass(frozen=True)
class Example:
    """One conversation about zero or more images."""

    id: str
    task: str
    messages: tuple[dict[str, str], ...]
    images: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        lists = {"messages": list(self.messages), "images": list(self.images)}
        return {"id": self.id, "task": self.task, **lists}


def make_example(
    identifier: str, task: str, turns: Sequence[tuple[str, str]], images: tuple[str, ...]
) -> Example:
    """An example from (prompt, answer) turns; the images stand before the first prompt."""
    messages = []
    for i, (prompt, answer) in enumerate(turns):
        content = (IMAGE_TOKEN + "\n") * len(images) + prompt if i == 0 else prompt
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": answer})
    return Example(identifier, task, tuple(messages), images)


# --- from a source's conversations --------------------------------------------------------------


def escape(text: str) -> str:
    """The text without marks of images."""
    return text.replace(IMAGE_TOKEN, ESCAPED)


def from_turns(
    identifier: str, task: str, turns: Sequence[tuple[Any, Any]], images: tuple[str, ...]
) -> Example:
    """An example from (prompt, answer) turns of a source without marks. Raises BadRecord."""
    said = [turn for pair in turns for turn in zip(("user", "assistant"), pair, strict=True)]
    return from_roles(identifier, task, _unmarked(said), images)


def from_llava(
    identifier: str, task: str, conversations: Any, images: tuple[str, ...], marked: bool = True
) -> Example:
    """An example from LLaVA's `[{"from": "human" | "gpt", "value": text}, ...]`.

    Marks stay in place in the prompts; the images of a source that is not `marked` stand before
    the first prompt. A leading gpt entry is left out, as in LLaVA's own training; a leading system
    entry is a system turn. Raises BadRecord.
    """
    if not isinstance(conversations, list) or not all(isinstance(m, dict) for m in conversations):
        raise BadRecord(f"`conversations` must be a list of turns, found {conversations!r:.80}")
    turns = []
    for message in conversations:
        who = message.get("from")
        turns.append((LLAVA.get(str(who), repr(who)), message.get("value")))
    start = int(bool(turns) and turns[0][0] == "system")
    if len(turns) > start and turns[start][0] == "assistant":
        del turns[start]
    example = from_roles(identifier, task, turns if marked else _unmarked(turns), images)
    if marked and images and not any(IMAGE_TOKEN in text for role, text in turns if role == "user"):
        raise BadRecord(f"0 `{IMAGE_TOKEN}` in the prompts, but {len(images)} images")
    return example


def from_roles(
    identifier: str, task: str, turns: Sequence[tuple[Any, Any]], images: tuple[str, ...]
) -> Example:
    """An example from turns (role, text): the system's, if any, then user's and assistant's.

    `<image>` is a mark only in a prompt. Images without any mark stand before the first prompt.
    Raises BadRecord if roles do not alternate, the assistant does not speak last, an answer is
    empty, or marks are not as many as images.
    """
    start = int(bool(turns) and turns[0][0] == "system")
    for i, (role, text) in enumerate(turns, start=1 - start):
        expected = ("assistant", "user")[i % 2] if i else "system"
        if role != expected:
            raise BadRecord(f"turn {i} is from {role}, expected {expected}")
        if role == "assistant" and (not isinstance(text, str) or not text.strip()):
            raise BadRecord(f"without an answer: turn {i} is {text!r:.80}")
        if not isinstance(text, str):
            raise BadRecord(f"turn {i} must be text, found {text!r:.80}")
    if len(turns) == start or (len(turns) - start) % 2:
        raise BadRecord("without an answer: the assistant must speak last")
    messages = [
        {"role": role, "content": text if role == "user" else escape(text)} for role, text in turns
    ]
    marks = sum(m["content"].count(IMAGE_TOKEN) for m in messages)
    if not marks:
        messages[start]["content"] = (IMAGE_TOKEN + "\n") * len(images) + turns[start][1]
    elif marks != len(images):
        raise BadRecord(f"{marks} `{IMAGE_TOKEN}` in the prompts, but {len(images)} images")
    return Example(identifier, task, tuple(messages), images)


def _unmarked(turns: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return [(role, escape(text) if isinstance(text, str) else text) for role, text in turns]


def split_turns(example: Example, max_turns: int) -> list[Example]:
    """The example as several of at most `max_turns` turns, each with all images in front.

    Raises BadRecord if an image is marked after the first prompt, and so belongs to a turn.
    """
    if example.messages[0]["role"] == "system":
        system, *messages = example.messages
        parts = split_turns(replace(example, messages=tuple(messages)), max_turns)
        return [replace(part, messages=(system, *part.messages)) for part in parts]
    contents = [message["content"] for message in example.messages]
    turns = list(zip(contents[::2], contents[1::2], strict=True))
    if len(turns) <= max_turns:
        return [example]
    if any(IMAGE_TOKEN in prompt for prompt, _ in turns[1:]):
        raise BadRecord("`max_turns`: an image stands after the first prompt")
    plain = [(prompt.replace(IMAGE_TOKEN, "").strip("\n"), answer) for prompt, answer in turns]
    return [
        make_example(
            f"{example.id}-{part}", example.task, plain[start:][:max_turns], example.images
        )
        for part, start in enumerate(range(0, len(turns), max_turns))
    ]


# --- from a JSONL file --------------------------------------------------------------------------


def read_examples(path: Path) -> list[Example]:
    """Every example of a JSONL file. Raises MeritError as `iter_examples` does."""
    return list(iter_examples(path))


def iter_examples(path: Path) -> Iterator[Example]:
    """The examples of a JSONL file, one line in memory at a time.

    Raises MeritError that names file and line: not JSON, keys missing or unknown, roles that do
    not alternate, image marks that do not match the images, an empty file.
    """
    number = 0
    for number, value in enumerate(jsonl_records(path), start=1):
        yield example_from(value, f"{path}, line {number}")
    if not number:
        raise MeritError(f"{path}: zero examples; remove the task or give it at least one example")


def example_from(value: dict[str, Any], where: str) -> Example:
    """The example of one JSON object. Raises MeritError that begins with `where`."""
    if set(value) != KEYS:
        raise MeritError(f"{where}: expected the keys {sorted(KEYS)}, found {sorted(value)}")
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise MeritError(f"{where}: `messages` must be a list with at least one turn")
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    system = roles[0] == "system"
    for i, message in enumerate(messages):
        role = "system" if system and i == 0 else ("user", "assistant")[(i - system) % 2]
        if roles[i] != role or not isinstance(message.get("content"), str):
            raise MeritError(
                f"{where}: messages[{i}] must have role {role!r} and text, found {message!r:.80}"
            )
    if (len(messages) - system) % 2:
        raise MeritError(f"{where}: the last message must be the assistant's answer")
    images = value["images"]
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise MeritError(f"{where}: `images` must be a list of paths, found {images!r:.80}")
    marks = sum(message["content"].count(IMAGE_TOKEN) for message in messages)
    if marks != len(images):
        raise MeritError(f"{where}: {marks} `{IMAGE_TOKEN}` marks but {len(images)} images")
    return Example(str(value["id"]), str(value["task"]), tuple(messages), tuple(images))

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
from merit.io.disk import check_file
from merit.io.texts import parse_object

IMAGE_TOKEN = "<image>"
ESCAPED = "< image>"
KEYS = {"id", "task", "messages", "images"}


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
    prompts = [(escape(p) if isinstance(p, str) else p, a) for p, a in turns]
    return make_example(identifier, task, _answered(prompts), images)


def from_llava(
    identifier: str, task: str, conversations: Any, images: tuple[str, ...], marked: bool = True
) -> Example:
    """An example from LLaVA's `[{"from": "human" | "gpt", "value": text}, ...]`.

    Marks stay in place in the prompts; the images of a source that is not `marked` stand before
    the first prompt. A leading gpt entry is left out, as in LLaVA's own training; a leading system
    entry is a system turn. Raises BadRecord.
    """
    if isinstance(conversations, list) and conversations[:1] and _is_system(conversations[0]):
        example = from_llava(identifier, task, conversations[1:], images, marked)
        turn = {"role": "system", "content": escape(conversations[0]["value"])}
        return replace(example, messages=(turn, *example.messages))
    turns = _llava_turns(conversations)
    if not marked:
        return from_turns(identifier, task, turns, images)
    num_marks = sum(prompt.count(IMAGE_TOKEN) for prompt, _ in turns)
    if num_marks != len(images):
        raise BadRecord(f"{num_marks} `{IMAGE_TOKEN}` in the prompts, but {len(images)} image(s)")
    return replace(make_example(identifier, task, _answered(turns), ()), images=images)


def _is_system(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("from") == "system"
        and isinstance(message.get("value"), str)
    )


def _llava_turns(conversations: Any) -> list[tuple[str, str]]:
    """(prompt, answer) pairs. Raises BadRecord if the roles do not alternate."""
    if not isinstance(conversations, list) or not all(isinstance(m, dict) for m in conversations):
        raise BadRecord(f"`conversations` must be a list of turns, found {conversations!r:.80}")
    if conversations and conversations[0].get("from") == "gpt":
        conversations = conversations[1:]
    for i, message in enumerate(conversations):
        expected = "human" if i % 2 == 0 else "gpt"
        if message.get("from") != expected:
            raise BadRecord(f"turn {i + 1} is from {message.get('from')!r}, expected {expected!r}")
    if len(conversations) % 2 or not conversations:
        raise BadRecord("without an answer: the last turn is a prompt")
    values = [message.get("value") for message in conversations]
    return list(zip(values[::2], values[1::2], strict=True))


def _answered(turns: Sequence[tuple[Any, Any]]) -> list[tuple[str, str]]:
    """The turns, answers escaped. Raises BadRecord if one is empty or no text."""
    if not turns:
        raise BadRecord("without an answer: no turns")
    for prompt, answer in turns:
        if not isinstance(prompt, str):
            raise BadRecord(f"a prompt must be text, found {prompt!r:.80}")
        if not isinstance(answer, str) or not answer.strip():
            raise BadRecord(f"without an answer: found {answer!r:.80}")
    return [(prompt, escape(answer)) for prompt, answer in turns]


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
    check_file(path)
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                yield example_from(parse_object(line, where), where)
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found; the data stage writes it") from None
    except UnicodeDecodeError as error:
        raise MeritError(
            f"{path}: not UTF-8 text (after line {number}: byte {error.start}); write it again"
        ) from None
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

"""From a source's conversations to the canonical example's messages.

In a canonical example `<image>` marks where an image stands, everywhere. A source's text that holds
those characters as text would shift every image after it, so in answers, and wherever the source
has no marks of its own, `<image>` becomes `< image>` (SOURCES: "none in answers"). In a prompt of a
source that does mark its images a surplus mark is ambiguous, and the record is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from merit.data.examples import IMAGE_TOKEN, Example, make_example
from merit.errors import MeritError

ESCAPED = "< image>"


class BadRecord(MeritError):
    """A record that is no example; the message says why, its reader adds file and number."""


def escape(text: str) -> str:
    """Text in which no `<image>` marks an image."""
    return text.replace(IMAGE_TOKEN, ESCAPED)


def from_llava(
    identifier: str, task: str, conversations: Any, images: tuple[str, ...], marked: bool = True
) -> Example:
    """An example from LLaVA's `[{"from": "human" | "gpt", "value": text}, ...]`.

    Marks stay where they are in the prompts; of an un`marked` source the images stand before the
    first prompt. A leading gpt entry is left out, as LLaVA's own training does. Raises BadRecord.
    """
    turns = llava_turns(conversations)
    if not marked:
        return from_turns(identifier, task, turns, images)
    num_marks = sum(prompt.count(IMAGE_TOKEN) for prompt, _ in turns)
    if num_marks != len(images):
        raise BadRecord(f"{num_marks} `{IMAGE_TOKEN}` in the prompts, but {len(images)} image(s)")
    example = make_example(identifier, task, answered(turns), ())
    return replace(example, images=images)


def from_turns(
    identifier: str, task: str, turns: Sequence[tuple[Any, Any]], images: tuple[str, ...]
) -> Example:
    """An example from (prompt, answer) turns of a source without marks. Raises BadRecord."""
    prompts = [(escape(p) if isinstance(p, str) else p, a) for p, a in turns]
    return make_example(identifier, task, answered(prompts), images)


def llava_turns(conversations: Any) -> list[tuple[str, str]]:
    """(prompt, answer) pairs. Raises BadRecord where the roles do not alternate."""
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


def answered(turns: Sequence[tuple[Any, Any]]) -> list[tuple[str, str]]:
    """The turns with `<image>` in answers escaped. Raises BadRecord where an answer is empty."""
    if not turns:
        raise BadRecord("without an answer: no turns")
    for prompt, answer in turns:
        if not isinstance(prompt, str):
            raise BadRecord(f"a prompt must be text, found {prompt!r:.80}")
        if not isinstance(answer, str) or not answer.strip():
            raise BadRecord(f"without an answer: found {answer!r:.80}")
    return [(prompt, escape(answer)) for prompt, answer in turns]


def split_turns(example: Example, max_turns: int) -> list[Example]:
    """The example as several of at most `max_turns` turns, each with the images in front.

    Raises BadRecord where an image is marked after the first prompt, and so belongs to a turn.
    """
    turns = list(zip(example.messages[::2], example.messages[1::2], strict=True))
    if len(turns) <= max_turns:
        return [example]
    if any(IMAGE_TOKEN in prompt["content"] for prompt, _ in turns[1:]):
        raise BadRecord("`max_turns`: an image stands after the first prompt")
    plain = [(p["content"].replace(IMAGE_TOKEN, "").strip("\n"), a["content"]) for p, a in turns]
    return [
        make_example(
            f"{example.id}-{start // max_turns}",
            example.task,
            plain[start : start + max_turns],
            example.images,
        )
        for start in range(0, len(turns), max_turns)
    ]

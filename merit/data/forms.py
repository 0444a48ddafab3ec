"""A record as people have it -> an example: chat form, ShareGPT, Alpaca, prompt and completion."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from merit.config.data import Columns
from merit.data.examples import IMAGE_TOKEN, BadRecord, Example, from_roles

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot"), "assistant"),
    "system": "system",
}
# keys of records, by what they hold; the first that a record has is taken
USUAL = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("instruction", "prompt", "question"),
    "answer": ("output", "completion", "response", "answer"),
    "input": ("input",),
    "system": ("system", "system_prompt"),
    "images": ("images", "image"),
}
FORMS = (
    "`messages` or `conversations`, `instruction` and `output`, or `prompt` and `completion`; or "
    "name its keys in `data.columns`"
)
Turn = tuple[str, str]  # role, text
Value = Mapping[str, Any]


def to_example(
    identifier: str, task: str, value: Value, columns: Columns
) -> tuple[Example, list[Any]]:
    """The example of a record, and what the record says of its images, for `""` in the example.

    Images without a mark stand before the first prompt. Raises BadRecord that names the record's
    own keys.
    """
    keys = {name: _key(value, name, getattr(columns, name)) for name in USUAL}
    if (key := keys["messages"]) is not None:
        turns = _turns(key, value[key])
    elif keys["prompt"] is not None and keys["answer"] is not None:
        turns = _pair(value, keys["prompt"], keys["answer"], keys["input"])
    else:
        raise BadRecord(f"found the keys {_found(value)}, expected {FORMS}")
    system = keys["system"] and value[keys["system"]]
    if isinstance(system, str) and system.strip() and turns[:1] and turns[0][0] != "system":
        turns = [("system", system), *turns]
    named = value[keys["images"]] if keys["images"] else []
    images = list(named) if isinstance(named, list | tuple) else [named]
    return from_roles(identifier, task, turns, ("",) * len(images)), images


def _key(value: Value, name: str, given: str | None) -> str | None:
    """The record's key for `name`. Raises BadRecord if the one that is given is missing."""
    if given is not None:
        if given not in value:
            raise BadRecord(
                f"key `{given}` (`data.columns.{name}`) is missing; found the keys {_found(value)}"
            )
        return given
    found = next((key for key in USUAL[name] if value.get(key) is not None), None)
    if found is None and name in ("images", "messages", "system"):
        unknown = [str(key) for key in value if key not in USUAL[name]]
        for near in difflib.get_close_matches(name, unknown, n=1, cutoff=0.8):
            raise BadRecord(f"unknown key `{near}`; did you mean `{name}`?")
    return found


def _found(value: Value) -> str:
    return ", ".join(f"`{key}`" for key in value) or "(none)"


def _turns(key: str, messages: Any) -> list[Turn]:
    """Of a list of `{"role", "content"}` or `{"from", "value"}`."""
    if not isinstance(messages, list) or not messages:
        raise BadRecord(f"`{key}` must be a list with at least one turn, found {messages!r:.80}")
    turns = []
    for i, message in enumerate(messages):
        place = f"{key}[{i}]"
        if not isinstance(message, dict):
            raise BadRecord(f"`{place}` must be a turn, found {message!r:.80}")
        who, what = ("role", "content") if "role" in message else ("from", "value")
        role = ROLES.get(str(message.get(who)).lower())
        if role is None:
            raise BadRecord(
                f"`{place}` has {who} {message.get(who)!r}, expected user, assistant or system "
                "(calls of tools are not read)"
            )
        turns.append((role, _text(f"{place}.{what}", message.get(what))))
    return turns


def _text(place: str, content: Any) -> str:
    """Text, or a list of parts, of which an image's leaves a mark."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image":
            texts.append(IMAGE_TOKEN)
        else:
            raise BadRecord(f"`{place}` must be text, found {part!r:.80}")
    return "".join(texts)


def _pair(value: Value, prompt: str, answer: str, further: str | None) -> list[Turn]:
    """Of a prompt and an answer: texts, or lists of turns."""
    if isinstance(value[prompt], list) or isinstance(value[answer], list):
        return [turn for key in (prompt, answer) for turn in _turns(key, value[key])]
    words = _text(prompt, value[prompt])
    if further not in (None, prompt, answer):
        more = _text(str(further), value[str(further)] or "")
        words = f"{words}\n{more}" if more.strip() else words
    history = value.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in history
    ):
        raise BadRecord(f"`history` must be a list of (prompt, answer), found {history!r:.80}")
    turns = [*history, (words, value[answer])]
    return [
        (role, _text(key, text))
        for pair in turns
        for role, key, text in zip(("user", "assistant"), (prompt, answer), pair, strict=True)
    ]

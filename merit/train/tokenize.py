"""From examples to token ids: the chat template's words around each turn, image tokens, loss mask.

Supervised are the assistant's words and their end mark; all tokens of a plain document are.
What people wrote is text: `<|im_end|>` in it is no end mark.
"""

from __future__ import annotations

import os
import pickle
import re
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, islice
from typing import Any, Literal

import numpy as np
import psutil
from jinja2 import TemplateError

from merit.config import Encoding
from merit.data.examples import IMAGE_TOKEN, Example
from merit.errors import MeritError
from merit.train.dataset import TokenizedDataset
from merit.train.model import SPECIAL_TOKENS

CHUNK = 1000  # examples tokenised at a time
Piece = tuple[str, bool]  # text, whether people wrote it
Segment = tuple[list[Piece], bool]  # pieces, whether they are supervised


@dataclass(frozen=True)
class Template:
    """The text around the turns: opening, prompt, to_answer, answer, to_prompt, ..., closing.

    `end` is the mark that ends an answer; what follows it is not supervised. `system` stands before
    and behind a system turn, in place of the opening; None: the template has no place for one.
    `trimmed` are the sides of a role's words ("l", "r", "lr") that lose their blanks.
    """

    opening: str
    to_answer: str
    to_prompt: str
    closing: str
    end: str
    system: tuple[str, str] | None = None
    trimmed: Mapping[str, str] = field(default_factory=dict)

    def segments(self, example: Example) -> Iterator[Segment]:
        """Raises MeritError for a system turn that the template has no place for."""
        before: list[Piece] = [(self.opening, False)]
        messages = list(example.messages)
        if messages[0]["role"] == "system":
            if self.system is None:
                raise MeritError(
                    f"task {example.task!r}, example {example.id!r}: a system turn, for which the "
                    "base's chat template has no place; put its words before the first prompt"
                )
            first, behind = self.system
            before = [(first, False), self._words(messages.pop(0)), (behind, False)]
        for prompt, answer in zip(messages[::2], messages[1::2], strict=True):
            yield [*before, self._words(prompt), (self.to_answer, False)], False
            yield [self._words(answer), (self.end, False)], True
            before = [(self.to_prompt, False)]
        yield [(self.closing, False)], False

    def _words(self, message: Mapping[str, str]) -> Piece:
        words, sides = message["content"], self.trimmed.get(message["role"], "")
        words = words.lstrip() if "l" in sides else words
        return words.rstrip() if "r" in sides else words, True


PROBES = {role: f"\x02{role}\x03" for role in ("system", "user", "assistant")}
TURNS = ("user", "assistant") * 2
SECONDS, MEMORY = 5, 2**30  # of processor and beyond what is in use, for a chat template
BLANKS = "\x0b\t"  # around a probe: what is left of them tells whether the template trims


def template_of(processor: Any, kind: Literal["chat", "plain"]) -> Template:
    """The parts of the model's chat template, or of the plain one, which adds no words.

    Raises MeritError if the model has no chat template, or one that does not put the turns one
    behind the other and end every answer with a mark that the tokenizer knows.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if kind == "plain":  # Llama's models have seen no text without their mark of a beginning
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        opening = tokenizer.bos_token if begins else ""
        return Template(opening, "\n", "\n", "", tokenizer.eos_token, (opening, "\n"))
    if not (tokenizer.chat_template or getattr(processor, "chat_template", None)):
        raise MeritError(
            "the base has no chat template; set `encoding.template: plain`, or put a "
            "chat_template.jinja beside its tokenizer"
        )
    return _bounded(partial(_taken_apart, processor))


def _bounded(render: Callable[[], Template]) -> Template:
    """What `render` returns, run in a forked process: a template may loop or fill the memory.

    Raises MeritError for what it raises, and where it takes more than `SECONDS` or `MEMORY`.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            limit = psutil.Process().memory_info().vms + MEMORY
            with suppress(ValueError, OSError):  # macOS has no such limit
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            try:
                found: Template | str = render()
            except Exception as error:
                found = str(error) or type(error).__name__
            with os.fdopen(send, "wb") as file:
                pickle.dump(found, file)
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    result = pickle.loads(content) if content else f"it takes over {SECONDS} s or {MEMORY} bytes"
    if isinstance(result, Template):
        return result
    raise MeritError(f"the base's chat template cannot be used: {' '.join(result.split())}")


def _taken_apart(processor: Any) -> Template:
    tokenizer = getattr(processor, "tokenizer", processor)
    pieces, trimmed = _around(processor, TURNS)
    opening, to_answer, after, again, last = (*pieces, *[""] * 5)[:5]
    space = after[: len(after) - len(after.lstrip())]  # Llama 2 has one before its end mark
    ends = (space + special for special in special_tokens(tokenizer))
    end = next((e for e in ends if after.startswith(e) and last.startswith(e)), None)
    if len(pieces) != 5 or again != to_answer or end is None:
        raise MeritError(
            "it does not put the turns one behind the other, each answer ended by a special "
            f"token; it wrote {'[...]'.join(pieces)!r:.200}"
        )
    system = None
    try:
        with_system, trims = _around(processor, ("system", *TURNS))
        if with_system[2:] == pieces[1:]:  # else it left the words out
            system, trimmed = (with_system[0], with_system[1]), trims
    except TemplateError:
        pass  # it refuses the role
    return Template(opening, to_answer, after[len(end) :], last[len(end) :], end, system, trimmed)


def _around(processor: Any, roles: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """What the chat template writes before each turn of these roles and at the end; what it trims.

    ([], {}) if it does more to words than that.
    """
    found = []
    for blanks in ("", BLANKS):
        messages = [{"role": role, "content": f"{blanks}{PROBES[role]}{blanks}"} for role in roles]
        text = processor.apply_chat_template(messages, tokenize=False)
        found.append(re.split("|".join(PROBES.values()), text))
    plain, wide = found
    if not len(plain) == len(wide) == len(roles) + 1:
        return [], {}
    sides = {
        role: "l" * (not before.endswith(BLANKS)) + "r" * (not behind.startswith(BLANKS))
        for role, before, behind in zip(dict.fromkeys(roles), wide, wide[1:], strict=False)
    }
    return plain, {role: side for role, side in sides.items() if side}


@lru_cache(maxsize=8)
def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the tokenizer's control tokens, longest first."""
    marked = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return tuple(sorted(marked | set(tokenizer.all_special_tokens), key=len, reverse=True))


def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """What matches a control token in a text."""
    return re.compile("|".join(map(re.escape, special_tokens(tokenizer))) or "(?!)")


def encode_examples(
    examples: Iterable[Example],
    processor: Any,
    images: Mapping[str, int],
    grids: np.ndarray,
    settings: Encoding | None = None,
) -> TokenizedDataset:
    """Examples as arrays.

    Args: processor: a text model's is its tokenizer; images: path -> row of grids int32 (m, 3).
    Raises MeritError, naming the example, if it is longer than `settings.max_tokens` (and cannot
    be cut) or has an image that the model cannot see.
    """
    settings = settings or Encoding()
    tokenizer = getattr(processor, "tokenizer", processor)
    image_processor = getattr(processor, "image_processor", None)
    template = template_of(processor, settings.template)
    image_token = int(tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS["image"]) or -1)
    merge = image_processor.merge_size if image_processor else 1
    image_tokens = np.asarray(grids).reshape(-1, 3).prod(axis=1) // merge**2
    tokens: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    image_ids: list[list[int]] = []
    remaining = iter(examples)
    while chunk := list(islice(remaining, CHUNK)):
        segments: list[list[Segment]] = []
        for example in chunk:
            if example.images and image_processor is None:
                raise MeritError(f"example {example.id!r} has images, and the base is a text model")
            image_ids.append([images[path] for path in example.images])
            segments.append(_segments(example, template, image_tokens[image_ids[-1]]))
        found = iter(_token_ids(tokenizer, [part for parts in segments for part, _ in parts]))
        for example, parts in zip(chunk, segments, strict=True):
            ids = [next(found) for _ in parts]
            whole = np.fromiter((token for piece in ids for token in piece), dtype=np.int32)
            mask = np.repeat([supervised for _, supervised in parts], [len(i) for i in ids])
            limit = _length(example, whole, mask, image_token, settings)
            tokens.append(whole[:limit])
            masks.append(mask[:limit])
    return TokenizedDataset(
        tokens=np.concatenate(tokens),
        loss_mask=np.concatenate(masks),
        offsets=np.cumsum([0, *map(len, tokens)]).astype(np.int64),
        image_offsets=np.cumsum([0, *map(len, image_ids)]).astype(np.int64),
        image_ids=np.array([i for ids in image_ids for i in ids], dtype=np.int32),
        grids=np.asarray(grids, dtype=np.int32).reshape(-1, 3),
        paths=np.array([path.encode() for path in images], dtype=bytes),
        feature_offsets=np.zeros(1, dtype=np.int64),
        features=np.zeros((0, 0), dtype=np.float32),
        image_token=image_token,
        merge_size=merge,
    )


def _segments(example: Example, template: Template, counts: np.ndarray) -> list[Segment]:
    """The example's text in pieces; `<image>` becomes the next image's `counts` tokens and marks.

    The canonical example counts `<image>` in all messages, so each has an image.
    """
    start, token, end = (SPECIAL_TOKENS[k] for k in ("vision_start", "image", "vision_end"))
    remaining = (f"{start}{token * int(count)}{end}" for count in counts)
    parts: list[Segment] = []
    for pieces, supervised in template.segments(example):
        filled: list[Piece] = []
        for text, written in pieces:
            first, *others = text.split(IMAGE_TOKEN)
            filled.append((first, written))
            filled += chain(*([(next(remaining), False), (text, written)] for text in others))
        parts.append((filled, supervised))
    return parts


def _token_ids(tokenizer: Any, segments: Sequence[list[Piece]]) -> list[list[int]]:
    """Every segment's token ids; control tokens only where nobody wrote them."""
    special = special_pattern(tokenizer)
    odd = {
        i
        for i, pieces in enumerate(segments)
        if any(written and special.search(text) for text, written in pieces)
    }
    joined = ["".join(text for text, _ in pieces) for pieces in segments]
    texts = [text for i, text in enumerate(joined) if i not in odd]
    found = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
    return [
        _plain_ids(tokenizer, pieces, special) if i in odd else next(found)
        for i, pieces in enumerate(segments)
    ]


def _plain_ids(tokenizer: Any, pieces: list[Piece], special: re.Pattern[str]) -> list[int]:
    """The ids of a segment in which people wrote the text of a control token.

    Control tokens of the template divide the text, as they do for the tokenizer.
    """
    runs, marks = [""], []
    for text, written in pieces:
        plain = [text] if written else special.split(text)
        runs[-1] += plain[0]
        runs += plain[1:]
        marks += [] if written else special.findall(text)
    ids: list[int] = []
    for run, mark in zip(runs, [*marks, None], strict=True):
        ids += tokenizer(run, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids += [] if mark is None else [tokenizer.convert_tokens_to_ids(mark)]
    return ids


def _length(
    example: Example, tokens: np.ndarray, mask: np.ndarray, image_token: int, settings: Encoding
) -> int:
    """How many of its tokens the example keeps: cut from the end, never inside an image."""
    limit = settings.max_tokens
    if limit is None or len(tokens) <= limit:
        return len(tokens)
    where = f"task {example.task!r}, example {example.id!r}: {len(tokens)} tokens"
    if settings.on_long_example == "error":
        raise MeritError(
            f"{where}, more than `encoding.max_tokens` ({limit}); raise it, set "
            "`encoding.on_long_example: cut`, or lower `encoding.max_pixels`"
        )
    if (tokens[limit:] == image_token).any() or not mask[:limit].any():
        raise MeritError(
            f"{where}; cut to `encoding.max_tokens` ({limit}) it would lose a part of an image or "
            "its whole answer; raise it, or lower `encoding.max_pixels`"
        )
    return limit

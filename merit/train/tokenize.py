"""From examples to token ids: the chat template's words around each turn, image tokens, loss mask.

Supervised are the assistant's words and their end mark; all tokens of a plain document are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from merit.config import Encoding
from merit.data.examples import IMAGE_TOKEN, Example
from merit.errors import MeritError
from merit.train.dataset import TokenizedDataset
from merit.train.model import SPECIAL_TOKENS

CHUNK = 1000  # examples tokenised at a time
Segment = tuple[str, bool]  # text, whether it is supervised


@dataclass(frozen=True)
class Template:
    """The text around the turns: opening, prompt, to_answer, answer, to_prompt, ..., closing.

    `end` is the mark that ends an answer; what follows it is not supervised.
    """

    opening: str
    to_answer: str
    to_prompt: str
    closing: str
    end: str

    def segments(self, example: Example) -> Iterator[Segment]:
        before = self.opening
        for prompt, answer in zip(example.messages[::2], example.messages[1::2], strict=True):
            yield f"{before}{prompt['content']}{self.to_answer}", False
            yield f"{answer['content']}{self.end}", True
            before = self.to_prompt
        yield self.closing, False


PROBE = ("\x02prompt\x03", "\x02answer\x03")


def template_of(processor: Any, kind: Literal["chat", "plain"]) -> Template:
    """The parts of the model's chat template, or of the plain one, which adds no words.

    Raises MeritError if the model has no chat template, or one that does not put the turns one
    behind the other and end every answer with a mark that the tokenizer knows.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if kind == "plain":  # Llama's models have seen no text without their mark of a beginning
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        opening = tokenizer.bos_token if begins else ""
        return Template(opening, "\n", "\n", "", tokenizer.eos_token)
    if not (tokenizer.chat_template or getattr(processor, "chat_template", None)):
        raise MeritError(
            "the base has no chat template; set `encoding.template: plain`, or put a "
            "chat_template.jinja beside its tokenizer"
        )
    roles = ("user", "assistant")
    messages = [
        {"role": role, "content": words}
        for _ in range(2)
        for role, words in zip(roles, PROBE, strict=True)
    ]
    text = processor.apply_chat_template(messages, tokenize=False)
    pieces = text.replace(PROBE[1], PROBE[0]).split(PROBE[0])
    marked = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    specials = sorted(marked | set(tokenizer.all_special_tokens), key=len, reverse=True)
    opening, to_answer, after, again, last = (*pieces, *[""] * 5)[:5]
    space = after[: len(after) - len(after.lstrip())]  # Llama 2 has one before its end mark
    ends = (space + special for special in specials)
    end = next((e for e in ends if after.startswith(e) and last.startswith(e)), None)
    if len(pieces) != 5 or again != to_answer or end is None:
        raise MeritError(
            "the base's chat template does not put the turns one behind the other, each answer "
            f"ended by a special token; it wrote {text!r}"
        )
    return Template(opening, to_answer, after[len(end) :], last[len(end) :], end)


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
        texts = [text for parts in segments for text, _ in parts]
        pieces = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
        for example, parts in zip(chunk, segments, strict=True):
            ids = [next(pieces) for _ in parts]
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
    for text, supervised in template.segments(example):
        pieces = text.split(IMAGE_TOKEN)
        filled = pieces[0] + "".join(next(remaining) + piece for piece in pieces[1:])
        parts.append((filled, supervised))
    return parts


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

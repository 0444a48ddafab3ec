"""Questions as batches of similar length: which questions share one, and a batch's tensors.

Which questions share a batch depends only on the questions, and so do the answers.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from merit.errors import MeritError
from merit.eval.answering.question_images import Picture
from merit.io.disk import writing
from merit.train.model import has_vision
from merit.train.tokenize import special_pattern

EMBEDDINGS = "image_embeddings"  # float (num_image_tokens, hidden_size), the images in turn
MAX_THREADS = 4


@dataclass(frozen=True)
class Prompt:
    """One question: text and any number of images, in the order in which they are shown.

    `pixels`: fewest and most pixels that an image is scaled to; None keeps the processor's range.
    """

    parts: tuple[str | Picture, ...]
    max_new_tokens: int
    pixels: tuple[int, int] | None = None

    @property
    def images(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]


@dataclass(frozen=True)
class Batch:
    """Questions that are answered together, and their tensors.

    Image embeddings replace the pixels once the vision part has run (`encode`).
    """

    questions: list[int]  # positions in the prompts
    max_new_tokens: int
    inputs: dict[str, Any]


# --- which questions share a batch --------------------------------------------------------------


def split(processor: Any, prompts: Sequence[Prompt], batch_size: int) -> list[list[int]]:
    """Positions of the prompts, batch by batch: by limits, then by length, ties in file order.

    A length counts words and image tokens, which an image's header tells.
    """
    by_limits: dict[tuple[int, tuple[int, int]], list[tuple[int, int]]] = {}
    for i, prompt in enumerate(prompts):
        limits = prompt.max_new_tokens, prompt.pixels or (0, 0)
        by_limits.setdefault(limits, []).append((_length(processor, prompt), i))
    orders = [[i for _, i in sorted(by_limits[limits])] for limits in sorted(by_limits)]
    return [o[i : i + batch_size] for o in orders for i in range(0, len(o), batch_size)]


def _length(processor: Any, prompt: Prompt) -> int:
    num_words = len(chat_text(processor, prompt).split())
    if not prompt.images:
        return num_words
    size = image_size(prompt) or {}
    limits = dict(zip(("min_pixels", "max_pixels"), size.values(), strict=False))
    vision = processor.image_processor
    patches = 0
    for picture in prompt.images:
        width, height = picture.size()
        try:
            patches += vision.get_number_of_image_patches(height, width, limits)
        except ValueError as error:  # an aspect ratio over 200
            raise MeritError(
                f"{picture.path}: index {picture.index}: {width} x {height} pixels: {error}"
            ) from None
    return num_words + patches // vision.merge_size**2


# --- what a model is given ----------------------------------------------------------------------


def chat_text(processor: Any, prompt: Prompt) -> str:
    """The question in the model's chat template, with a mark for each image.

    The text of a control token (`<|im_end|>`) gets a space, so that it is none: `< |im_end|>`.
    Raises MeritError if a model without a vision part is shown an image.
    """
    content: Any
    special = special_pattern(getattr(processor, "tokenizer", processor))
    parts = [
        special.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", part)
        if isinstance(part, str)
        else part
        for part in prompt.parts
    ]
    if hasattr(processor, "image_processor"):
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in parts
        ]
    elif prompt.images:
        raise MeritError(f"{prompt.images[0].path}: an image, and the model reads only text")
    else:
        content = "".join(part for part in parts if isinstance(part, str))
    message = {"role": "user", "content": content}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return str(text)


def prepare(processor: Any, prompts: Sequence[Prompt], questions: Sequence[int]) -> Batch:
    """One batch: the images of `questions` opened, and all as tensors, padded on the left."""
    chosen = [prompts[i] for i in questions]
    texts = [chat_text(processor, prompt) for prompt in chosen]
    options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    images = [picture.open() for prompt in chosen for picture in prompt.images]
    if images:
        size = image_size(chosen[0])
        options |= {"images": images} | ({"size": size} if size else {})
    # a text model's tokenizer would add token types, which the model does not take, and a second
    # start token before the template's
    if not hasattr(processor, "image_processor"):
        options |= {"return_token_type_ids": False, "add_special_tokens": False}
    return Batch(list(questions), chosen[0].max_new_tokens, dict(processor(text=texts, **options)))


def image_size(prompt: Prompt) -> dict[str, int] | None:
    """The range of pixels as an image processor takes it; None keeps its own."""
    if prompt.pixels is None:
        return None
    return {"shortest_edge": prompt.pixels[0], "longest_edge": prompt.pixels[1]}


def prepared(
    processor: Any, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]]
) -> Iterator[Batch]:
    """The batches in turn, prepared by threads while earlier ones are answered.

    Only a few are in memory at a time.
    """
    num_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) - 1))
    copies = [copy.deepcopy(processor) for _ in range(num_threads)]  # tokenizers are not shared
    local = threading.local()

    def start() -> None:
        local.processor = copies.pop()

    def make(questions: Sequence[int]) -> Batch:
        return prepare(local.processor, prompts, questions)

    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(num_threads, initializer=start) as pool:
        try:
            for questions in batches:
                waiting.append(pool.submit(make, questions))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def encode(model: Any, batch: Batch) -> Batch:
    """The batch with image embeddings by the model's vision part in place of pixels.

    Models that share a vision part can share the result.
    """
    if "pixel_values" not in batch.inputs:
        return batch
    inputs = dict(batch.inputs)
    pixels = inputs.pop("pixel_values").to(model.device)
    grid = inputs["image_grid_thw"].to(model.device)
    with torch.inference_mode():
        seen = model.get_image_features(pixels, grid).pooler_output
    inputs[EMBEDDINGS] = torch.cat(tuple(seen))
    return Batch(batch.questions, batch.max_new_tokens, inputs)


# --- batches kept for several models ------------------------------------------------------------


def vision_hash(model: Any) -> str:
    """SHA-256 over names and bytes of the vision part's tensors; over nothing for a text model."""
    digest = hashlib.sha256()
    if has_vision(model):
        for name, tensor in sorted(model.model.visual.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_batches(path: Path, batches: Sequence[Batch], vision: str) -> None:
    """Write a safetensors file: <number>.<input>, <number>.questions int64 (num_questions,)."""
    tensors = {}
    for i, batch in enumerate(batches):
        for name, tensor in batch.inputs.items():
            tensors[f"{i:05d}.{name}"] = tensor.clone().contiguous()
        tensors[f"{i:05d}.questions"] = torch.tensor(batch.questions)
        tensors[f"{i:05d}.max_new_tokens"] = torch.tensor(batch.max_new_tokens)
    with writing(path):
        save_file(tensors, path, metadata={"vision_hash": vision})


def load_batches(path: Path, model: Any) -> list[Batch]:
    """What `save_batches` wrote. Raises MeritError if the model has another vision part."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            vision = file.metadata()["vision_hash"]
            for key in sorted(file.keys()):
                number, _, name = key.partition(".")
                found.setdefault(number, {})[name] = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise MeritError(f"{path}: missing or truncated ({error}); run `dvc repro`") from None
    if vision != vision_hash(model):
        raise MeritError(
            f"{path}: the images were encoded by another vision part than this model's; set "
            "`evaluation.cache_images: false` if fine-tuning changes it"
        )
    return [
        Batch(inputs.pop("questions").tolist(), int(inputs.pop("max_new_tokens")), inputs)
        for inputs in found.values()
    ]

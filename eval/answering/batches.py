"""Questions as batches of like length: which share one, and what a model is given of each.

Which questions share a batch depends on the questions alone, so the answers do too.
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

EMBEDDINGS = "image_embeddings"  # float (num_image_tokens, hidden_size), the images in turn
MAX_THREADS = 4


@dataclass(frozen=True)
class Prompt:
    """One question: text and any number of images, in the order in which they are shown.

    `pixels` are the least and the most that an image is scaled to; None leaves the processor's own.
    """

    parts: tuple[str | Picture, ...]
    max_new_tokens: int
    pixels: tuple[int, int] | None = None

    @property
    def images(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]


@dataclass(frozen=True)
class Batch:
    """Questions that are answered together, as the processor makes tensors of them.

    The image embeddings stand in place of the pixels once the vision part has run (`encode`).
    """

    questions: list[int]  # positions in the prompts
    max_new_tokens: int
    inputs: dict[str, Any]


# --- which questions share a batch --------------------------------------------------------------


def split(processor: Any, prompts: Sequence[Prompt], batch_size: int) -> list[list[int]]:
    """Positions of the prompts, batch by batch: by limits, then by length, ties in file order.

    A length is words and image tokens; an image's tokens are known from its header alone.
    """
    limits = sorted({_limits(prompt) for prompt in prompts})
    found = []
    for limit in limits:
        alike = [i for i, prompt in enumerate(prompts) if _limits(prompt) == limit]
        lengths = {i: _length(processor, prompts[i]) for i in alike}
        order = sorted(alike, key=lambda i: (lengths[i], i))
        found += [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return found


def _limits(prompt: Prompt) -> tuple[int, tuple[int, int]]:
    return prompt.max_new_tokens, prompt.pixels or (0, 0)


def _length(processor: Any, prompt: Prompt) -> int:
    num_words = len(chat_text(processor, prompt).split())
    if not prompt.images:
        return num_words
    size = _size(prompt) or {}
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
    """The question in the model's chat template, a mark where each image stands.

    Raises MeritError where a model without a vision part is shown an image.
    """
    content: Any
    if hasattr(processor, "image_processor"):
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in prompt.parts
        ]
    elif prompt.images:
        raise MeritError(f"{prompt.images[0].path}: an image, and the model reads text alone")
    else:
        content = "".join(part for part in prompt.parts if isinstance(part, str))
    message = {"role": "user", "content": content}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return str(text)


def prepare(processor: Any, prompts: Sequence[Prompt], questions: Sequence[int]) -> Batch:
    """Open the images of `questions`, and make the tensors of one batch, padded on the left."""
    chosen = [prompts[i] for i in questions]
    texts = [chat_text(processor, prompt) for prompt in chosen]
    options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    images = [picture.open() for prompt in chosen for picture in prompt.images]
    if images:
        size = _size(chosen[0])
        options |= {"images": images} | ({"size": size} if size else {})
    # a text model's tokenizer would add the kinds of tokens, which the model does not take, and a
    # mark of the beginning before the one that the template has written
    if not hasattr(processor, "image_processor"):
        options |= {"return_token_type_ids": False, "add_special_tokens": False}
    return Batch(list(questions), chosen[0].max_new_tokens, dict(processor(text=texts, **options)))


def _size(prompt: Prompt) -> dict[str, int] | None:
    if prompt.pixels is None:
        return None
    return {"shortest_edge": prompt.pixels[0], "longest_edge": prompt.pixels[1]}


def prepared(
    processor: Any, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]]
) -> Iterator[Batch]:
    """The batches in turn, made by threads while the ones before them are answered.

    Only a few of them are in memory at a time.
    """
    num_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) - 1))
    copies = [copy.deepcopy(processor) for _ in range(num_threads)]  # a tokenizer is no shared one
    own = threading.local()

    def start() -> None:
        own.processor = copies.pop()

    def make(questions: Sequence[int]) -> Batch:
        return prepare(own.processor, prompts, questions)

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
    """The batch with its images' embeddings by the model's vision part in place of the pixels.

    The frozen part of the work: models that share a vision part can share what this returns.
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
    """SHA-256 over the names and bytes of the vision part's tensors; of a text model, of none."""
    digest = hashlib.sha256()
    if has_vision(model):
        for name, tensor in sorted(model.model.visual.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_batches(path: Path, batches: Sequence[Batch], vision: str) -> None:
    """A safetensors file: <number>.<input> a tensor, <number>.questions int64 (num_questions,)."""
    tensors = {}
    for i, batch in enumerate(batches):
        for name, tensor in batch.inputs.items():
            tensors[f"{i:05d}.{name}"] = tensor.clone().contiguous()
        tensors[f"{i:05d}.questions"] = torch.tensor(batch.questions)
        tensors[f"{i:05d}.max_new_tokens"] = torch.tensor(batch.max_new_tokens)
    with writing(path):
        save_file(tensors, path, metadata={"vision_hash": vision})


def load_batches(path: Path, model: Any) -> list[Batch]:
    """What `save_batches` wrote. Raises MeritError where the model's vision part is another one."""
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
            "`evaluation.cache_images: false` where fine-tuning changes it"
        )
    return [
        Batch(inputs.pop("questions").tolist(), int(inputs.pop("max_new_tokens")), inputs)
        for inputs in found.values()
    ]

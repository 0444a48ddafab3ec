"""Greedy answers of one model to many questions, in batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Prompt:
    """One question: the text as the engine builds it, and its image."""

    text: str
    image: Image.Image


@dataclass(frozen=True)
class Batch:
    """Questions of like length, ready for the decoder: the vision part has run."""

    questions: list[int]  # positions in the prompts
    inputs: dict[str, Any]


def prepare(model: Any, processor: Any, prompts: Sequence[Prompt], batch_size: int) -> list[Batch]:
    """The prompts as batches. They depend on prompts and vision part alone, so models that share a
    vision part can share them.

    Prompts of like length share a batch, so little is spent on padding; which ones share a batch
    depends on the prompts alone, so the answers do too.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": p.text}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for p in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda i: (len(texts[i].split()), i))
    batches = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = processor(
            text=[texts[i] for i in chosen],
            images=[prompts[i].image for i in chosen],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        grid = inputs["image_grid_thw"]
        with torch.inference_mode():
            seen = model.model.visual(inputs.pop("pixel_values"), grid_thw=grid).pooler_output
        counts = (grid.prod(dim=1) // model.config.vision_config.spatial_merge_size**2).tolist()
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=seen.split(counts))}
        batches.append(Batch(chosen, {**inputs, "mm_encoder_outputs": encoded}))
    return batches


def generate(
    model: Any, processor: Any, batches: Sequence[Batch], max_new_tokens: int
) -> list[str]:
    """The model's greedy answers, in the prompts' order."""
    import torch

    answers = [""] * sum(len(batch.questions) for batch in batches)
    for batch in batches:
        with torch.inference_mode():
            output = model.generate(**batch.inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = output[:, batch.inputs["input_ids"].shape[1] :]
        decoded = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        for i, answer in zip(batch.questions, decoded, strict=True):
            answers[i] = answer.strip()
    return answers

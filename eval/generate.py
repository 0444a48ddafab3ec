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


def generate(
    model: Any, processor: Any, prompts: Sequence[Prompt], batch_size: int, max_new_tokens: int
) -> list[str]:
    """The model's greedy answers, in the prompts' order.

    Prompts of like length share a batch, so little is spent on padding; which ones share a batch
    depends on the prompts alone, so the answers do too.
    """
    import torch

    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": p.text}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for p in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda i: (len(texts[i].split()), i))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = processor(
            text=[texts[i] for i in chosen],
            images=[prompts[i].image for i in chosen],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = output[:, inputs["input_ids"].shape[1] :]
        decoded = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        for i, answer in zip(chosen, decoded, strict=True):
            answers[i] = answer.strip()
    return answers

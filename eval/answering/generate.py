"""Greedy answers of one model to a batch of questions; finished batches are kept on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from merit.eval.answering.batches import EMBEDDINGS, Batch, encode
from merit.io.artifacts import atomic_write


def generate(model: Any, processor: Any, batch: Batch) -> list[str]:
    """The model's greedy answers to the batch's questions, on its device and in its dtype.

    Greedy and without penalties, whatever generation_config.json says (Qwen's: sampling and a
    repetition penalty of 1.05). Ends at the checkpoint's end tokens.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    inputs = {name: t.to(model.device) for name, t in encode(model, batch).inputs.items()}
    end = model.generation_config.eos_token_id
    with torch.inference_mode():
        output = model.generate(
            **_with_embeddings(model, inputs),
            max_new_tokens=batch.max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            num_beams=1,
            repetition_penalty=1.0,
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id if end is None else end,
            pad_token_id=tokenizer.pad_token_id,
        )
    new = output[:, inputs["input_ids"].shape[1] :]
    decoded = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [answer.strip() for answer in decoded]


def _with_embeddings(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with embeddings per image, as transformers takes them."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    if EMBEDDINGS not in inputs:
        return inputs
    seen = inputs.pop(EMBEDDINGS)
    merged = model.config.vision_config.spatial_merge_size**2
    counts = (inputs["image_grid_thw"].prod(dim=1) // merged).tolist()
    encoded = BaseModelOutputWithPooling(pooler_output=seen.split(counts))
    return {**inputs, "mm_encoder_outputs": {"image": encoded}}


class Partial:
    """Answers to finished batches, a JSON line each, so that an interrupted run resumes.

    The first line identifies what was asked; answers to something else, and a line that was cut
    short, are dropped.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.done: dict[int, str] = {}
        lines = path.read_text(encoding="utf-8").splitlines(True) if path.is_file() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        if not whole or whole[0] != {"identity": identity}:
            whole = [{"identity": identity}]
        for entry in whole[1:]:
            self.done |= {int(question): text for question, text in entry.items()}
        atomic_write(path, "".join(json.dumps(entry) + "\n" for entry in whole))

    def drop(self) -> None:
        """Delete the file, once all answers are stored elsewhere."""
        self.path.unlink()

    def add(self, answers: dict[int, str]) -> None:
        """Append one batch's answers: {position of the question: text}."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(answers) + "\n")

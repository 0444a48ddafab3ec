"""Greedy answers of one model to many questions, batch by batch; finished batches are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from merit.eval.answering.batches import EMBEDDINGS, Batch, encode
from merit.io.artifacts import atomic_write


def generate(model: Any, processor: Any, batch: Batch) -> list[str]:
    """The model's greedy answers to the batch's questions, on the model's device and in its dtype.

    Greedy and without penalties, whatever the checkpoint's generation_config.json says: Qwen's asks
    for sampling and a repetition penalty of 1.05. Ends at the checkpoint's end tokens.
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
    """The inputs with the embeddings image by image, as transformers takes them."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    if EMBEDDINGS not in inputs:
        return inputs
    seen = inputs.pop(EMBEDDINGS)
    merged = model.config.vision_config.spatial_merge_size**2
    counts = (inputs["image_grid_thw"].prod(dim=1) // merged).tolist()
    encoded = BaseModelOutputWithPooling(pooler_output=seen.split(counts))
    return {**inputs, "mm_encoder_outputs": {"image": encoded}}


class Partial:
    """The answers to finished batches, a JSON line each, so that a killed run goes on from there.

    The first line says what they are answers to; where that is something else now, they are
    dropped. A line that was cut short is dropped too.
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
        """All is answered, and stored elsewhere."""
        self.path.unlink()

    def add(self, answers: dict[int, str]) -> None:
        """Keep one batch's answers, by the questions' positions."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(answers) + "\n")

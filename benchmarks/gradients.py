"""Mean task gradients at a real shape: examples a second, and what 136 tasks of 200 would take.

    python -m benchmarks.gradients --shape Qwen2.5-VL-3B-Instruct      # a GPU

The paper: 98 minutes for 136 tasks on eight V100 (table 15). Random weights in bfloat16, examples
with an image of 256 tokens each; stride 5 and a sketch of 65,537 are filled in the same pass.
Writes reports/benchmarks/gradients-<device>.json and .md.
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch

from benchmarks.synthetic import device_name, random_mixture, random_model, result_file
from merit.io.artifacts import atomic_write, write_json
from merit.method.gradients import Sketch, Stride, mean_gradients
from merit.train.attention import choose_attention
from merit.train.batches import packed_rows
from merit.train.loss import forward_loss
from merit.train.model import set_trainable
from merit.train.task_gradients import PACK_TOKENS

NUM_TASKS, NUM_EXAMPLES, PAPER_MINUTES = 136, 200, 98


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--shape", default="small")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--examples", type=int, default=128)
    given = options.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_model(given.shape, device, torch.bfloat16 if device == "cuda" else torch.float32)
    image = getattr(model.config, "image_token_id", -1)
    data = random_mixture(given.examples + given.batch, 8000, image)
    parameters = set_trainable(model, ["decoder"])

    choose_attention(model, "auto", low=device == "cuda")
    packs = device == "cuda"  # as the stage does

    def loss(indices: np.ndarray) -> tuple[torch.Tensor, int]:
        batch = data.pack(indices) if packs else data.batch(indices)
        return forward_loss(model, batch, None), int(data.num_targets(indices).sum())

    order = np.argsort(data.num_tokens(), kind="stable")
    batches = [order[i : i + given.batch] for i in range(0, len(order), given.batch)]
    if packs:
        batches = packed_rows(data.num_tokens(), PACK_TOKENS)
    rates = {}
    for name, kinds in {
        "stride 5": [Stride(5)],
        "sketch 65,537": [Sketch(65537)],
        "both": [Stride(5), Sketch(65537)],
    }.items():
        mean_gradients([functools.partial(loss, batches[0])], parameters, kinds)  # warm
        began = time.monotonic()
        rows = mean_gradients([functools.partial(loss, b) for b in batches[1:]], parameters, kinds)
        assert all(bool(row.isfinite().all()) for row in rows)
        rates[name] = sum(map(len, batches[1:])) / (time.monotonic() - began)
    total = NUM_TASKS * NUM_EXAMPLES
    result = {
        "device": device_name(),
        "shape": given.shape,
        "num_examples": sum(map(len, batches[1:])),
        "batch": given.batch,
        "num_parameters": sum(p.numel() for p in parameters.values()),
        "examples_per_second": rates,
        "minutes_for_136_tasks": {name: total / rate / 60 for name, rate in rates.items()},
        "paper_minutes_8_v100": PAPER_MINUTES,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
    }
    out = result_file("gradients")
    write_json(out, result)
    atomic_write(out.with_suffix(".md"), page(result))
    print(page(result))


def page(result: dict) -> str:  # type: ignore[type-arg]
    lines = [
        f"Measured on {result['device']}, {result['shape']}, batches of {result['batch']}.",
        "",
        "| representation | examples a second | minutes for 136 tasks of 200 |",
        "|:--|--:|--:|",
    ]
    for name, rate in result["examples_per_second"].items():
        minutes = result["minutes_for_136_tasks"][name]
        lines.append(f"| {name} | {rate:.1f} | {minutes:.1f} |")
    lines += [
        "",
        f"The paper: {PAPER_MINUTES} minutes on eight V100. The minutes follow from the rate, "
        f"measured on {result['num_examples']} examples.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

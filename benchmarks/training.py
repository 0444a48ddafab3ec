"""Packed training against transformers' Trainer on padded batches: same model, data and tokens.

    python -m benchmarks.training                                      # a small model, CPU
    python -m benchmarks.training --shape Qwen2.5-VL-3B-Instruct       # a GPU with 80 GB or more

Both take the same examples in the same steps, in float32 (CPU) or bfloat16 with float32 parameters
(GPU), AdamW, no accumulation on the padded side: one batch a step, padded to its longest example.
Rounds are interleaved and the medians counted. With a GPU also the share of the card's peak that
packed rows with images reach (MFU). Writes reports/benchmarks/training-<device>.json and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.synthetic import random_mixture, random_model, result_file
from merit.config import Optimizer, Training
from merit.io.artifacts import atomic_write, write_json
from merit.train.attention import choose_attention
from merit.train.dataset import TokenizedDataset
from merit.train.distributed import process_group
from merit.train.loop import train
from merit.train.model import decoder, set_trainable

PEAK = {"NVIDIA H200": 989e12, "NVIDIA H100": 989e12, "NVIDIA A100": 312e12}  # dense bf16 FLOP/s
TARGET = 2.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--shape", default="small")
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--pack-tokens", type=int, default=2048)
    options.add_argument("--batch", type=int, default=32, help="examples a step")
    options.add_argument("--mfu-tokens", type=int, default=16384, help="of a row with images")
    given = options.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} thread"
    result: dict[str, Any] = {"device": device, "torch": torch.__version__, **vars(given)}
    data = random_mixture(given.batch * given.steps, 8000)
    lengths = data.num_tokens().reshape(-1, given.batch)
    result["padding_share"] = 1 - float(lengths.sum() / (lengths.max(axis=1) * given.batch).sum())
    result |= compare(data, given, on_gpu)
    if on_gpu:
        result["mfu"] = [mfu(given, device, checkpointing) for checkpointing in (False, True)]
    out = result_file("training")
    write_json(out, result)
    atomic_write(out.with_suffix(".md"), page(result))
    print(page(result))


def compare(data: TokenizedDataset, given: Any, on_gpu: bool) -> dict[str, Any]:
    """Loss-bearing tokens a second of both, round by round, and their losses of the first step."""
    found: dict[str, list[float]] = {"packed": [], "padded": []}
    losses: dict[str, float] = {}
    for _ in range(given.rounds):
        for kind, run in (("packed", packed), ("padded", padded)):
            model = random_model(given.shape, "cuda" if on_gpu else "cpu", torch.float32)
            seconds, losses[kind] = run(model, data, given, on_gpu)
            found[kind].append(seconds)
            del model
            gc.collect()
            torch.cuda.empty_cache()
    count = int(data.num_targets(np.arange(len(data))).sum())
    rates = {k: count / statistics.median(v) for k, v in found.items()}
    return {
        "seconds": found,
        "loss_tokens_per_second": rates,
        "ratio": statistics.median(
            b / a for a, b in zip(found["packed"], found["padded"], strict=True)
        ),
        "first_loss": losses,
        "target": TARGET,
    }


def packed(model: Any, data: TokenizedDataset, given: Any, on_gpu: bool) -> tuple[float, float]:
    """(seconds, loss of the first step) of the project's loop."""
    settings = Training(
        trainable=["decoder"],
        optimizer=Optimizer(learning_rate=1e-5, batch_size=given.batch, schedule="constant"),
        pack_tokens=given.pack_tokens,
        precision="bfloat16" if on_gpu else "float32",
    )
    records: list[dict[str, float]] = []
    if on_gpu:
        choose_attention(model, "auto", low=True)
    parameters = set_trainable(model, ["decoder"])
    began = time.monotonic()
    with process_group() as group:
        train(
            model,
            parameters,
            data,
            np.arange(len(data)),
            settings.optimizer,
            what="benchmark",
            settings=settings,
            group=group,
            log=lambda record, timing: records.append(record),
        )
    return time.monotonic() - began, records[0]["loss"]


def padded(model: Any, data: TokenizedDataset, given: Any, on_gpu: bool) -> tuple[float, float]:
    """The same of transformers' Trainer, its batches padded to their longest example."""
    from transformers import Trainer, TrainingArguments

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        batch = data.batch(indices)
        filled = torch.from_numpy(data.num_tokens()[indices])[:, None]
        mask = torch.arange(batch["input_ids"].shape[1])[None] < filled
        return {
            "input_ids": batch["input_ids"],
            "labels": batch["labels"],
            "attention_mask": mask.long(),
        }

    set_trainable(model, ["decoder"])
    with tempfile.TemporaryDirectory(prefix="merit-benchmark-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=given.batch,
            max_steps=len(data) // given.batch,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            bf16=on_gpu,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
            dataloader_num_workers=0,
            use_cpu=not on_gpu,
        )
        trainer = Trainer(
            model, arguments, train_dataset=list(range(len(data))), data_collator=collate
        )
        began = time.monotonic()
        with contextlib.redirect_stdout(None):
            trainer.train()
        seconds = time.monotonic() - began
    return seconds, trainer.state.log_history[0]["loss"]


def mfu(given: Any, device: str, checkpointing: bool) -> dict[str, Any]:
    """Tokens a second of packed rows with images, and their share of the card's peak."""
    model = random_model(given.shape, "cuda", torch.bfloat16)
    choose_attention(model, "auto", low=True)
    config = model.config.text_config
    data = random_mixture(
        64 * given.steps, config.vocab_size, model.config.image_token_id, median=200
    )
    settings = Training(
        trainable=["decoder"],
        optimizer=Optimizer(learning_rate=1e-6, batch_size=64, schedule="constant"),
        pack_tokens=given.mfu_tokens,
        precision="bfloat16",
        gradient_checkpointing=checkpointing,
    )
    if checkpointing:
        decoder(model).activation_checkpointing_enable()
    parameters = set_trainable(model, ["decoder"])
    layers = sum(p.numel() for n, p in parameters.items() if ".layers." in n)
    timings: list[dict[str, float]] = []
    torch.cuda.reset_peak_memory_stats()
    with process_group() as group:
        train(
            model,
            parameters,
            data,
            np.arange(len(data)),
            settings.optimizer,
            what="benchmark",
            settings=settings,
            group=group,
            log=lambda record, timing: timings.append(timing),
        )
    rate = statistics.median(t["tokens_per_second"] for t in timings[2:])
    lengths = data.num_tokens().astype(float)
    # forward and backward are 6 FLOP a weight and token; a causal row of L tokens meets L^2 / 2
    attention = 12 * config.num_hidden_layers * config.hidden_size * (lengths**2).sum() / 2
    head = 6 * config.vocab_size * config.hidden_size
    bearing = float(data.num_targets(np.arange(len(data))).sum())
    vision = sum(p.numel() for n, p in model.named_parameters() if "visual" in n)
    patches = float(data.grids.prod(axis=1).sum())
    per_token = {
        "decoder": 6 * layers + (attention + head * bearing) / lengths.sum(),
        "vision_forward": 2 * vision * patches / lengths.sum(),
    }
    peak = next((v for k, v in PEAK.items() if device.startswith(k)), None)
    return {
        "gradient_checkpointing": checkpointing,
        "tokens_per_second": rate,
        "flop_per_token": per_token,
        "mfu_decoder": peak and rate * per_token["decoder"] / peak,
        "mfu_with_vision": peak and rate * sum(per_token.values()) / peak,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        "tokens_per_second_by_step": [t["tokens_per_second"] for t in timings],
    }


def page(result: dict[str, Any]) -> str:
    lines = [f"Measured on {result['device']}, torch {result['torch']}, {result['shape']}."]
    if "ratio" in result:
        rates, losses = result["loss_tokens_per_second"], result["first_loss"]
        frame = pd.DataFrame(
            {
                "training": ["packed rows (ours)", "padded Trainer"],
                "loss-bearing tokens a second": [rates["packed"], rates["padded"]],
                "loss of the first step": [losses["packed"], losses["padded"]],
            }
        )
        lines += [
            "",
            frame.to_markdown(index=False, floatfmt=(".0f", ".0f", ".5f")),
            "",
            f"Packed is {result['ratio']:.2f} times as fast (median of {result['rounds']} "
            f"interleaved rounds; target {TARGET:g}); {100 * result['padding_share']:.0f} % of the "
            "padded batches' places are padding.",
        ]
    if "mfu" in result:
        rows = pd.DataFrame(result["mfu"])
        rows = rows[
            [
                "gradient_checkpointing",
                "tokens_per_second",
                "mfu_decoder",
                "mfu_with_vision",
                "peak_memory_gb",
            ]
        ]
        lines += [
            "",
            rows.to_markdown(index=False, floatfmt=".3g"),
            "",
            "Only the model FLOP: what checkpointing computes again is not counted, of the "
            "output layer the loss-bearing tokens.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

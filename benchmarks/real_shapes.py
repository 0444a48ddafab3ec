"""The stages on a model of the real 3B shape, on any machine with 24 GB: seconds and peak memory.

    python -m benchmarks.real_shapes [--folder DIR]      # about 30 GB of disk

A random Qwen2.5-VL with Qwen2.5-VL-3B-Instruct's exact configuration, bfloat16, in shards, goes
through the project's own commands, each a process of its own: data, base, encode, gradients (a
sketch of two tasks of two examples), partition, one packed training step of two LoRA branches, and
their merge. Writes reports/benchmarks/real_shapes.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from merit.io.artifacts import REPORTS_DIR, atomic_write, write_json, write_jsonl
from merit.train.sizes import public_config

SHAPE, NAME = "Qwen2.5-VL-3B-Instruct", "real"
LIMIT_GB = 20
WRITER = "benchmarks.real_shapes"
EXPERIMENT: dict[str, Any] = {
    "name": NAME,
    "data": {"source": "jsonl", "folder": "mixture"},
    "base": {"checkpoint": "theta0"},
    "encoding": {"min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 16},
    "gradients": {"representation": "sketch", "batch_size": 2},
    "training": {
        "trainable": ["decoder"],
        "optimizer": {"learning_rate": 1e-4, "batch_size": 2},
        "precision": "bfloat16",
        "pack_tokens": 512,
        "gradient_checkpointing": True,
        "lora": {"rank": 8},
    },
    "methods": {"merit-1d": {"partition": "merit", "axes": 1}},
    "evaluation": {"benchmarks": ["mini_scene"]},
    "report": {"title": "Real shapes", "paper_table": "table02_vision_flan_3b"},
}
WORDS = ["say", "yes", "no", "red", "blue", "what", "color", "is", "it", "one", "two", "three"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--folder", type=Path, help="where to work; a temporary one by default")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="merit-real-", dir=given.folder) as folder:
        rows = measure(Path(folder))
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
        "shape": SHAPE,
        "stages": rows,
    }
    out = REPORTS_DIR / "benchmarks" / "real_shapes"
    write_json(out.with_suffix(".json"), result)
    atomic_write(out.with_suffix(".md"), page(result))
    print(page(result))


def measure(folder: Path) -> list[dict[str, Any]]:
    prepare(folder)
    branches = [f"merit-1d-s1-g{k}" for k in range(2)]
    stages: list[tuple[str, ...]] = [("plan",)]
    stages += [(s, NAME) for s in ("settings", "data", "base", "encode", "gradients", "partition")]
    stages += [("train", NAME, branch) for branch in branches]
    stages += [("merge", NAME, "merit-1d-s1")]
    rows = [run(("-m", "merit", *stage), " ".join(stage), folder) for stage in stages]
    merge = json.loads((folder / f"artifacts/{NAME}/models/merit-1d-s1/merge.json").read_text())
    assert merge["displacement"] > 0
    return rows


def run(command: tuple[str, ...], label: str, folder: Path) -> dict[str, Any]:
    """Seconds, core seconds and peak resident memory of one process."""
    root = str(Path(__file__).resolve().parents[1])
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env={**os.environ, "PYTHONPATH": root}
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"`merit {label}` failed with status {os.waitstatus_to_exitcode(status)}")
    return {
        "stage": label,
        "seconds": time.monotonic() - began,
        "core_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def prepare(folder: Path) -> None:
    """theta0 in shards, its processor, a mixture of two tasks, and the experiment's YAML."""
    # in a process of its own: what this one held would count in every child's peak
    run(("-c", f"import {WRITER} as here; here.write_theta0('theta0')"), "theta0", folder)
    mixture = folder / "mixture"
    mixture.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate([(120, 80), (60, 100)]):
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(mixture / f"{i}.png")
    for task in ("color", "count"):
        rows = []
        for i in range(2):
            words = [WORDS[k] for k in rng.integers(0, len(WORDS), 12)]
            prompt, answer = " ".join(["<image>", *words[:8]]), " ".join(words[8:])
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            rows.append({"messages": turns, "images": [f"{i}.png"]})
        write_jsonl(mixture / f"{task}.jsonl", rows)
    (folder / "experiments").mkdir()
    text = yaml.safe_dump(EXPERIMENT, sort_keys=False)
    (folder / "experiments" / f"{NAME}.yaml").write_text(text, encoding="utf-8")
    (folder / "params.yaml").write_text(f"experiments: [{NAME}]\n", encoding="utf-8")


def write_theta0(folder: str) -> None:
    """Random weights of the real shape, in bfloat16 and shards of 2 GB, one tensor at a time."""
    import transformers

    from merit.config import Architecture
    from merit.mini.nets import build_processor
    from merit.train.model import SPECIAL_TOKENS

    small = Architecture(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vision_hidden_size=32,
        vision_intermediate_size=64,
        vision_depth=1,
        vision_num_heads=2,
        patch_size=14,
        initializer_range=0.02,
    )
    processor = build_processor(WORDS, small, 56)
    ids = {k: processor.tokenizer.convert_tokens_to_ids(v) for k, v in SPECIAL_TOKENS.items()}
    values = public_config(SHAPE)
    values |= {
        **{"image_token_id": ids["image"], "video_token_id": ids["video"]},
        **{"vision_start_token_id": ids["vision_start"], "vision_end_token_id": ids["vision_end"]},
        **{"bos_token_id": ids["start"], "eos_token_id": ids["end"]},
    }
    config = transformers.Qwen2_5_VLConfig.from_dict(values)
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16
        )
    model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02, generator=generator)
            if parameter.ndim == 1:
                parameter.fill_(1.0)
    model.save_pretrained(folder, max_shard_size="2GB")
    processor.save_pretrained(folder)


def page(result: dict[str, Any]) -> str:
    frame = pd.DataFrame(result["stages"])
    largest = frame["peak_memory_gb"].max()
    return (
        f"Measured on {result['machine']}, torch {result['torch']}, {result['shape']}, random "
        f"weights in bfloat16 (7.5 GB).\n\n{frame.to_markdown(index=False, floatfmt='.1f')}\n\n"
        f"The largest stage takes {largest:.1f} GB resident (limit: {LIMIT_GB}).\n"
    )


if __name__ == "__main__":
    main()

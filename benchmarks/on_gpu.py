"""What to measure where a GPU is at hand for a quarter of an hour, most important first.

    python -m benchmarks.on_gpu               # an H100 or H200; --shape small tries it on a CPU

`merit smoke --gpu`; then at the real shape packed training (tokens a second, share of the peak),
gradients, and generation of 512 questions; then `smollm2_reasoning` on ten times its examples and
three seeds. Each is a process with a time limit of its own, so that one that fails or is slow
leaves the others their time. Writes reports/benchmarks/on_gpu-<device>.json; the benchmarks write
their own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from merit.io.artifacts import REPORTS_DIR, write_json

REASONING = "smollm2_reasoning"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--shape", default="Qwen2.5-VL-3B-Instruct")
    options.add_argument("--questions", type=int, default=512)
    options.add_argument("--examples", type=int, default=100, help="of each reasoning task")
    options.add_argument("--only", nargs="+", default=[], help="steps, by name")
    given = options.parse_args()
    python, shape = (sys.executable, "-m"), ("--shape", given.shape)
    training = ("benchmarks.training", *shape, "--rounds", "1", "--steps", "8")
    steps: dict[str, tuple[int, tuple[str, ...]]] = {
        "smoke": (150, (*python, "merit", "smoke", "--gpu")),
        "training": (240, (*python, *training, "--pack-tokens", "8192")),
        "gradients": (90, (*python, "benchmarks.gradients", *shape, "--examples", "100")),
        "generation": (90, (*python, "benchmarks.on_gpu_generation", *shape, str(given.questions))),
        "reasoning": (600, (*python, "merit", "run", f"{REASONING}_gpu")),
    }
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    write_reasoning(given.examples)
    found: list[dict[str, Any]] = []
    out = REPORTS_DIR / "benchmarks" / f"on_gpu-{'gpu' if on_gpu else 'cpu'}.json"
    for name, (limit, command) in steps.items():
        if given.only and name not in given.only:
            continue
        began = time.monotonic()
        try:
            status: int | str = subprocess.run(command, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit} s"
        found.append({"step": name, "status": status, "seconds": time.monotonic() - began})
        print(f"{name}: {status}, {found[-1]['seconds']:.0f} s", flush=True)
        write_json(out, {"device": device, "torch": torch.__version__, "steps": found})


def write_reasoning(examples: int) -> None:
    """experiments/smollm2_reasoning_gpu.yaml: more examples, three seeds."""
    folder = Path("experiments")
    values = yaml.safe_load((folder / f"{REASONING}.yaml").read_text(encoding="utf-8"))
    values["data"]["num_examples"] = examples
    values["gradients"]["num_examples"] = min(examples, 200)
    for method in values["methods"].values():
        if method["partition"] not in ("base", "shrunk"):
            method["seeds"] = [1, 2, 3]
    text = yaml.safe_dump(values, sort_keys=False)
    (folder / f"{REASONING}_gpu.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

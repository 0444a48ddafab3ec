"""What to measure where a GPU is at hand for a quarter of an hour, most important first.

    python -m benchmarks.on_gpu            # 13 minutes on an H100 or H200
    python -m benchmarks.on_gpu --tiny     # the same parts at a tiny size, 2 minutes on any CPU

`merit smoke --gpu`; then at the real shape packed training (tokens a second, share of the peak),
generation of 512 questions, and gradients of two tasks of 50 examples; then `smollm2_reasoning` on
ten times its examples and three seeds, eight items at a time on the one GPU. Each is a process with
a time limit of its own, so that one that fails or is slow leaves the others their time. `--only`
and `--minutes` divide it over several calls. Writes reports/benchmarks/on_gpu-<device>.json after
every step; the benchmarks write their own, and the experiment its report.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.synthetic import device_name, result_file
from merit.io.artifacts import REPORTS_DIR, write_json

ROOT = Path(__file__).resolve().parents[1]
REASONING, REHEARSAL = "smollm2_reasoning", "mini_text_rehearsal"
SIDE_BY_SIDE = 8
# without a GPU: some of its checks, on the CPU
CHECKS = """
import sys
from merit.run.smoke_gpu import run_checks
chosen = lambda name: "packed-adamw" in name or not name.startswith("train")
sys.exit(len(run_checks(lambda model, *_: model, chosen)))
"""
Step = tuple[int, Sequence[str], Path]  # limit in seconds, command, where it runs


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--shape", default="Qwen2.5-VL-3B-Instruct")
    options.add_argument("--examples", type=int, default=100, help="of each reasoning task")
    options.add_argument("--minutes", type=float, default=13, help="for all steps together")
    options.add_argument("--only", nargs="+", default=[], help="steps, by name")
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--folder", type=Path, default=Path("artifacts/on_gpu"))
    given = options.parse_args(arguments)
    run(steps(given), given.only, 60 * given.minutes, result_file("on_gpu"))
    if (report := given.folder / "reports" / f"{REASONING}_gpu").is_dir():
        shutil.copytree(report, REPORTS_DIR / report.name, dirs_exist_ok=True)


def steps(given: argparse.Namespace) -> dict[str, Step]:
    """{name: step} in order; the experiment runs in `given.folder`, with settings of its own."""
    python, shape = (sys.executable, "-m"), ("--shape", "small" if given.tiny else given.shape)
    size = {
        "training": "--steps 2 --batch 4 --pack-tokens 512",
        "generation": "4 --batch 4 --length 8",
        "gradients": "--examples 8 --batch 4",
    }
    if not given.tiny:
        size = {
            "training": "--steps 8 --pack-tokens 8192",
            "generation": "512 --batch 64",
            "gradients": "--examples 100",
        }
    smoke = (*python, "merit", "smoke", "--gpu")
    experiment = REHEARSAL if given.tiny else f"{REASONING}_gpu"
    write_experiment(given.folder, given.examples)
    here = Path.cwd()
    return {
        "smoke": (
            150,
            smoke if torch.cuda.is_available() else (sys.executable, "-c", CHECKS),
            here,
        ),
        **{
            name: (limit, (*python, f"benchmarks.{module}", *shape, *size[name].split()), here)
            for name, module, limit in (
                ("training", "training", 240),
                ("generation", "on_gpu_generation", 90),
                ("gradients", "gradients", 90),
            )
        },
        "reasoning": (600, (*python, "merit", "run", experiment), given.folder),
    }


def run(todo: Mapping[str, Step], only: Sequence[str], seconds: float, out: Path) -> None:
    """Run the steps in turn, at most `seconds` together; what each ended with is kept in `out`.

    Steps that an earlier call ran stay there.
    """
    end = time.monotonic() + seconds
    earlier = json.loads(out.read_text(encoding="utf-8"))["steps"] if out.is_file() else []
    found: dict[str, Any] = {entry["step"]: entry for entry in earlier}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name, (limit, command, folder) in todo.items():
        if only and name not in only:
            continue
        began = time.monotonic()
        limit = int(min(limit, end - began))
        status: int | str = "no time was left"
        if limit > 0:
            status = f"stopped after {limit} s"
            process = subprocess.Popen(command, cwd=folder, env=environment)
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                process.terminate()  # a training writes its checkpoint
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        found[name] = {"step": name, "status": status, "seconds": time.monotonic() - began}
        print(f"{name}: {status}, {found[name]['seconds']:.0f} s", flush=True)
        result = {"device": device_name(), "torch": torch.__version__}
        write_json(out, result | {"steps": list(found.values())})


def write_experiment(folder: Path, examples: int) -> None:
    """The experiments' YAMLs in a folder of their own; the reasoning tasks with more examples and
    three seeds, and several items at a time on one GPU, which a small model does not fill.
    """
    shutil.copytree(ROOT / "experiments", folder / "experiments", dirs_exist_ok=True)
    path = folder / "experiments" / f"{REASONING}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["data"]["num_examples"] = examples
    values["gradients"]["num_examples"] = min(examples, 200)
    for method in values["methods"].values():
        if method["partition"] != "base":
            method["seeds"] = [1, 2, 3]
    launch = {"gpus_per_branch": 0, "slots": SIDE_BY_SIDE if torch.cuda.is_available() else 2}
    for name, written in (
        (f"experiments/{REASONING}_gpu.yaml", values),
        ("params.yaml", {"experiments": [f"{REASONING}_gpu"], "launch": launch}),
    ):
        text = yaml.safe_dump(written, sort_keys=False)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

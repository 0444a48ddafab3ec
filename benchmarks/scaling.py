"""What the stages cost against tasks, branches and parameters: three points each, and the slope.

    python -m benchmarks.scaling

Each point is an experiment on a small Qwen2 with random weights, run stage by stage in this
process, so that imports are not counted; core seconds of the stage, median of three runs. The slope
is the least-squares one of log cost against log size over the three points: 1 is proportional, and
what a stage costs in any case makes it less. Then the fixed cost of a stage:
`merit run` of one branch of one step beside `python -c "import torch"`, interleaved.
Writes reports/benchmarks/scaling.json and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from merit.config import Architecture
from merit.io.artifacts import (
    REPORTS_DIR,
    Artifacts,
    atomic_write,
    read_json,
    write_json,
    write_jsonl,
)
from merit.run.stages import STAGES
from merit.run.store import STORE

NAME = "scaling"
WORDS = ["say", "yes", "no", "red", "blue", "what", "color", "is", "it", "one", "two", "three"]
# tasks, log2 of branches, hidden size; the first point is the others' common one
TASKS, AXES, HIDDEN = (16, 64, 256), (1, 2, 3), (64, 128, 256)
EXAMPLES = 8  # a task
BEFORE_TRAINING = ("data", "base", "encode", "gradients", "partition")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tasks", type=int, nargs=3, default=TASKS, help="the second at least 8")
    options.add_argument("--repeats", type=int, default=3, help="of every point")
    options.add_argument("--rounds", type=int, default=5, help="of the fixed cost")
    given = options.parse_args()
    torch.set_num_threads(1)
    points: list[dict[str, Any]] = []
    for num_tasks in given.tasks:
        found = cost(num_tasks, 1, HIDDEN[0], given.repeats)
        points.append(found | {"axis": "tasks", "size": num_tasks})
    for axes in AXES:
        found = cost(given.tasks[1], axes, HIDDEN[0], given.repeats)
        points.append(found | {"axis": "branches", "size": 2**axes})
    for hidden in HIDDEN:
        found = cost(given.tasks[0], 1, hidden, given.repeats)
        points.append(found | {"axis": "parameters", "size": found["num_parameters"]})
    result = {"points": points, "slopes": slopes(points), "fixed_cost": fixed_cost(given.rounds)}
    out = REPORTS_DIR / "benchmarks" / "scaling"
    write_json(out.with_suffix(".json"), result)
    atomic_write(out.with_suffix(".md"), page(result))
    print(page(result))


def cost(num_tasks: int, axes: int, hidden: int, repeats: int) -> dict[str, Any]:
    """Core seconds of every stage of one experiment, of all its branches together: medians."""
    runs = [run(num_tasks, axes, hidden) for _ in range(repeats)]
    seconds = {
        name: statistics.median(found["seconds"][name] for found in runs)
        for name in runs[0]["seconds"]
    }
    return {"seconds": seconds, "num_parameters": runs[0]["num_parameters"]}


def run(num_tasks: int, axes: int, hidden: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="merit-scaling-") as folder, working_in(Path(folder)):
        prepare(num_tasks, axes, hidden)
        found = {name: stage(name) for name in BEFORE_TRAINING}
        found["train"] = sum(stage("train", f"merit-{axes}d-s1-g{k}") for k in range(2**axes))
        found["merge"] = stage("merge", f"merit-{axes}d-s1")
        paths = Artifacts(NAME)
        summary = read_json(paths.branch(f"merit-{axes}d-s1-g0") / "summary.json")
        return {"seconds": found, "num_parameters": summary["num_trained_parameters"]}


def stage(name: str, item: str | None = None) -> float:
    module = importlib.import_module(STAGES[name].module)
    began = time.process_time()
    with contextlib.redirect_stdout(None):
        module.run(NAME, item)
    return time.process_time() - began


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def prepare(num_tasks: int, axes: int, hidden: int) -> None:
    """A base, a mixture and the experiment's YAML in the working folder."""
    from merit.mini.nets import build_text_model, build_tokenizer

    tokenizer = build_tokenizer(WORDS)
    architecture = Architecture(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    build_text_model(tokenizer, architecture, seed=0).save_pretrained("theta0")
    tokenizer.save_pretrained("theta0")
    rng = np.random.default_rng(0)
    for number in range(num_tasks):
        drawn = [[WORDS[k] for k in rng.integers(0, len(WORDS), 40)] for _ in range(EXAMPLES)]
        rows = [
            {
                "messages": [
                    {"role": "user", "content": " ".join(words[:32])},
                    {"role": "assistant", "content": " ".join(words[32:])},
                ]
            }
            for words in drawn
        ]
        write_jsonl(Path("mixture") / f"task_{number:03d}.jsonl", rows)
    method = f"merit-{axes}d"
    experiment = {
        "name": NAME,
        "data": {"source": "jsonl", "folder": "mixture"},
        "base": {"checkpoint": "theta0"},
        "gradients": {"batch_size": 8},
        "training": {
            "trainable": ["decoder"],
            "optimizer": {"learning_rate": 1e-4, "batch_size": 8},
        },
        "methods": {method: {"partition": "merit", "axes": axes}},
        "evaluation": {"benchmarks": ["mini_scene"]},
        "report": {"title": "Scaling"},
    }
    Path("experiments").mkdir()
    Path("experiments", f"{NAME}.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    Path("params.yaml").write_text(f"experiments: [{NAME}]\n", encoding="utf-8")


def slopes(points: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{axis: {stage: least-squares slope of log cost over log size}}; "all" is their sum."""
    found: dict[str, dict[str, float]] = {}
    for axis in ("tasks", "branches", "parameters"):
        mine = [point for point in points if point["axis"] == axis]
        sizes = np.log([point["size"] for point in mine])
        costs = {name: [p["seconds"][name] for p in mine] for name in mine[0]["seconds"]}
        costs["all"] = [sum(p["seconds"].values()) for p in mine]
        found[axis] = {
            name: float(np.polyfit(sizes, np.log(seconds), 1)[0]) for name, seconds in costs.items()
        }
    return found


def fixed_cost(rounds: int) -> dict[str, Any]:
    """Wall seconds of a training of one step and of torch's import, in turn, and their ratio."""
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    commands = {
        "merit run": ["-m", "merit", "run", NAME, "train", "--only", "merit-1d-s1-g0"],
        "import torch": ["-c", "import torch"],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="merit-scaling-") as folder, working_in(Path(folder)):
        prepare(2, 1, HIDDEN[0])
        for name in BEFORE_TRAINING:
            stage(name)
        paths = Artifacts(NAME)
        for _ in range(rounds + 1):
            for made in (paths.branch("merit-1d-s1-g0"), paths.folder / STORE):
                shutil.rmtree(made, ignore_errors=True)  # so that it is trained again
            for name, command in commands.items():
                began = time.monotonic()
                subprocess.run(
                    [sys.executable, *command], env=environment, check=True, capture_output=True
                )
                found[name].append(time.monotonic() - began)
    kept = {name: seconds[1:] for name, seconds in found.items()}  # the first fills the disk cache
    pairs = zip(kept["merit run"], kept["import torch"], strict=True)
    return {"seconds": kept, "ratio": statistics.median(a / b for a, b in pairs), "target": 2.0}


def page(result: dict[str, Any]) -> str:
    rows = [
        {"against": p["axis"], "size": p["size"], **{k: v for k, v in p["seconds"].items()}}
        for p in result["points"]
    ]
    table = pd.DataFrame(rows).to_markdown(index=False, floatfmt=".2f")
    slope = pd.DataFrame(result["slopes"]).T.to_markdown(floatfmt=".2f")
    fixed = result["fixed_cost"]
    return (
        f"Core seconds of each stage (of all branches together):\n\n{table}\n\nSlope of log cost "
        f"against log size over three points (1 is proportional):\n\n{slope}\n\nFixed cost of a "
        f"stage: `merit run` of one branch of one step takes {fixed['ratio']:.2f} times as long as "
        f"`import torch` (median of {len(fixed['seconds']['merit run'])} pairs; target "
        f"{fixed['target']:g}).\n"
    )


if __name__ == "__main__":
    main()

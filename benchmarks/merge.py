"""Merging four checkpoints of 1.6 GB: `merit merge` beside plain copies and mergekit's linear.

    python benchmarks/merge.py --folder /some/disk --mergekit /its/environment/bin/mergekit-yaml

Every round runs all contestants once, each as a process of its own; a ratio is the median over
rounds of the ratio within a round, since other work on the machine hits neighbours alike. Peak
memory is the process's (getrusage). The files, 8 GB and one output, are removed at the end. Writes
reports/benchmarks/merge.json and merge.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from merit.io.artifacts import write_json
from merit.io.checkpoint_writer import CheckpointWriter
from merit.io.checkpoints import Checkpoint, TensorInfo
from merit.merge.pieces import pieces_of

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "reports" / "benchmarks"
WEIGHTS = [0.1, 0.2, 0.3, 0.4]
NUM_LAYERS, HIDDEN, INNER, VOCABULARY = 12, 1536, 8960, 151936  # Qwen2.5-1.5B's, with fewer layers
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "dtype": "bfloat16",
    "tie_word_embeddings": True,
}
# a small process in between: getrusage counts the memory of what a process was forked from
LAUNCHER = """
import json, os, sys, time
began = time.monotonic()
aside = [(os.POSIX_SPAWN_DUP2, 2, 1)]  # what the process prints goes to the log
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=aside)
_, status, usage = os.wait4(pid, 0)
print(json.dumps({
    "seconds": time.monotonic() - began,
    "processor_seconds": usage.ru_utime + usage.ru_stime,
    "peak_memory_mb": usage.ru_maxrss / 1024,
}))
sys.exit(os.waitstatus_to_exitcode(status))
"""
# what a copy of the same bytes is can be read in two ways; both are shown
READ_ALL_WRITE_ONE = """
import shutil, sys
buffer = bytearray(16 << 20)
for path in sys.argv[2:-1]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
shutil.copyfile(sys.argv[-1], sys.argv[1])
"""
COPY_ALL = """
import os, shutil, sys
for path in sys.argv[2:]:
    shutil.copyfile(path, sys.argv[1])
    os.unlink(sys.argv[1]) if path != sys.argv[-1] else None
"""


def layout() -> dict[str, TensorInfo]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    shapes["model.norm.weight"] = (HIDDEN,)
    for layer in range(NUM_LAYERS):
        for name, shape in {
            "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            "self_attn.q_proj.bias": (HIDDEN,),
            "self_attn.k_proj.weight": (256, HIDDEN),
            "self_attn.k_proj.bias": (256,),
            "self_attn.v_proj.weight": (256, HIDDEN),
            "self_attn.v_proj.bias": (256,),
            "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            "mlp.gate_proj.weight": (INNER, HIDDEN),
            "mlp.up_proj.weight": (INNER, HIDDEN),
            "mlp.down_proj.weight": (HIDDEN, INNER),
            "input_layernorm.weight": (HIDDEN,),
            "post_attention_layernorm.weight": (HIDDEN,),
        }.items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return {name: TensorInfo(torch.bfloat16, shape) for name, shape in shapes.items()}


def make_models(folder: Path) -> list[Path]:
    """theta0 of size 0.02 and four branches 0.0004 away, as fine-tuning leaves them."""
    tensors = layout()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 2**18, generator=generator)  # repeated: contents cost no time to merge
    models = [folder / name for name in ("base", "a", "b", "c", "d")]
    for k, model in enumerate(models):
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(CONFIG))
        with CheckpointWriter(model, tensors) as writer:
            for name, info in tensors.items():
                for _, start, stop in pieces_of(name, info):
                    count = (stop - start) * info.row_bytes // 2
                    values = 0.02 * noise[0, :count] + (0.0004 * noise[k, :count] if k else 0)
                    rows = values.bfloat16().reshape(stop - start, *info.shape[1:])
                    writer.write(name, rows, start)
    return models


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Wall-clock and processor seconds, and peak memory in MB, of one process.

    `seconds_after_start` is without the start of Python and its imports, where the process says it.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, "-I", "-c", LAUNCHER, *command],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, check=False,
        )  # fmt: skip
    said = (folder / "log").read_text()
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{said[-3000:]}")
    measured: dict[str, float] = json.loads(done.stdout)
    own = re.search(r"; ([\d.]+) s, peak memory", said)
    return measured | {"seconds_after_start": float(own[1]) if own else measured["seconds"]}


def error_of(merged: Path, models: list[Path]) -> float:
    """|theta - exact| / |exact - theta0| over the first rows of every tensor, exact in float64."""
    found, base, *branches = (Checkpoint(path) for path in (merged, *models))
    lost = wanted = 0.0
    for name in base.names:
        piece = next(pieces_of(name, base.info(name)))
        rows = [branch.read(*piece).double() for branch in branches]
        exact = torch.stack([w * r for w, r in zip(WEIGHTS, rows, strict=True)]).sum(0)
        lost += float((found.read(*piece).double() - exact).square().sum())
        wanted += float((exact - base.read(*piece).double()).square().sum())
    return (lost / wanted) ** 0.5


def contestants(folder: Path, models: list[Path], mergekit: Path | None) -> dict[str, list[str]]:
    files = [str(model / "model.safetensors") for model in models[1:]]
    python, out = sys.executable, str(folder / "out")
    merge = ["merge", "--base", str(models[0]), "--branches", *map(str, models[1:]), "--out", out]
    found = {
        "copy: 4 read, 1 written": [python, "-c", READ_ALL_WRITE_ONE, out, *files],
        "copy: 4 read, 4 written": [python, "-c", COPY_ALL, out, *files],
        "merit merge": [python, "-m", "merit", *merge, "--weights", *map(str, WEIGHTS)],
        "python -c 'import torch'": [python, "-c", "import torch"],
    }
    if mergekit:
        recipe = {
            "merge_method": "linear",
            "dtype": "bfloat16",
            "models": [
                {"model": str(model), "parameters": {"weight": weight}}
                for model, weight in zip(models[1:], WEIGHTS, strict=True)
            ],
        }
        (folder / "mergekit.yaml").write_text(json.dumps(recipe))
        found["mergekit linear"] = [str(mergekit), str(folder / "mergekit.yaml"), out]
    return found


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the files; 10 GB")
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml of an environment of its own")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = options.folder / "merge-benchmark"
    torch.set_num_threads(1)
    rounds: list[dict[str, dict[str, float]]] = []
    errors: dict[str, float] = {}
    try:
        models = make_models(folder)
        commands = contestants(folder, models, options.mergekit)
        for _ in range(options.rounds):
            rounds.append({})
            for name, command in commands.items():
                rounds[-1][name] = timed(command, folder)
                print(name, {key: round(value, 1) for key, value in rounds[-1][name].items()})
                if name.startswith("merg") or name.startswith("merit"):
                    errors[name] = error_of(folder / "out", models)
                remove(folder / "out")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(rounds, errors, os.getloadavg()[1])


def report(
    rounds: list[dict[str, dict[str, float]]], errors: dict[str, float], load: float
) -> None:
    """Medians, and ratios to `merit merge` within a round."""
    rows: list[dict[str, Any]] = []
    for name in rounds[0]:
        runs = [one[name] for one in rounds]
        ratios = [one["merit merge"]["seconds"] / one[name]["seconds"] for one in rounds]
        pure = [
            one["merit merge"]["seconds_after_start"] / one[name]["seconds_after_start"]
            for one in rounds
        ]
        rows.append(
            {
                "what": name,
                **{key: statistics.median(run[key] for run in runs) for key in runs[0]},
                "merit_over_this": statistics.median(ratios),
                "merit_over_this_range": [min(ratios), max(ratios)],
                "merit_over_this_after_start": statistics.median(pure),
                "error": errors.get(name),
            }
        )
    size = sum(info.num_bytes for info in layout().values())
    machine = {"processors": os.cpu_count(), "platform": platform.platform()}
    size = sum(info.num_bytes for info in layout().values())
    machine = {"processors": os.cpu_count(), "platform": platform.platform(), "load": load}
    write_json(
        REPORT / "merge.json",
        {"rows": rows, "rounds": rounds, "checkpoint_bytes": size, "machine": machine},
    )
    lines = [
        "# Merging four checkpoints",
        "",
        f"Four bfloat16 checkpoints of {size / 1e9:.2f} GB ({size // 2:,} parameters, shapes of "
        f"Qwen2.5-1.5B), weights 0.1 to 0.4; {len(rounds)} rounds on {os.cpu_count()} processors.",
        f"At a load of {load:.0f}, that is beside other work: only ratios and processor time tell.",
        "Medians; ratios are within a round, with their range. After start: without Python's start",
        "and torch's import. Error: distance from the exact average, as a share of the exact one's",
        "distance from the base. `merit merge` reads the base, too, for the displacement.",
        "Peak memory is what is resident, pages of mapped files (mergekit's inputs) included.",
        "",
        "| | seconds | processor seconds | peak memory, MB | `merit merge` takes | after start | "
        "error |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        low, high = row["merit_over_this_range"]
        error = "" if row["error"] is None else f"{100 * row['error']:.2f} %"
        lines.append(
            f"| {row['what']} | {row['seconds']:.1f} | {row['processor_seconds']:.1f} | "
            f"{row['peak_memory_mb']:.0f} | {row['merit_over_this']:.2f} x [{low:.2f}, {high:.2f}] "
            f"| {row['merit_over_this_after_start']:.2f} x | {error} |"
        )
    lines += ["", *verdicts({row["what"]: row for row in rows})]
    (REPORT / "merge.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def verdicts(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Each target, the number, and whether it is met."""
    ours = rows["merit merge"]
    found = [
        (
            f"at most 1.3 x the time of `{name}`, after start",
            row["merit_over_this_after_start"],
            1.3,
        )
        for name, row in rows.items()
        if name.startswith("copy")
    ]
    if theirs := rows.get("mergekit linear"):
        memory = ours["peak_memory_mb"] / theirs["peak_memory_mb"]
        found += [
            ("at most 1/3 of mergekit's memory", memory, 1 / 3),
            ("faster than mergekit", theirs["merit_over_this"], 1.0),
            ("a smaller error than mergekit's", ours["error"] / theirs["error"], 1.0),
        ]
    return [
        f"- {what}: {value:.4g}, {'met' if value < bound else '**not met**'}"
        for what, value, bound in found
    ]


if __name__ == "__main__":
    main()

"""TIES, STAR, TSV and Iso on the largest matrices of a 7B model: seconds and peak memory.

    python -m benchmarks.mergers --folder /some/disk

Four branches of two of Qwen2.5-7B's matrices (one gate, one query projection) in bfloat16, with
random contents: singular value decompositions take as long whatever stands in them. Each merger is
one `merit merge` in a process of its own, as `benchmarks.merge` measures them. A whole model has 28
layers of three matrices like the first and two like the second; its time is extrapolated and marked
so. Writes reports/benchmarks/mergers.json and .md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.merge import CONFIG, REPORT, timed
from merit.io.artifacts import atomic_write, write_json
from merit.io.checkpoint_writer import CheckpointWriter
from merit.io.checkpoints import TensorInfo
from merit.method.mergers import by_publication

HIDDEN, INNER, LAYERS, NUM_BRANCHES = 3584, 18944, 28, 4
SHAPES = {
    "model.layers.0.mlp.gate_proj.weight": (INNER, HIDDEN),
    "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
}
# what a layer holds of matrices like these two, by its number of entries
LIKE = (3 * INNER * HIDDEN + 2 * HIDDEN * HIDDEN) / sum(a * b for a, b in SHAPES.values())
METHODS = ("average", *by_publication())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--folder", type=Path, required=True)
    folder: Path = options.parse_args().folder / "merit-mergers"
    folder.mkdir(parents=True)
    try:
        models = make_models(folder)
        rows = []
        for method in METHODS:
            out = folder / "out"
            command = [sys.executable, "-m", "merit", "merge", "--base", str(models[0])]
            command += ["--branches", *map(str, models[1:]), "--method", method, "--out", str(out)]
            if method == "average":
                command += ["--weights", *["1"] * NUM_BRANCHES]
            found = timed(command, folder)
            shutil.rmtree(out)
            rows.append({"merger": method, **found} | extrapolated(found["processor_seconds"]))
            print(rows[-1], flush=True)
    finally:
        shutil.rmtree(folder)
    largest = 4 * INNER * HIDDEN / 2**20
    result = {"rows": rows, "largest_matrix_mb": largest, "num_branches": NUM_BRANCHES}
    write_json(REPORT / "mergers.json", result)
    atomic_write(REPORT / "mergers.md", page(rows, largest))


def extrapolated(processor_seconds: float) -> dict[str, float]:
    return {"core_minutes_of_a_7b_model": processor_seconds * LIKE * LAYERS / 60}


def make_models(folder: Path) -> list[Path]:
    """theta0 of size 0.02 and branches 0.0004 away, every entry random."""
    layout = {name: TensorInfo(torch.bfloat16, shape) for name, shape in SHAPES.items()}
    rng = np.random.default_rng(0)
    base = {
        name: torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).mul_(0.02)
        for name, shape in SHAPES.items()
    }
    models = []
    for k in range(NUM_BRANCHES + 1):
        model = folder / (f"branch{k}" if k else "base")
        model.mkdir()
        (model / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        with CheckpointWriter(model, layout) as writer:
            for name, shape in SHAPES.items():
                step = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
                writer.write(name, (base[name] + 0.0004 * step * bool(k)).bfloat16())
        models.append(model)
    return models


def page(rows: list[dict[str, float]], largest: float) -> str:
    shown = [
        {
            "merger": row["merger"],
            "seconds": f"{row['seconds']:.0f}",
            "core seconds": f"{row['processor_seconds']:.0f}",
            "peak memory, MB": f"{row['peak_memory_mb']:.0f}",
            "times the largest matrix": f"{row['peak_memory_mb'] / largest:.1f}",
            "a 7B model, core minutes *": f"{row['core_minutes_of_a_7b_model']:.0f}",
        }
        for row in rows
    ]
    table = pd.DataFrame(shown).to_markdown(index=False)
    return (
        "# Mergers on the matrices of a 7B model\n\n"
        f"{NUM_BRANCHES} branches, a gate projection of {INNER} x {HIDDEN} ({largest:.0f} MB in "
        f"float32) and a query projection of {HIDDEN} x {HIDDEN}, bfloat16; each merger in a "
        "process of its own, Python's start and torch's import (some 600 MB) included.\n\n"
        f"{table}\n\n\\* extrapolated by the number of entries: {LAYERS} layers, "
        f"{LIKE:.1f} times these two matrices each.\n"
    )


if __name__ == "__main__":
    main()

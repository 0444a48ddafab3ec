"""Predicted peak memory of the paper's models, part by part: what fits on which card.

    python -m benchmarks.memory

From each model's config.json alone, on the meta device (merit.check). Writes
reports/benchmarks/memory.csv and .md.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from merit.check.facts import MEASURED
from merit.check.memory import (
    Parts,
    adapter_entries,
    generation_memory,
    gradients_memory,
    merging_memory,
    training_memory,
)
from merit.check.shapes import CONFIGS, Shapes, shapes_from_config
from merit.config import Lora
from merit.io.artifacts import REPORTS_DIR, atomic_write, read_json
from merit.run.cli import quiet

MODELS = ("Qwen2.5-3B", "Qwen2.5-7B-Instruct", "Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL-7B-Instruct")
TOKENS = 8192  # of a packed row
SKETCH = 65_536
GPUS = (1, 2, 4, 8)
CARDS = (32, 80, 141)  # GB


def main() -> None:
    quiet()
    found = {name: shapes_from_config(CONFIGS / f"{name}.json") for name in MODELS}
    table = pd.DataFrame([row for name, shapes in found.items() for row in rows(name, shapes)])
    out = REPORTS_DIR / "benchmarks" / "memory"
    text = table.to_csv(index=False, float_format="%.2f", lineterminator="\n")
    atomic_write(out.with_suffix(".csv"), text)
    whole = page(found, table) + measured_section()
    atomic_write(out.with_suffix(".md"), whole)
    print(whole)


def rows(name: str, shapes: Shapes) -> list[dict[str, Any]]:
    """A row a kind of work, GB by part."""
    work: list[tuple[str, int, Parts]] = [
        *(("full fine-tuning", n, training_memory(shapes, n, TOKENS)) for n in GPUS),
        (
            "LoRA, rank 64",
            1,
            training_memory(shapes, 1, TOKENS, entries=adapter_entries(shapes, Lora())),
        ),
        ("gradients, 4 x 512 tokens, sketched", 1, gradients_memory(shapes, 4 * 512, SKETCH, 2)),
        ("generation, 32 x 1,024 + 64 tokens", 1, generation_memory(shapes, 32, 1024, 64, 2)),
        ("merge of 8 branches (host)", 0, merging_memory(8)),
    ]
    return [line(name, what, gpus, parts) for what, gpus, parts in work]


def line(name: str, what: str, gpus: int, parts: Parts) -> dict[str, Any]:
    total = sum(parts.values()) / 1e9
    states = ("weights", "float32 weights", "gradients", "optimiser")
    columns = {
        "weights, gradients, states": sum(parts.get(key, 0) for key in states)
        + parts.get("trained, gradients, states", 0),
        "vision part": parts.get("vision part", 0) + parts.get("vision part's pass", 0),
        "gathered, in flight": parts.get("gathered", 0) + parts.get("gradients in flight", 0),
        "activations": sum(
            parts.get(k, 0) for k in ("activations", "KV cache", "one layer's pass")
        ),
        "logits": parts.get("logits", 0),
    }
    fits = [str(size) for size in CARDS if total <= size]
    return {
        "model": name,
        "work": what,
        "GPUs": gpus,
        **{key: value / 1e9 for key, value in columns.items()},
        "other": total - sum(columns.values()) / 1e9,
        "total GB each": total,
        "fits": fits[0] if fits else "none",
    }


def beside_measured(result: dict[str, Any]) -> pd.DataFrame:
    """The peaks that `benchmarks.training` measured, and what is predicted of the same rows.

    torch counts its own tensors, so the overhead is left out.
    """
    shapes = shapes_from_config(CONFIGS / f"{result['shape']}.json")
    lines = []
    for row in result.get("mfu", []):
        kept = row["gradient_checkpointing"]
        parts = training_memory(shapes, 1, result["mfu_tokens"], checkpointing=kept)
        predicted = (sum(parts.values()) - parts["overhead"]) / 1e9
        measured = row["peak_memory_gb"]
        lines.append(
            {
                "model": result["shape"],
                "tokens a row": result["mfu_tokens"],
                "checkpointing": kept,
                "predicted GB": predicted,
                "measured GB": measured,
                "ratio": predicted / measured,
            }
        )
    return pd.DataFrame(lines)


def page(found: dict[str, Shapes], table: pd.DataFrame) -> str:
    counts = pd.DataFrame(
        {
            "model": name,
            "decoder (trained)": f"{shapes.decoder:,}",
            "vision encoder": f"{shapes.components.get('vision', 0):,}",
            "projector": f"{shapes.components.get('projector', 0):,}",
            "all": f"{shapes.total:,}",
            "tensors": str(len(shapes.tensors)),
            "bfloat16 GB": f"{2 * shapes.total / 1e9:.2f}",
            "float32 GB": f"{4 * shapes.total / 1e9:.2f}",
        }
        for name, shapes in found.items()
    )
    return f"""# What the paper's models take

Written by `python -m benchmarks.memory` from each model's config.json; nothing was loaded or run.

## Parameters

A tied embedding counts once.

{counts.to_markdown(index=False, disable_numparse=True)}

## Peak memory, predicted

GB (1e9 bytes) of each GPU, or of the host. Full fine-tuning: the decoder in float32 with gradients
and AdamW's two states, cut over the GPUs (FSDP2); the frozen vision part whole on each; the root
and two layers gathered in bfloat16; rows of {TOKENS:,} tokens, decoder layers checkpointed, logits
of 2,048 tokens at a time. `fits`: the smallest of cards of {", ".join(map(str, CARDS))} GB. What
each part follows from is said in merit/check/memory.py.

{table.to_markdown(index=False, floatfmt=".2f")}
"""


def measured_section() -> str:
    if not MEASURED.is_file():
        return "\nNone of it has been held against a GPU yet.\n"
    result = read_json(MEASURED)
    table = beside_measured(result).to_markdown(index=False, floatfmt=".2f")
    return f"\n## Beside what was measured on {result['device']}\n\n{table}\n"


if __name__ == "__main__":
    main()

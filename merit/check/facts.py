"""facts.yaml as types, and the hardware that an estimate is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from merit.config.settings import Settings, load_yaml, nearest
from merit.errors import MeritError
from merit.io.artifacts import read_json

FILE = Path(__file__).with_suffix(".yaml")
MEASURED = Path("reports/benchmarks/training-gpu.json")  # of `python -m benchmarks.training`
Precision = Literal["float32", "bfloat16"]


class Assumptions(Settings):
    mfu: float
    pixels: float
    generation_step: float
    disk_gb_a_second: float
    bytes_a_token: float
    host_gb: float
    host_gb_cuda: float
    judge_tokens: list[int]


class Card(Settings):
    """A GPU, or a core of a processor; TFLOP/s, GB and GB/s."""

    name: str
    memory_gb: float
    bfloat16: float | None
    float32: float
    bandwidth: float
    mfu: float | None = None
    step_seconds: float = 0.0
    source: str


class SourceFacts(Settings):
    tasks: int
    examples: int
    gigabytes: float | None
    also: list[str] = Field(default_factory=list)
    gated: bool = False
    images: int
    image_tokens: float | None = None  # None: as many as `pixels` make
    text_tokens: float
    loss_share: float
    source: str


class BenchmarkFacts(Settings):
    requests: int
    images: int = 0
    prompt_tokens: float
    answer_tokens: int = 0
    judge_calls: int = 0
    gated: str | None = None


class JudgePrice(Settings):
    price: list[float]
    date: str
    source: str


class Facts(Settings):
    assumptions: Assumptions
    cards: dict[str, Card]
    sources: dict[str, SourceFacts]
    image_folders: dict[str, float | None]
    benchmarks: dict[str, BenchmarkFacts]
    judge_prices: dict[str, JudgePrice]


@cache
def facts() -> Facts:
    return load_yaml(FILE, Facts)


@dataclass(frozen=True)
class Machine:
    """`count` GPUs of one kind, or cores where there is none."""

    card: Card
    count: int
    mfu: float
    mfu_from: str

    @property
    def is_gpu(self) -> bool:
        return self.card.memory_gb > 0

    def hours(self, flop: float, precision: Precision, steps: float = 0.0) -> float:
        """Of one device; a card without bfloat16 computes in float32."""
        rate = (self.card.bfloat16 if precision == "bfloat16" else None) or self.card.float32
        return (flop / (self.mfu * rate * 1e12) + steps * self.card.step_seconds) / 3600


def machine(name: str | None, workers: int, checkpointing: bool) -> Machine:
    """The hardware called so ("h100x8"), or what is here; `workers` are the cores in use.

    Raises MeritError for a name that is none.
    """
    known = facts().cards
    if name is None:
        key, count = _here(workers)
    else:
        found = re.fullmatch(r"(.+?)(?:x([1-9]\d*))?", name.lower())
        key, count = (found[1], int(found[2] or 1)) if found else (name, 1)
    if key not in known:
        raise MeritError(
            f"--gpu: found {name or key!r}, expected a card and how many, such as h100x8."
            f"{nearest(key, list(known))}"
        )
    card = known[key]
    if card.mfu is not None:
        return Machine(card, count, card.mfu, f"{card.name}: {card.source}")
    share, origin = _measured_mfu(checkpointing)
    return Machine(card, count, share, f"{card.name}: {card.source}; {origin}")


def _here(workers: int) -> tuple[str, int]:
    import torch

    if not torch.cuda.is_available():
        return "cpu", workers
    found = torch.cuda.get_device_name()
    key = next((k for k in facts().cards if k in found.lower()), found)
    return key, torch.cuda.device_count()


def _measured_mfu(checkpointing: bool) -> tuple[float, str]:
    """The share of the peak that training reached, and where the number is from."""
    rows: list[dict[str, Any]] = []
    if MEASURED.is_file():
        result = read_json(MEASURED)
        rows = [r for r in result.get("mfu", []) if r["gradient_checkpointing"] == checkpointing]
    if rows and rows[0].get("mfu_with_vision"):
        share = float(rows[0]["mfu_with_vision"])
        return share, f"MFU {share:.2f} as measured on {result['device']} ({MEASURED})"
    share = facts().assumptions.mfu
    return share, f"MFU {share:.2f} assumed: {MEASURED} is not there yet"

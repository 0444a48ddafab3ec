"""What an estimate follows from, a row of it, and the arithmetic that stages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merit.check.amounts import Amount
from merit.check.facts import BenchmarkFacts, Machine, Precision
from merit.check.memory import Parts
from merit.check.shapes import Shapes
from merit.config import Experiment, Launch
from merit.config.branches import Plan

COUNTS = "config.json: exact counts, merit.check.memory"
LONGER = 2.0  # the longest example of a padded batch, or answer, over the mean one; assumed


@dataclass(frozen=True)
class Row:
    """What a stage takes: hours of one device, GB at its peak, GB that stay. None is unknown.

    `devices` share the hours; `unsized` is fetched, too, and nobody says how large it is.
    """

    stage: str
    runs: int = 1
    hours: float | None = 0.0
    gpu_gb: float | None = 0.0  # of each GPU
    host_gb: float | None = 0.0
    disk_gb: float | None = 0.0
    download_gb: float | None = 0.0
    devices: float = 1
    unsized: tuple[str, ...] = ()
    basis: tuple[str, ...] = ()

    @property
    def wall(self) -> float | None:
        """Hours by the clock."""
        return None if self.hours is None else self.hours / self.devices


@dataclass(frozen=True)
class Work:
    """All that an estimate follows from.

    `origins` are the GB of the hub's models that the base begins with, by name; `records` the
    benchmarks' of merit.eval.benchmarks.
    """

    experiment: Experiment
    plan: Plan
    shapes: Shapes
    machine: Machine
    launch: Launch
    mixture: Amount
    phases: Sequence[Amount]
    origins: Mapping[str, float]
    questions: Mapping[str, BenchmarkFacts]
    records: Mapping[str, Any]

    @property
    def gpus(self) -> int:
        """Of a branch."""
        return max(1, self.launch.gpus_per_branch) if self.machine.is_gpu else 1

    @property
    def precision(self) -> Precision:
        """Of a model that only reads."""
        dtype = self.experiment.model.dtype
        stored: Precision = "bfloat16" if self.shapes.stored_bytes == 2 else "float32"
        return stored if dtype == "stored" else dtype

    @property
    def width(self) -> int:
        return 2 if self.precision == "bfloat16" else 4

    @property
    def model_gb(self) -> float:
        """Of a model as it is stored."""
        return self.shapes.stored_bytes * self.shapes.total / 1e9


def flop(shapes: Shapes, amount: Amount, factor: int, cached: bool = False) -> float:
    """Of passes over so many tokens: 2 a weight forward, 6 with a decoder that learns.

    The output layer sees loss-bearing tokens alone, the vision part is forward only (unless
    its images are cached). Attention between tokens is left out: 2 % at 1,000 of them.
    """
    layers = factor * shapes.num_layers * shapes.layer * amount.num_tokens
    output = factor * shapes.embedding * amount.num_loss_tokens
    encoder = shapes.components.get("vision", 0) * shapes.patches
    seen = 0.0 if cached else 2.0 * amount.num_image_tokens
    return layers + output + seen * (encoder + shapes.components.get("projector", 0))


def pass_tokens(work: Work, size: int) -> float:
    """Of one forward pass over a padded batch of `size` examples."""
    mixture = work.mixture
    longest = LONGER * mixture.num_tokens / max(mixture.num_examples, 1)
    return size * min(longest, work.experiment.encoding.max_tokens or longest)


def with_memory(work: Work, row: Row, parts: Parts, host: float) -> Row:
    """The row with its peaks: on a GPU and `host` GB beside it, or all in the host's memory."""
    gigabytes = sum(parts.values()) / 1e9
    if work.machine.is_gpu:
        return replace(row, gpu_gb=gigabytes, host_gb=host)
    return replace(row, host_gb=gigabytes)

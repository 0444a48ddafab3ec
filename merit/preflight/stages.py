"""A row a stage: what it takes on a machine. Pure: everything is handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from merit.config import Experiment, Launch, Phase, Training
from merit.methods import Branch, Plan, optimizer_of
from merit.preflight.amounts import Amount, image_tokens
from merit.preflight.facts import BenchmarkFacts, Machine, Precision, facts
from merit.preflight.memory import (
    STATES,
    Parts,
    adapter_entries,
    generation_memory,
    gradients_memory,
    merging_memory,
    training_memory,
)
from merit.preflight.shapes import Shapes

COUNTS = "config.json: exact counts, merit.preflight.memory"
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
    benchmarks' of eval.benchmarks.
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


def branch_flop(work: Work, branch: Branch) -> float:
    """Of one branch; its group is taken as an even share of the mixture."""
    factor = 4 if work.experiment.training.lora else 6
    amount = work.mixture.times(branch.epochs / branch.num_groups)
    return flop(work.shapes, amount, factor, work.experiment.encoding.cache_images)


def branch_hours(work: Work, branch: Branch) -> float:
    size = optimizer_of(work.experiment, branch).batch_size
    steps = work.mixture.num_examples * branch.epochs / branch.num_groups / size
    found = branch_flop(work, branch)
    return work.machine.hours(found, work.experiment.training.precision, steps)


def pass_tokens(work: Work, size: int) -> float:
    """Of one forward pass over a padded batch of `size` examples."""
    mixture = work.mixture
    longest = LONGER * mixture.num_tokens / max(mixture.num_examples, 1)
    return size * min(longest, work.experiment.encoding.max_tokens or longest)


def training_parts(work: Work, gpus: int) -> Parts:
    """Peak memory of a branch on so many GPUs, each."""
    settings = work.experiment.training
    size = max([optimizer_of(work.experiment, b).batch_size for b in work.plan.branches.values()])
    return training_memory(
        work.shapes,
        gpus,
        settings.pack_tokens or pass_tokens(work, size),
        bfloat16=settings.precision == "bfloat16",
        checkpointing=settings.gradient_checkpointing,
        entries=adapter_entries(work.shapes, settings.lora) if settings.lora else None,
        states=STATES[settings.optimizer.algorithm],
        dense_mask=settings.pack_tokens is not None and work.experiment.model.attention == "sdpa",
    )


def with_memory(work: Work, row: Row, parts: Parts, host: float) -> Row:
    """The row with its peaks: on a GPU and `host` GB beside it, or all in the host's memory."""
    gigabytes = sum(parts.values()) / 1e9
    if work.machine.is_gpu:
        return replace(row, gpu_gb=gigabytes, host_gb=host)
    return replace(row, host_gb=gigabytes)


def kept_entries(work: Work) -> int:
    """Of a task's gradient."""
    settings = work.experiment.gradients
    sketched = settings.representation == "sketch"
    return settings.sketch_size if sketched else -(-work.shapes.decoder // settings.stride)


def rows(work: Work) -> list[Row]:
    """Every stage of the experiment, in order; studies are not estimated."""
    return [
        *preparation(work),
        gradients(work),
        partition(work),
        train(work),
        merge(work),
        evaluate(work),
        *([not_estimated(work)] if work.experiment.studies.named else []),
    ]


def preparation(work: Work) -> list[Row]:
    """data, base and encode."""
    shapes, mixture, given = work.shapes, work.mixture, facts().assumptions
    host = given.host_gb_cuda if work.machine.is_gpu else given.host_gb
    text = (mixture.num_tokens - mixture.num_image_tokens) * given.bytes_a_token / 1e9
    fetched = [mixture, *work.phases]
    cached = 4 * mixture.num_image_tokens * shapes.hidden / 1e9
    pairs = zip(work.experiment.base.phases, work.phases, strict=True)
    trained = sum(phase_hours(work, phase, amount) for phase, amount in pairs)
    basis = tuple(dict.fromkeys(a.basis for a in fetched))
    # phases read their examples into memory and encode them there, all before the first step
    read = sum(3e3 * a.num_examples + 5 * a.num_tokens for a in work.phases) / 1e9
    base = Row(
        "base",
        hours=trained,
        host_gb=work.model_gb + read + host,
        disk_gb=work.model_gb,
        download_gb=sum(work.origins.values()),
        basis=(COUNTS, work.machine.mfu_from) if work.phases else (COUNTS,),
    )
    takes = [
        phase_memory(work, *pair)
        for pair in zip(work.experiment.base.phases, work.phases, strict=True)
    ]
    if takes:
        base = with_memory(
            work, base, max(takes, key=lambda parts: sum(parts.values())), base.host_gb or 0
        )
    return [
        Row(
            "data",
            host_gb=given.host_gb,
            disk_gb=text,
            download_gb=sum(amount.gigabytes for amount in fetched),
            unsized=tuple(dict.fromkeys(name for amount in fetched for name in amount.unsized)),
            basis=basis,
        ),
        base,
        Row(
            "encode",
            host_gb=given.host_gb * work.experiment.encoding.workers,
            disk_gb=5 * mixture.num_tokens / 1e9
            + (cached if work.experiment.encoding.cache_images else 0.0),
            basis=basis[:1],
        ),
    ]


def phase_hours(work: Work, phase: Phase, amount: Amount) -> float:
    """A phase's training; without the decoder, its weights' own gradients are not taken."""
    factor = 6 if "decoder" in phase.trainable else 4
    needed = flop(work.shapes, amount, factor)
    return work.machine.hours(needed, phase_settings(phase).precision, phase.num_steps)


def phase_settings(phase: Phase) -> Training:
    """How a phase's steps are computed, as a branch's would be."""
    keys = ("trainable", "optimizer", "precision", "pack_tokens", "gradient_checkpointing")
    return Training(**{key: getattr(phase, key) for key in keys if hasattr(phase, key)})


def phase_memory(work: Work, phase: Phase, amount: Amount) -> Parts:
    """Of one process: a phase is not cut over GPUs."""
    settings = phase_settings(phase)
    longest = LONGER * phase.optimizer.batch_size * amount.num_tokens / amount.num_examples
    part = sum(work.shapes.components.get(name, 0) for name in phase.trainable)
    return training_memory(
        work.shapes,
        1,
        settings.pack_tokens or longest,
        bfloat16=settings.precision == "bfloat16",
        checkpointing=settings.gradient_checkpointing,
        entries=None if "decoder" in phase.trainable else part,
        states=STATES[phase.optimizer.algorithm],
        sharded=False,
    )


def gradients(work: Work) -> Row:
    settings, mixture = work.experiment.gradients, work.mixture
    limit = settings.num_examples * mixture.num_tasks
    part = mixture.times(min(1.0, limit / max(mixture.num_examples, 1)))
    steps = part.num_examples / settings.batch_size
    needed = flop(work.shapes, part, 6, work.experiment.encoding.cache_images)
    kept = kept_entries(work)
    parts = gradients_memory(work.shapes, pass_tokens(work, settings.batch_size), kept, work.width)
    row = Row(
        "gradients",
        hours=work.machine.hours(needed, work.precision, steps),
        disk_gb=4 * kept * mixture.num_tasks / 1e9,
        devices=min(work.machine.count, mixture.num_tasks),
        basis=(COUNTS, work.machine.mfu_from),
    )
    return with_memory(work, row, parts, facts().assumptions.host_gb_cuda)


def partition(work: Work) -> Row:
    """Cosines of all pairs of rows: the gradients are read once."""
    rate = facts().assumptions.disk_gb_a_second
    size = 4 * kept_entries(work) * work.mixture.num_tasks / 1e9
    basis = (f"{rate:g} GB a second assumed",)
    return Row(
        "partition", hours=size / rate / 3600, host_gb=facts().assumptions.host_gb, basis=basis
    )


def train(work: Work) -> Row:
    """All branches; the disk also holds the states of those that run side by side."""
    settings, shapes = work.experiment.training, work.shapes
    branches = work.plan.branches.values()
    trained = adapter_entries(shapes, settings.lora) if settings.lora else shapes.decoder
    side_by_side = min(len(branches), max(1, work.machine.count // work.gpus))
    states = 4 * (1 + STATES[settings.optimizer.algorithm]) * trained * side_by_side
    disk = 4 * trained * len(branches) + (states if settings.checkpoint_minutes else 0)
    # every process of a branch collects the trained parameters in float32 at the end
    host = side_by_side * work.gpus * (facts().assumptions.host_gb_cuda + 4 * trained / 1e9)
    row = Row(
        "train",
        len(branches),
        hours=sum(branch_hours(work, branch) for branch in branches),
        disk_gb=disk / 1e9,
        devices=side_by_side * work.gpus,
        basis=(COUNTS, work.machine.mfu_from),
    )
    return with_memory(work, row, training_parts(work, work.gpus), host)


def merge(work: Work) -> Row:
    """All models; read and written at the disk's speed."""
    width = {"base": work.shapes.stored_bytes, "float32": 4}.get(work.experiment.merge_dtype, 2)
    written = width * work.shapes.total * len(work.plan.models) / 1e9
    read = 4 * work.shapes.decoder * sum(len(m.branches) for m in work.plan.models.values()) / 1e9
    most = max(len(m.branches) for m in work.plan.models.values())
    rate = facts().assumptions.disk_gb_a_second
    return Row(
        "merge",
        len(work.plan.models),
        hours=(written + read) / rate / 3600,
        host_gb=sum(merging_memory(most).values()) / 1e9,
        disk_gb=written,
        basis=(COUNTS, f"{rate:g} GB a second assumed"),
    )


def evaluate(work: Work) -> Row:
    """All models' answers: prompts at training's share of the peak, tokens by memory speed."""
    settings, shapes, card = work.experiment.evaluation, work.shapes, work.machine.card
    picture = image_tokens(work.experiment, settings)
    hours = longest = 0.0
    step = max(
        facts().assumptions.generation_step if work.machine.is_gpu else card.step_seconds,
        work.width * shapes.decoder / (card.bandwidth * 1e9),
    )
    for known in work.questions.values():
        tokens = known.prompt_tokens + known.images * picture
        seen = (tokens * known.requests, known.images * picture * known.requests)
        amount = Amount(0, known.requests, *seen, known.requests)
        batches = ceil(known.requests / settings.batch_size)
        hours += work.machine.hours(flop(shapes, amount, 2), work.precision, batches)
        hours += batches * LONGER * known.answer_tokens * step / 3600
        longest = max(longest, tokens)
    parts = generation_memory(
        shapes, settings.batch_size, LONGER * longest, settings.max_new_tokens, work.width
    )
    row = Row(
        "evaluate",
        len(work.plan.models),
        hours=hours * len(work.plan.models),
        devices=min(work.machine.count, len(work.plan.models)),
        unsized=tuple(name for name, record in work.records.items() if record.public),
        basis=(COUNTS, "questions and lengths of answers: facts.yaml"),
    )
    return with_memory(work, row, parts, work.model_gb + facts().assumptions.host_gb_cuda)


def not_estimated(work: Work) -> Row:
    named = ", ".join(work.experiment.studies.named)
    count = len(work.experiment.studies.named)
    return Row("study", count, None, None, None, None, None, basis=(f"not estimated: {named}",))

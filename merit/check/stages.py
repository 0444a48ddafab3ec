"""A row a stage: what it takes on a machine. Pure: everything is handed in."""

from __future__ import annotations

from math import ceil

from merit.check.amounts import Amount, image_tokens
from merit.check.estimate import COUNTS, LONGER, Row, Work, flop, pass_tokens, with_memory
from merit.check.facts import facts
from merit.check.memory import (
    STATES,
    Parts,
    adapter_entries,
    generation_memory,
    gradients_memory,
    merging_memory,
    training_memory,
)
from merit.check.preparation import preparation
from merit.config.branches import Branch, optimizer_of
from merit.eval.studies import settings_of


def branch_hours(work: Work, branch: Branch) -> float:
    """Of one branch; its group is taken as an even share of the mixture."""
    experiment = work.experiment
    amount = work.mixture.times(branch.epochs / branch.num_groups)
    factor = 4 if experiment.training.lora else 6
    needed = flop(work.shapes, amount, factor, experiment.encoding.cache_images)
    steps = amount.num_examples / optimizer_of(experiment, branch).batch_size
    return work.machine.hours(needed, experiment.training.precision, steps)


def training_parts(work: Work, gpus: int) -> Parts:
    """Peak memory of a branch on so many GPUs, each."""
    settings = work.experiment.training
    branches = work.plan.branches.values()
    sizes = [optimizer_of(work.experiment, branch).batch_size for branch in branches]
    size = max([settings.optimizer.batch_size, *sizes])
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
        *([not_estimated(work)] if work.experiment.studies else []),
    ]


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
        devices=max(1, min(work.machine.count, mixture.num_tasks)),
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
    side_by_side = max(1, min(len(branches), work.machine.count // work.gpus))
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
    named = settings_of(work.experiment)
    return Row(
        "study",
        len(named),
        None,
        None,
        None,
        None,
        None,
        basis=(f"not estimated: {', '.join(named)}",),
    )

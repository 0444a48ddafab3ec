"""data, base and encode: what they take."""

from __future__ import annotations

from merit.check.amounts import Amount
from merit.check.estimate import COUNTS, LONGER, Row, Work, flop, with_memory
from merit.check.facts import facts
from merit.check.memory import STATES, Parts, training_memory
from merit.config import Phase, Training


def preparation(work: Work) -> list[Row]:
    """data, base and encode."""
    shapes, mixture, given = work.shapes, work.mixture, facts().assumptions
    host = given.host_gb_cuda if work.machine.is_gpu else given.host_gb
    text = (mixture.num_tokens - mixture.num_image_tokens) * given.bytes_a_token / 1e9
    fetched = [mixture, *work.phases]
    cached = 4 * mixture.num_image_tokens * shapes.hidden / 1e9
    phases = list(zip(work.experiment.base.phases, work.phases, strict=True))
    basis = tuple(dict.fromkeys(a.basis for a in fetched))
    # phases read their examples into memory and encode them there, all before the first step
    read = sum(3e3 * a.num_examples + 5 * a.num_tokens for a in work.phases) / 1e9
    base = Row(
        "base",
        hours=sum(phase_hours(work, *pair) for pair in phases),
        host_gb=work.model_gb + read + host,
        disk_gb=work.model_gb,
        download_gb=sum(work.origins.values()),
        basis=(COUNTS, work.machine.mfu_from) if work.phases else (COUNTS,),
    )
    if phases:
        takes = max((phase_memory(work, *pair) for pair in phases), key=lambda p: sum(p.values()))
        base = with_memory(work, base, takes, work.model_gb + read + host)
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
    return Training(**{key: getattr(phase, key) for key in keys})


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

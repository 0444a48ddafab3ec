"""A short training of the tiny model, and its arrays as files, for several tests."""

from __future__ import annotations

import copy
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merit.config import Optimizer, Training
from merit.io.artifacts import write_json
from merit.train.batches import data_order
from merit.train.checkpoint import Checkpoints, Record
from merit.train.dataset import ARRAYS, NUMBERS, TokenizedDataset, array_file
from merit.train.loop import train
from merit.train.model import set_trainable
from merit.train.optimizers import learning_rate_at
from tests.conftest import Tiny

Result = tuple[dict[str, torch.Tensor], list[Record]]


def settings(algorithm: str = "adamw", rate: float = 3e-3, **changes: Any) -> Training:
    """Steps of 4 examples on the decoder."""
    keys = {"learning_rate": rate, "batch_size": 4, "warmup_ratio": 0.0, "algorithm": algorithm}
    optimizer = Optimizer.model_validate(keys | changes.pop("optimizer", {}))
    return Training.model_validate({"trainable": ["decoder"], "optimizer": optimizer, **changes})


def fit(
    tiny: Tiny,
    training: Training,
    order: np.ndarray | None = None,
    data: TokenizedDataset | None = None,
    prepare: Callable[[Any], None] = lambda model: None,
    checkpoints: Callable[[list[Record], list[Record]], Checkpoints] | None = None,
    **options: Any,
) -> Result:
    """(trained tensors, records) of a copy of the tiny model; by default two epochs, 8 steps."""
    model = copy.deepcopy(tiny.model)
    prepare(model)
    parameters = set_trainable(model, training.trainable)
    records: list[Record] = []
    timings: list[Record] = []

    def log(record: Record, timing: Record) -> None:
        records.append(record)
        timings.append(timing)

    train(
        model,
        parameters,
        data or tiny.encoded,
        data_order(len(tiny.encoded), 2.0, 1) if order is None else order,
        training.optimizer,
        what="branch x",
        settings=training,
        log=log,
        checkpoints=checkpoints(records, timings) if checkpoints else None,
        **options,
    )
    return {name: p.detach() for name, p in parameters.items()}, records


def same_bytes(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether both hold the same tensors, bit by bit."""
    return first.keys() == second.keys() and all(
        tensor.numpy().tobytes() == second[name].numpy().tobytes() for name, tensor in first.items()
    )


def stop_at(run: Callable[[], None], call: int) -> None:
    """Run a stage that gets SIGTERM when its loop asks that many times whether to save."""
    due, calls = Checkpoints.due, itertools.count(1)

    def ask(checkpoints: Checkpoints) -> bool:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return due(checkpoints)

    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "due", ask)
        with pytest.raises(SystemExit) as end:
            run()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert end.value.code == 75


def steps_of(run: Callable[[], None]) -> list[int]:
    """The steps that the stage computes."""
    steps: list[int] = []

    def rate(step: int, num_steps: int, optimizer: Optimizer) -> float:
        steps.append(step)
        return learning_rate_at(step, num_steps, optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merit.train.loop.learning_rate_at", rate)
        run()
    return steps


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def save_encoded(data: TokenizedDataset, folder: Path) -> None:
    """Write the dataset's files as the encode stage does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        np.save(array_file(folder, name), getattr(data, name))
    write_json(folder / "meta.json", {name: int(getattr(data, name)) for name in NUMBERS})

"""Small trainings that one process, or several with torchrun's variables, do alike."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed.fsdp  # once, before the processes are forked

from merit.config import Architecture, Lora, Optimizer, Training
from merit.data.examples import make_example
from merit.mini.nets import VOCABULARY, build_model, build_processor
from merit.train.dataset import TokenizedDataset
from merit.train.distributed import process_group
from merit.train.loop import train
from merit.train.lora import add_adapters
from merit.train.model import set_trainable
from merit.train.tokenize import encode_examples

TEXT: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3},
}
VISION = {
    **{"vision_hidden_size": 16, "vision_intermediate_size": 24, "vision_depth": 1},
    **{"vision_num_heads": 2, "patch_size": 7},
}
OPTIMIZER = Optimizer(learning_rate=1e-2, batch_size=7, algorithm="adamw")
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "lora": {"lora": Lora(rank=2)},
}
GRID = [1, 4, 4]  # patches of every image


def outcome(case: str) -> dict[str, Any]:
    """{"losses": (loss, gradient norm) a step, "norm" of the trained tensors, "sharded"}."""
    torch.set_num_threads(1)
    settings = Training(trainable=["decoder"], pack_tokens=50, optimizer=OPTIMIZER, **CASES[case])
    model, data = vision()
    if settings.lora is not None:
        parameters = add_adapters(model, settings.lora, seed=0)
    else:
        parameters = set_trainable(model, settings.trainable)
    frozen = [p.detach().clone() for n, p in model.named_parameters() if n not in parameters]
    losses: list[list[float]] = []
    with process_group(settings.precision, settings.lora is not None) as group:
        train(
            model,
            parameters,
            data,
            np.arange(20).repeat(2),
            settings.optimizer,
            what="x",
            settings=settings,
            log=lambda record, _: losses.append([record["loss"], record["gradient_norm"]]),
            group=group,
        )
        after = [p for n, p in model.named_parameters() if n not in parameters]
        whole = group.gathered(parameters)
        return {
            "losses": losses,
            "norm": sum(float(p.detach().double().square().sum()) for p in whole.values()),
            "sharded": group.sharded,
            "frozen": all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True)),
        }


def vision() -> tuple[Any, TokenizedDataset]:
    """One example in three has an image, so that some rows, and processes, have none."""
    words = VOCABULARY.read_text(encoding="utf-8").split()
    architecture = Architecture(**TEXT, **VISION)
    processor = build_processor(words, architecture, 28)
    known = sorted(w for w in processor.tokenizer.get_vocab() if w.isalpha())[:40]
    rows, images = [], {}
    for i in range(20):
        shown = (f"{i}.png",) if i % 3 == 0 else ()
        images |= {path: len(images) for path in shown}
        prompt = " ".join(known[i : i + 9])
        rows.append(make_example(str(i), "t", [(prompt, " ".join(known[i + 3 : i + 5]))], shown))
    grids = np.array([GRID] * len(images), dtype=np.int32)

    def read(paths: Any) -> tuple[torch.Tensor, np.ndarray]:
        pixels = [
            torch.randn(16, 294, generator=torch.Generator().manual_seed(images[path]))
            for path in paths
        ]
        return torch.cat(pixels), torch.tensor([GRID] * len(paths))

    data = encode_examples(rows, processor, images, grids)
    return build_model(processor, architecture, seed=1), replace(data, read_images=read)


def in_processes(number: int) -> dict[str, dict[str, Any]]:
    """Every case's outcome in `number` processes, forked: what is imported here is there."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in CASES]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in sockets]
    workers = [
        context.Process(target=outcomes, args=(rank, number, ports, results), daemon=True)
        for rank in range(number)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    return next(result for result in (results.get() for _ in workers) if result)


def outcomes(rank: int, number: int, ports: list[int], results: Any) -> None:
    """Put every case's outcome, from the first process; each case meets at a port of its own,
    since the one before may still close.
    """
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_RANK": str(rank)}
    by_case = {}
    for case, port in zip(CASES, ports, strict=True):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        by_case[case] = outcome(case)
    results.put(by_case if rank == 0 else {})

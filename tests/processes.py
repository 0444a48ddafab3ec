"""The table of small trainings in one process or in several."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint  # once, before the processes are forked
import torch.distributed.fsdp

from merit.run.smoke_table import Cell
from merit.run.smoke_table import outcome as table_outcome
from merit.train import loss as loss_module


def outcome(cell: Cell, folder: Path | None = None, stop: int = 0, **options: Any) -> Any:
    """That of the table, on one thread; packed rows take a large vocabulary's loss, in chunks."""
    torch.set_num_threads(1)
    limit, chunk = (0, 5) if cell.packed else (loss_module.SMALL_VOCABULARY, loss_module.CHUNK)
    with mock.patch.multiple(loss_module, SMALL_VOCABULARY=limit, CHUNK=chunk):
        return table_outcome(cell, folder, stop, **options)


def in_processes(
    number: int, jobs: Sequence[tuple[Any, ...]], function: Callable[..., Any] = outcome
) -> list[Any]:
    """What `function` of each job's arguments gives the first of `number` processes.

    They are forked, so that what is imported here is there, and start one group for all jobs.
    """
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        context.Process(
            target=_work, args=(rank, number, port, jobs, function, results), daemon=True
        )
        for rank in range(number)
    ]
    for worker in workers:
        worker.start()
    found = results.get()
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    return found


def _work(
    rank: int,
    number: int,
    port: int,
    jobs: Sequence[tuple[Any, ...]],
    function: Callable[..., Any],
    results: Any,
) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=number)
    found: list[Any] = []
    try:
        found = [function(*job) for job in jobs]
    finally:
        if rank == 0:
            results.put(found)
    dist.destroy_process_group()

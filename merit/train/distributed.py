"""The processes that share one branch: a single one, or each with a shard of the model (FSDP2).

`torchrun --nproc-per-node N` starts a branch on several GPUs. Rows of a step are dealt out;
parameters, gradients and optimiser states are cut over the processes, layer by layer; the frozen
vision tower is whole in each, so that a process without an image waits for none. In bfloat16 on a
GPU a single process takes the same path: float32 parameters, of which one layer at a time exists
in bfloat16.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from merit.errors import MeritError
from merit.train.loss import LanguageLoss
from merit.train.model import component_of, decoder


@dataclass(frozen=True)
class ProcessGroup:
    """`size` processes, of which this is number `rank`; `sharded` cuts the model over them."""

    rank: int = 0
    size: int = 1
    sharded: bool = False
    bfloat16: bool = False

    @classmethod
    def alone(cls, precision: str = "float32") -> ProcessGroup:
        return cls(bfloat16=precision == "bfloat16")

    def share(self, rows: Sequence[np.ndarray]) -> list[tuple[np.ndarray, bool]]:
        """This process's rows of a step, every `size`-th, and whether each counts.

        Every process gets as many: the step's first row, which does not count, fills up. A sharded
        model's processes must take the same number of passes.
        """
        mine = [(row, True) for row in rows[self.rank :: self.size]]
        return mine + [(rows[0], False)] * (-(-len(rows) // self.size) - len(mine))

    def total(self, value: float) -> float:
        """The sum over all processes."""
        return self._reduced([value], dist.ReduceOp.SUM, torch.float64)[0]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether a process has set it; returns once all processes have asked."""
        return [bool(x) for x in self._reduced(flags, dist.ReduceOp.MAX, torch.int32)]

    def least(self, value: int) -> int:
        """The smallest over all processes."""
        return self._reduced([value], dist.ReduceOp.MIN, torch.int64)[0]

    def _reduced(self, values: Sequence[Any], operation: Any, dtype: torch.dtype) -> list[Any]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=dtype, device=_device())
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def precision(self) -> AbstractContextManager[Any]:
        """bfloat16 arithmetic, unless the sharding sees to it."""
        if self.sharded or not self.bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(_device(), torch.bfloat16)

    def prepare(
        self, module: LanguageLoss, parameters: dict[str, torch.nn.Parameter]
    ) -> LanguageLoss:
        """Cut the model over the processes; `parameters` then holds this one's shards.

        Raises MeritError if only a part of the decoder is trained, which has no shards.
        """
        if not self.sharded:
            return module
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        model = module.model
        whole = {p for n, p in model.named_parameters() if component_of(n) != "decoder"}
        frozen = [n for n, p in model.named_parameters() if p not in whole and not p.requires_grad]
        if frozen:
            raise MeritError(
                f"key `training.trainable`: {frozen[0]!r} is frozen: a decoder that is trained in "
                "part (or by LoRA) is not cut over processes; run the branch in one"
            )
        mesh = init_device_mesh(_device(), (self.size,))
        kinds = (torch.bfloat16, torch.float32) if self.bfloat16 else (None, None)
        options: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(param_dtype=kinds[0], reduce_dtype=kinds[1]),
        }
        for layer in decoder(model).layers:
            fully_shard(layer, **options)
        fully_shard(module, ignored_params=whole, **options)
        parameters.update((n, p) for n, p in model.named_parameters() if n in parameters)
        return module

    def average_gradients(self, tensors: Sequence[torch.nn.Parameter]) -> None:
        """Replace every unsharded gradient by its mean over processes, as FSDP does for shards."""
        if self.size == 1:
            return
        for tensor in tensors:
            if not hasattr(tensor, "full_tensor"):
                if tensor.grad is None:
                    tensor.grad = torch.zeros_like(tensor)
                dist.all_reduce(tensor.grad)
                tensor.grad /= self.size

    def clip(self, tensors: Sequence[torch.nn.Parameter], limit: float) -> float:
        """Scale the gradients to a norm of at most `limit`; return the norm before."""
        return float(_whole(torch.nn.utils.clip_grad_norm_(tensors, limit)))

    def gathered(self, parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
        """The whole parameters on the first process' CPU, none on the others; all must ask."""
        gathered = {}
        for name, parameter in parameters.items():
            whole = _whole(parameter)  # of one parameter at a time
            if self.rank == 0:
                gathered[name] = torch.nn.Parameter(whole.detach().cpu())
        return gathered


@contextlib.contextmanager
def process_group(precision: str, partial: bool) -> Iterator[ProcessGroup]:
    """The processes of this branch, as torchrun sets them (RANK, WORLD_SIZE), or only this one.

    Args: partial: only a part of the decoder learns; then the model is whole in each process.
    """
    rank, size = (int(os.environ.get(key, n)) for key, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    on_gpu, low = torch.cuda.is_available(), precision == "bfloat16"
    sharded = (size > 1 or (on_gpu and low)) and not partial
    if size == 1 and not sharded:
        yield ProcessGroup.alone(precision)
        return
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    store = dist.HashStore() if size == 1 else None  # one process needs no address
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size
    )
    try:
        yield ProcessGroup(rank, size, sharded, low)
    finally:
        dist.destroy_process_group()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A DTensor gathered from all processes; another tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"

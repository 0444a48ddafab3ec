"""The processes that share one training: a single one, or several that torchrun starts.

Rows of a step are dealt out. A decoder that is trained whole is cut over the processes (FSDP2),
layer by layer, with its gradients and optimiser states; everything else is whole in each process,
so that one without an image waits for none. In bfloat16 on a GPU a single process takes the same
path: float32 parameters, of which one layer at a time exists in bfloat16.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from merit.train.loss import LanguageLoss
from merit.train.model import component_of, decoder

# for a process that writes, loads or compiles; one that dies ends the others by torchrun
WAIT = timedelta(hours=6)


@dataclass(frozen=True)
class ProcessGroup:
    """`size` processes, of which this is number `rank`; `started`: torch.distributed runs."""

    rank: int = 0
    size: int = 1
    started: bool = False

    def total(self, value: float) -> float:
        """The sum over all processes."""
        return self._reduced([value], dist.ReduceOp.SUM, torch.float64)[0]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether a process has set it; returns once all processes have asked."""
        return [bool(x) for x in self._reduced(flags, dist.ReduceOp.MAX, torch.int32)]

    def agreed(self, value: Any) -> Any:
        """The first process's value, once it has one."""
        if self.size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, device=torch.device("cpu"))
        return shared[0]

    def _reduced(self, values: Sequence[Any], operation: Any, dtype: torch.dtype) -> list[Any]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=dtype, device=_device())
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def prepare(self, module: LanguageLoss, parameters: dict[str, torch.nn.Parameter]) -> bool:
        """Cut the decoder over the processes if it is trained whole; return whether it is.

        `parameters` then holds this process's shards. Embedding and output head are groups of
        their own, so that neither is whole in memory while a layer computes.
        """
        whole = {p for n, p in module.model.named_parameters() if component_of(n) != "decoder"}
        cut = [p for p in module.model.parameters() if p not in whole]
        if not self.started or (self.size == 1 and not module.low):
            return False
        if not all(p.requires_grad for p in cut):
            return False
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        kinds = (torch.bfloat16, torch.float32) if module.low else (None, None)
        options: dict[str, Any] = {
            "mesh": init_device_mesh(_device(), (self.size,)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=kinds[0], reduce_dtype=kinds[1]),
        }
        model, layers = module.model, decoder(module.model)
        embedding, head = layers.embed_tokens, model.lm_head
        for layer in layers.layers:
            fully_shard(layer, **options)
        if embedding.weight is head.weight:
            fully_shard([embedding, head], **options, reshard_after_forward=False)
        else:
            fully_shard(embedding, **options)
            fully_shard(head, **options, reshard_after_forward=False)
        fully_shard(module, ignored_params=whole, **options)
        parameters.update((n, p) for n, p in model.named_parameters() if n in parameters)
        return True

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every unsharded gradient by its mean over processes, as FSDP does for shards."""
        if self.size == 1:
            return
        for parameter in parameters:
            if not hasattr(parameter, "full_tensor"):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def gathered(
        self, parameters: Mapping[str, torch.nn.Parameter]
    ) -> dict[str, torch.nn.Parameter]:
        """The whole parameters on the first process' CPU, none on the others; all must ask."""
        if not self.started:
            return dict(parameters)
        gathered = {}
        for name, parameter in parameters.items():
            whole = _whole(parameter.detach())  # of one parameter at a time
            if self.rank == 0:
                gathered[name] = torch.nn.Parameter(whole.cpu())
        return gathered


def clip_gradients(kinds: Sequence[Sequence[torch.nn.Parameter]], limit: float) -> float:
    """Scale the gradients to a norm of at most `limit`; return the norm before.

    Args: kinds: sharded and whole parameters apart, as `by_kind` gives them.
    """
    if len(kinds) == 1:
        return float(_whole(torch.nn.utils.clip_grad_norm_(kinds[0], limit)))
    norms = [
        _whole(torch.nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]))
        for kind in kinds
    ]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    scale = min(1.0, limit / (norm + 1e-6))  # torch's
    for gradient in (p.grad for kind in kinds for p in kind if p.grad is not None):
        gradient.mul_(scale)
    return norm


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The processes as torchrun sets them (RANK, WORLD_SIZE), or only this one.

    A group that runs already is joined, and left running.
    """
    if dist.is_initialized():
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), started=True)
        return
    rank, size = (int(os.environ.get(key, n)) for key, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    on_gpu = torch.cuda.is_available()
    if size == 1 and not on_gpu:
        yield ProcessGroup()
        return
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    store = dist.HashStore() if size == 1 else None  # one process needs no address
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=WAIT,
    )
    try:
        yield ProcessGroup(rank, size, started=True)
    finally:
        dist.destroy_process_group()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A DTensor gathered from all processes; another tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"

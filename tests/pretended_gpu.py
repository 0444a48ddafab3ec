"""A GPU that is not there: its tensors say `cuda:0`, compute on the CPU, and refuse to mix.

It counts what costs time on a real one: calls of attention, and points where Python waits for a
number of the device.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
# operations that take CPU tensors beside a GPU's: copies, and indices, which are copied
MIXED = ("copy_", "_to_copy", "index.Tensor", "index_put")
WAITING = ("_local_scalar_dense", "nonzero", "unique", "repeat_interleave.Tensor", "masked_select")
WATCHED = ("/merit/", "/eval/", "transformers/")


class Gpu:
    """Counters of one pretended device."""

    def __init__(self) -> None:
        self.attention = 0
        self.waits: Counter[str] = Counter()  # by the line of code that waits

    def wait(self) -> None:
        frames = [f for f in traceback.extract_stack() if any(w in f.filename for w in WATCHED)]
        place = frames[-1] if frames else traceback.extract_stack()[0]
        self.waits[f"{place.filename.rsplit('/', 1)[-1]}:{place.lineno}"] += 1


GPU = Gpu()


class OnGpu(torch.Tensor):
    """A tensor of the pretended device around a CPU's."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> OnGpu:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
        )

    def __init__(self, host: torch.Tensor) -> None:
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.host})"

    # torch itself sees a CPU's tensor, so that autograd needs no CUDA; Python sees a GPU's
    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        places = [x for x in (*args, kwargs.get("device")) if isinstance(x, str | torch.device)]
        if not places or torch.device(places[0]).type == "cuda":
            kept = [x for x in args if x not in places]
            kwargs.pop("device", None)
            return super().to(*kept, **kwargs) if kept or kwargs else self
        return torch.ops.aten._to_copy(self, device=torch.device("cpu"))

    def tolist(self) -> Any:
        GPU.wait()
        return self.host.tolist()

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.to("cpu")

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the CPU; its result is on the pretended device if the real one's was."""
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_gpu = any(isinstance(x, OnGpu) for x in leaves)
    name = str(func)
    hosts = [x for x in leaves if not isinstance(x, OnGpu) and x.dim() > 0]
    if on_gpu and hosts and not any(word in name for word in MIXED):
        raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
    target = kwargs.get("device")
    to_gpu = on_gpu if target is None else torch.device(target).type == "cuda"
    if on_gpu and (any(w in name for w in WAITING) or ("_to_copy" in name and not to_gpu)):
        GPU.wait()
    if on_gpu and "index" in name and "index_select" not in name:
        indices = [x for x in tree_leaves(args[1:2]) if isinstance(x, torch.Tensor)]
        if any(x.dtype == torch.bool for x in indices):
            GPU.wait()  # how many are there
    given = dict(kwargs)
    if target is not None and to_gpu:
        given["device"] = torch.device("cpu")
    if "pin_memory" in given:
        given["pin_memory"] = False
    real_args, real_kwargs = tree_map(
        lambda x: x.host if isinstance(x, OnGpu) else x, (args, given)
    )
    out = func(*real_args, **real_kwargs)
    known = {id(x.host): x for x in leaves if isinstance(x, OnGpu)}  # in place, or out=

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or isinstance(x, OnGpu):
            return x
        return known.get(id(x)) if id(x) in known else OnGpu(x)

    if not to_gpu and "copy_." not in name:
        return out
    return tree_map(wrapped, out)


class Mode(TorchDispatchMode):
    """For operations without a tensor to begin with: `torch.arange(3, device="cuda")`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def moved(model: Any) -> Any:
    """The model with every parameter and buffer on the pretended device; tied ones stay tied."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) not in made:
                made[id(parameter)] = torch.nn.Parameter(
                    OnGpu(parameter.data), requires_grad=parameter.requires_grad
                )
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = OnGpu(buffer)
    return model


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    begins: torch.Tensor,
    _: torch.Tensor,
    longest: int,
    __: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What `varlen_attn` computes: attention within each sequence, (T, heads, head_dim)."""
    GPU.attention += 1
    assert {query.device, key.device, value.device, begins.device} == {CUDA}
    bounds = begins.host.tolist()  # type: ignore[attr-defined]
    assert longest == max(end - start for start, end in pairwise(bounds))
    assert bounds[-1] == len(query)
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[start:end].transpose(0, 1)[None] for x in (query, key, value)),
            scale=scale,
            is_causal=window_size == (-1, 0),
            enable_gqa=enable_gqa,
        )[0].transpose(0, 1)
        for start, end in pairwise(bounds)
    ]
    return torch.cat(parts)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Gpu]:
    """Within it tensors may be `moved` to, and made on, the pretended device; its counters."""
    counters, original = Gpu(), torch.tensor

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, list):
            data = [x.item() if isinstance(x, OnGpu) else x for x in data]
        made = original(data, *args, **kwargs)
        return made if device is None else made.to(device)

    with pytest.MonkeyPatch.context() as patch, Mode():
        patch.setattr(f"{__name__}.GPU", counters)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(varlen, "varlen_attn", attention)
        patch.setattr("merit.train.attention._flash", contextlib.nullcontext)
        yield counters

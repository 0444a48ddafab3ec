"""`merit smoke --gpu`: tiny models through everything that a GPU does, beside the CPU's results.

Every trainable list, LoRA, precision, checkpointing and packing, a training that is stopped and
resumed, gradients, and generation with and without images. Two minutes on one GPU; what differs
from the CPU by more than rounding is named.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from merit.errors import MeritError


def smoke_gpu() -> None:
    """Print a line per check; raises MeritError that names those that failed, or without a GPU."""
    import torch

    if not torch.cuda.is_available():
        raise MeritError(
            "smoke --gpu: torch finds no GPU here; look at `nvidia-smi`, the driver's version and "
            "CUDA_VISIBLE_DEVICES"
        )
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", file=sys.stderr)
    began = time.monotonic()
    failures = run_checks(on_gpu)
    if failures:
        raise MeritError(f"smoke --gpu: {len(failures)} failed:\n  " + "\n  ".join(failures))
    print(f"the GPU gives the CPU's results, in {time.monotonic() - began:.0f} s")


def on_gpu(model: Any, low: bool, generates: bool = False) -> Any:
    """The model on the first GPU, with the attention that `auto` takes there."""
    from merit.train.attention import choose_attention

    model = model.to("cuda:0")
    choose_attention(model, "auto", low, generates)
    return model


def run_checks(place: Callable[..., Any], chosen: Callable[[Any], bool] = lambda _: True) -> list:
    """Run every check whose name is `chosen`, a line each; what failed, and why."""
    failures = []
    for name, check in checks(place):
        if not chosen(name):
            continue
        began, why = time.monotonic(), ""
        try:
            why = check()
        except Exception as error:  # the others still run
            why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        print(f"{'failed' if why else 'passed'} {time.monotonic() - began:6.2f} s  {name}  {why}")
        if why:
            failures.append(f"{name}: {why}")
    return failures


def checks(place: Callable[..., Any]) -> Iterator[tuple[str, Callable[[], str]]]:
    """(name, function): why it failed, or nothing."""
    from merit.run.smoke_table import Cell, cells, outcome

    plain: dict[Cell, Any] = {}

    def train(cell: Cell) -> str:
        if cell.plain not in plain:
            plain[cell.plain] = outcome(cell.plain)
        return difference(outcome(cell, place=place), plain[cell.plain], cell)

    fast = Cell("vision", ("projector", "decoder"), bfloat16=True, checkpointing=True, packed=True)
    more = {
        "torch": replace(fast, kernels="compiled"),
        "liger_kernel": replace(fast, kernels="liger"),
        "torchao": replace(fast, algorithm="adamw_8bit"),
    }
    for cell in (*cells(), *(cell for name, cell in more.items() if find_spec(name))):
        yield f"train {cell}", partial(train, cell)

    def resume() -> str:
        cell = Cell("vision", ("projector", "decoder"), bfloat16=True, packed=True)
        with tempfile.TemporaryDirectory(prefix="merit-smoke-") as folder:
            stopped = outcome(cell, Path(folder), 1, place)
            resumed = outcome(cell, Path(folder), place=place)
        if not stopped["stopped"]:
            return "it did not stop"
        return difference(resumed, outcome(cell.plain), cell)

    yield "stop and resume", resume
    for low in (False, True):
        yield f"gradients {'bfloat16' if low else 'float32'}", partial(gradients, place, low)
    for kind in ("text", "vision"):
        yield f"generate {kind}", partial(generation, place, kind)


def difference(found: Any, expected: Any, cell: Any) -> str:
    """What differs by more than rounding; nothing if all is as it should be."""
    one, two = np.array(found["losses"]), np.array(expected["losses"])
    by = [*np.abs(one / two - 1).max(axis=0), abs(found["norm"] / expected["norm"] - 1)]
    names = ("loss", "gradient norm", "norm of the parameters")
    # another device sums in another order, and in TF32 where it is asked to
    off = [
        f"{name} off by {x:.1e}"
        for name, x, limit in zip(names, by, cell.rounding, strict=True)
        if not x <= 10 * limit
    ]
    return ", ".join(off + ["what is frozen has changed"] * (not found["frozen"]))


def gradients(place: Callable[..., Any], low: bool) -> str:
    """A task's gradient of packed rows on the GPU, beside that of padded batches on the CPU."""
    import copy

    from merit.method.gradients import Stride
    from merit.run.smoke_table import dataset, model_of
    from merit.train.model import set_trainable
    from merit.train.task_gradients import BaseGradients

    data, found = dataset("vision"), []
    owner = np.zeros(len(data), dtype=np.int32)
    for on_device in (False, True):
        model = copy.deepcopy(model_of("vision"))
        if on_device:
            model = place(model.bfloat16() if low else model, low)
        parameters = set_trainable(model, ["projector", "decoder"])
        size = 60 if on_device else None
        base = BaseGradients(model, parameters, data, owner, ["a"], 2, size)
        found.append(base.task_gradient(0, 200, 0, Stride(1)).cpu().double())
    cosine = float(found[0] @ found[1] / (found[0].norm() * found[1].norm()))
    return "" if cosine > (0.99 if low else 0.9999) else f"cosine {cosine:.6f} with the CPU's"


def generation(place: Callable[..., Any], kind: str) -> str:
    """Greedy tokens in float32, of two prompts padded on the left, beside the CPU's."""
    import copy

    import torch

    from merit.run.smoke_table import GRID, IMAGE, dataset, model_of

    shown = int(np.prod(GRID)) // 4 if kind == "vision" else 0
    ids = torch.tensor([[0] * 2 + [IMAGE] * shown + [7, 8, 9], [IMAGE] * shown + [9, 5, 6, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if shown:
        pixels, grids = dataset(kind).read_images(["0", "1"])  # type: ignore[misc]
        inputs |= {"pixel_values": pixels, "image_grid_thw": grids}
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    answers = []
    for on_device in (False, True):
        model = copy.deepcopy(model_of(kind))
        if on_device:
            model = place(model, False, True)
        with torch.no_grad():
            given = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            answers.append(model.generate(**given, max_new_tokens=8, do_sample=False).cpu())
    same = answers[0].tolist() == answers[1].tolist()
    return "" if same else "other tokens than the CPU's"

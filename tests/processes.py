"""A small training in every combination of settings, in one process or in several."""

from __future__ import annotations

import copy
import functools
import itertools
import multiprocessing
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint  # once, before the processes are forked
import torch.distributed.fsdp

from merit.config import Architecture, Lora, Optimizer, Training
from merit.data.examples import make_example
from merit.mini.nets import VOCABULARY, build_model, build_processor
from merit.train import loss as loss_module
from merit.train.checkpoint import Checkpoints, Stopped
from merit.train.dataset import TokenizedDataset
from merit.train.distributed import process_group
from merit.train.loop import train
from merit.train.lora import add_adapters
from merit.train.model import decoder, set_trainable
from merit.train.tokenize import encode_examples

SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.1},
}
VISION = {
    **{"vision_hidden_size": 16, "vision_intermediate_size": 24, "vision_depth": 1},
    **{"vision_num_heads": 2, "patch_size": 7},
}
GRID = [1, 4, 4]  # patches of every image
ORDER = np.arange(12)  # two steps of six
LAYER = r".*layers\.0\.mlp.*"
LISTS = {
    "vision": [
        *(("decoder",), ("projector",), ("vision",), ("projector", "decoder")),
        *(("vision", "decoder"), ("vision", "projector"), ("vision", "projector", "decoder")),
        *((LAYER,), ("projector", LAYER), ("lora",)),
    ],
    "text": [("decoder",), (LAYER,), ("lora",)],
}


@dataclass(frozen=True)
class Cell:
    """One combination of settings; `trainable` ("lora",) are adapters."""

    kind: str
    trainable: tuple[str, ...]
    bfloat16: bool = False
    checkpointing: bool = False
    packed: bool = False
    algorithm: str = "adamw"

    def __str__(self) -> str:
        words = [self.kind, "+".join(self.trainable).replace(LAYER, "layer")]
        flags = ("bfloat16", "checkpointing", "packed")
        return "-".join([*words, *(f for f in flags if getattr(self, f)), self.algorithm])

    @property
    def plain(self) -> Cell:
        """The same training in the plainest way."""
        return replace(self, bfloat16=False, checkpointing=False, packed=False)

    @property
    def sharded(self) -> bool:
        """Whether the decoder is trained whole."""
        return "decoder" in self.trainable

    def settings(self) -> Training:
        return Training(
            trainable=["decoder"] if "lora" in self.trainable else list(self.trainable),
            lora=Lora(rank=2) if "lora" in self.trainable else None,
            optimizer=Optimizer(learning_rate=1e-2, batch_size=6, algorithm=self.algorithm),  # type: ignore[arg-type]
            precision="bfloat16" if self.bfloat16 else "float32",
            pack_tokens=50 if self.packed else None,
            gradient_checkpointing=self.checkpointing,
        )


def cells() -> Iterator[Cell]:
    """Every list x precision x checkpointing x packing; the other optimisers where kinds mix."""
    for kind, lists in LISTS.items():
        for trainable, *flags in itertools.product(lists, *[(False, True)] * 3):
            yield Cell(kind, trainable, *flags)
    for algorithm in ("sgd", "muon"):
        yield Cell("vision", ("projector", "decoder"), algorithm=algorithm)
        yield Cell("text", ("decoder",), bfloat16=True, packed=True, algorithm=algorithm)


def outcome(cell: Cell, folder: Path | None = None, stop: int = 0) -> dict[str, Any]:
    """{"losses": (loss, gradient norm) a step, "norm" of the trained tensors, "sharded", "frozen":
    whether all else is as before}.

    Checkpoints are in `folder`, if one is given; the training stops after the step `stop`.
    """
    torch.set_num_threads(1)
    loss_module.SMALL_VOCABULARY, loss_module.CHUNK = (0, 5) if cell.packed else (16_384, 2048)
    settings = cell.settings()
    model, data = copy.deepcopy(model_of(cell.kind)), dataset(cell.kind)
    if cell.bfloat16:
        model.bfloat16()  # as the released models are stored
    if settings.lora is not None:
        parameters = add_adapters(model, settings.lora, seed=0)
    else:
        parameters = set_trainable(model, settings.trainable)
    if cell.checkpointing:
        decoder(model).activation_checkpointing_enable()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if n not in parameters}
    records: list[Any] = []
    with process_group() as group:

        class Stopping(Checkpoints):
            def due(self) -> bool:
                if len(records) == stop:
                    self.stop.set()
                return False

        stopped = False
        try:
            train(
                model,
                parameters,
                data,
                ORDER,
                settings.optimizer,
                what="x",
                settings=settings,
                log=lambda record, _: records.append(record),
                checkpoints=Stopping(folder, None, records, [], group=group) if folder else None,
                group=group,
            )
        except Stopped:
            stopped = True
        sharded = any(hasattr(p, "full_tensor") for p in model.parameters())
        after = {n: p for n, p in model.named_parameters() if n in frozen}
        whole = group.gathered(parameters)
    return {
        "losses": [[record["loss"], record["gradient_norm"]] for record in records],
        "norm": sum(float(p.detach().double().square().sum()) for p in whole.values()),
        "sharded": sharded,
        "stopped": stopped,
        "frozen": all(torch.equal(frozen[n], p) for n, p in after.items()),
    }


@functools.cache
def processor() -> Any:
    words = VOCABULARY.read_text(encoding="utf-8").split()
    return build_processor(words, Architecture(**SIZES, **VISION), 28)


@functools.cache
def model_of(kind: str) -> Any:
    """A Qwen2.5-VL with tied embeddings; a Llama whose head is a matrix of its own.

    Weights are bfloat16's numbers, so that both precisions start from the same ones.
    """
    if kind == "vision":
        model = build_model(processor(), Architecture(**SIZES, **VISION), seed=1)
        return model.bfloat16().float()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    size = len(processor().tokenizer)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=size, tie_word_embeddings=False))
    model.set_attn_implementation("eager")
    return model.bfloat16().float()


@functools.cache
def dataset(kind: str) -> TokenizedDataset:
    """One example in three has an image, so that some rows, and processes, have none."""
    known = sorted(w for w in processor().tokenizer.get_vocab() if w.isalpha())[:40]
    rows, images = [], {}
    for i in range(len(ORDER)):
        shown = (f"{i}.png",) if i % 3 == 0 and kind == "vision" else ()
        images |= {path: len(images) for path in shown}
        prompt = " ".join(known[i : i + 3 + i % 7])
        rows.append(make_example(str(i), "t", [(prompt, " ".join(known[i + 3 : i + 5]))], shown))

    def read(paths: Any) -> tuple[torch.Tensor, np.ndarray]:
        pixels = [
            torch.randn(16, 294, generator=torch.Generator().manual_seed(images[path]))
            for path in paths
        ]
        return torch.cat(pixels), torch.tensor([GRID] * len(paths))

    grids = np.array([GRID] * len(images), dtype=np.int32).reshape(-1, 3)
    reader = processor() if kind == "vision" else processor().tokenizer
    return replace(encode_examples(rows, reader, images, grids), read_images=read)


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

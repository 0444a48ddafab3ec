"""What the settings of training offer, as a table of small trainings, for `merit smoke --gpu`."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merit.config import Lora, Optimizer, Training
from merit.train.checkpoint import Checkpoints, Stopped
from merit.train.dataset import TokenizedDataset
from merit.train.distributed import process_group
from merit.train.loop import train
from merit.train.lora import add_adapters
from merit.train.model import recompute_layers, set_trainable

IMAGE, VOCABULARY = 3, 96  # the token of images, of as many
TEXT: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.1},
    **{"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 24, "depth": 2, "num_heads": 2, "patch_size": 7},
    **{"spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 28},
    **{"fullatt_block_indexes": [1], "out_hidden_size": 32, "initializer_range": 0.1},
}
GRID = [1, 8, 4]  # patches of every image: two windows
ORDER = np.arange(12)  # two steps of six
LAYER = r".*layers\.0\.mlp.*"
LISTS: dict[str, list[tuple[str, ...]]] = {
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
    kernels: str = "plain"

    def __str__(self) -> str:
        words = [self.kind, "+".join(self.trainable).replace(LAYER, "layer")]
        flags = ("bfloat16", "checkpointing", "packed")
        kernels = [self.kernels] * (self.kernels != "plain")
        return "-".join([*words, *(f for f in flags if getattr(self, f)), *kernels, self.algorithm])

    @property
    def plain(self) -> Cell:
        """The same training in the plainest way."""
        algorithm = self.algorithm.removesuffix("_8bit")
        return Cell(self.kind, self.trainable, algorithm=algorithm)

    @property
    def sharded(self) -> bool:
        """Whether the decoder is trained whole."""
        return "decoder" in self.trainable

    @property
    def rounding(self) -> tuple[float, float, float]:
        """How far losses, gradient norms and the parameters' norm may be from the plain ones."""
        return (1e-2, 1e-1, 5e-3) if self.bfloat16 else (1e-5, 1e-3, 5e-5)

    def settings(self) -> Training:
        optimizer = {"learning_rate": 1e-2, "batch_size": 6, "algorithm": self.algorithm}
        return Training(
            trainable=["decoder"] if "lora" in self.trainable else list(self.trainable),
            lora=Lora(rank=2) if "lora" in self.trainable else None,
            optimizer=Optimizer.model_validate(optimizer),
            precision="bfloat16" if self.bfloat16 else "float32",
            pack_tokens=50 if self.packed else None,
            gradient_checkpointing=self.checkpointing,
            kernels=self.kernels,  # type: ignore[arg-type]
        )


def cells() -> Iterator[Cell]:
    """Every list x precision x checkpointing x packing; the other optimisers where kinds mix."""
    for kind, lists in LISTS.items():
        for trainable in lists:
            for low, checkpointing, packed in itertools.product((False, True), repeat=3):
                yield Cell(kind, trainable, low, checkpointing, packed)
    for algorithm in ("sgd", "muon"):
        yield Cell("vision", ("projector", "decoder"), algorithm=algorithm)
        yield Cell("text", ("decoder",), bfloat16=True, packed=True, algorithm=algorithm)


def outcome(
    cell: Cell,
    folder: Path | None = None,
    stop: int = 0,
    place: Callable[[Any, bool], Any] = lambda model, low: model,
) -> dict[str, Any]:
    """{"losses": (loss, gradient norm) a step, "norm" of the trained tensors, "sharded", "frozen":
    whether all else is as before}.

    Checkpoints are in `folder`, if one is given; the training stops after the step `stop`. `place`
    puts a model on a device, told whether it computes in bfloat16.
    """
    settings = cell.settings()
    model, data = copy.deepcopy(model_of(cell.kind)), dataset(cell.kind)
    if cell.bfloat16:
        model.bfloat16()  # as the released models are stored
    model = place(model, cell.bfloat16)
    if settings.lora is not None:
        parameters = add_adapters(model, settings.lora, seed=0)
    else:
        parameters = set_trainable(model, settings.trainable)
    if cell.checkpointing:
        recompute_layers(model, every=1)
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
                what=str(cell),
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
        "frozen": all(bool((frozen[n] == p).all()) for n, p in after.items()),
    }


@functools.cache
def model_of(kind: str) -> Any:
    """A Qwen2.5-VL with tied embeddings; a Llama whose head is a matrix of its own.

    Weights are bfloat16's numbers, so that both precisions start from the same ones.
    """
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    torch.manual_seed(1)
    if kind == "text":
        model: Any = LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=False))
    else:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
        config = Qwen2_5_VLConfig(
            text_config={**TEXT, "rope_parameters": rope},
            vision_config=VISION,
            image_token_id=IMAGE,
            tie_word_embeddings=True,
        )
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.set_attn_implementation("eager")
    return model.bfloat16().float().eval()


@functools.cache
def dataset(kind: str) -> TokenizedDataset:
    """One example in three has an image, so that some rows, and processes, have none."""
    rng, size = np.random.default_rng(0), int(np.prod(GRID)) // 4
    shown = [int(i % 3 == 0 and kind == "vision") for i in range(len(ORDER))]
    parts = [
        np.concatenate([np.full(size * images, IMAGE), rng.integers(5, VOCABULARY, 5 + i % 7)])
        for i, images in enumerate(shown)
    ]
    tokens = np.concatenate(parts).astype(np.int32)
    ends = np.cumsum([0, *map(len, parts)])
    mask = np.zeros(len(tokens), dtype=bool)
    for end in ends[1:]:
        mask[end - 3 : end] = True  # the answer's three tokens
    number = sum(shown)

    def read(paths: Any) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = [
            torch.randn(4 * size, 294, generator=torch.Generator().manual_seed(int(path)))
            for path in paths
        ]
        return torch.cat(pixels), torch.tensor([GRID] * len(paths))

    return TokenizedDataset(
        tokens=tokens,
        loss_mask=mask,
        offsets=ends.astype(np.int64),
        image_offsets=np.cumsum([0, *shown]).astype(np.int64),
        image_ids=np.arange(number, dtype=np.int32),
        grids=np.array([GRID] * number, dtype=np.int32).reshape(-1, 3),
        paths=np.array([str(i).encode() for i in range(number)], dtype=bytes),
        feature_offsets=np.zeros(1, dtype=np.int64),
        features=np.zeros((0, 0), dtype=np.float32),
        image_token=IMAGE,
        read_images=read,
    )

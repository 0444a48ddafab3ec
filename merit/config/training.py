"""How models are held and run, examples encoded, gradients taken and branches trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from merit.config.settings import Fraction, PositiveFloat, PositiveInt, Settings, nearest

Algorithm = Literal["adamw", "adamw_8bit", "sgd", "muon"]
COMPONENTS = ("vision", "projector", "decoder")


def _component_or_pattern(value: str) -> str:
    if value.isidentifier() and value not in COMPONENTS:
        raise ValueError(
            f"found {value!r}: neither a component nor a pattern.{nearest(value, COMPONENTS)}"
        )
    return value


# left out of what is hashed where it is off
Kernels = Annotated[
    Literal["plain", "compiled", "liger"], Field(exclude_if=lambda value: value == "plain")
]
# a component, or a regular expression that whole parameter names match
Trainable = Annotated[
    list[Annotated[str, AfterValidator(_component_or_pattern)]], Field(min_length=1)
]


class Optimizer(Settings):
    """An optimiser with a warm-up and a decay, of a base phase or of every branch.

    `sgd` has no momentum (table 18); `betas` are for AdamW only. `muon` is torch's Muon on
    matrices and AdamW on the rest: a small base built from scratch needs half the steps.
    `adamw_8bit` is torchao's: its states take a byte an entry, for smaller GPUs.
    """

    algorithm: Algorithm = "adamw"
    learning_rate: PositiveFloat
    batch_size: PositiveInt
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Fraction = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: PositiveFloat = 1.0
    # YAML has lists only
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.999)


class Runtime(Settings):
    """How theta0, and every model that comes from it, is held in memory and run.

    `stored` keeps the checkpoint's own type; trained parameters are float32 in any case. `auto`
    takes a GPU if there is one; `spread` places a model that does not train over all GPUs.
    Attention: `auto` is varlen on a GPU in 16 bits, sdpa on a GPU in 32, and eager on a CPU, where
    sdpa's bytes depend on the CPU; `varlen` is torch's variable-length flash attention.
    """

    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    spread: bool = False
    attention: Literal["auto", "sdpa", "eager", "varlen", "flash_attention_2"] = "auto"


class Encoding(Settings):
    """How examples become token ids.

    `chat` writes the turns as the model's own chat template does, `plain` as prompt, line break,
    answer and end mark (a pretrained text model). `cache_images` keeps the embeddings of the
    frozen vision part on disk: for miniatures, since an image of 784 tokens takes 3 MB.
    """

    template: Literal["chat", "plain"] = "chat"
    cache_images: bool = False
    min_pixels: PositiveInt | None = None  # of an image as the model sees it; None: the processor's
    max_pixels: PositiveInt | None = None
    max_tokens: PositiveInt | None = None  # of an example, image tokens included
    on_long_example: Literal["error", "cut"] = "error"  # cut: answers from the end, never an image
    workers: PositiveInt = 1  # processes, one task each


class Gradients(Settings):
    """Calibration of the mean task gradients (docs/method.md 2) and what is kept of them."""

    num_examples: PositiveInt = 200  # per task, at most
    representation: Literal["stride", "sketch"] = "stride"
    stride: PositiveInt = 5  # keep one gradient entry in `stride`, as the paper does
    # or as many signed sums, at any size of the model; a prime, see docs/decisions.md
    sketch_size: PositiveInt = 65_537
    sketch_seed: Annotated[int, Field(ge=0)] = 0  # of the signs
    batch_size: PositiveInt = 16
    seed: int = 0


class Lora(Settings):
    """Low-rank adapters in place of full fine-tuning; branches merge as weight deltas B A."""

    rank: PositiveInt = 64
    alpha: PositiveFloat = 128.0
    # whole module names: every linear map of the decoder, and none of the vision encoder
    targets: str = r"model\.(language_model\.)?layers\.\d+\.(self_attn|mlp)\.\w+_proj"


class Training(Settings):
    """Fine-tuning of one branch; the same for every branch, except joint training's batch size.

    A step is `optimizer.batch_size` examples, computed as one padded batch or packed into rows of
    at most `pack_tokens` tokens, one forward and backward pass each; its loss is the mean over its
    supervised tokens. `bfloat16` computes in that type and keeps trained parameters, sums of
    gradients and the optimiser's state in float32. `kernels` fuse norm, rotation and activation:
    `compiled` by torch.compile of every layer of the decoder, `liger` by liger-kernel's, on a GPU.
    """

    trainable: Trainable
    optimizer: Optimizer
    joint_batch_size: PositiveInt | None = None  # the paper searches it for joint training only
    precision: Literal["float32", "bfloat16"] = "float32"
    pack_tokens: PositiveInt | None = None
    gradient_checkpointing: bool | PositiveInt = False  # n: of every n-th layer of the decoder
    kernels: Kernels = "plain"
    lora: Lora | None = None
    checkpoint_minutes: PositiveFloat | None = None  # between two of a branch's checkpoints
    workers: Annotated[int, Field(ge=0)] = 0  # processes that read and resize images ahead

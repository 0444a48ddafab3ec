"""theta0: built from scratch by phases, assembled, or taken from a folder or the hub."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from merit.config.settings import PositiveFloat, PositiveInt, Settings
from merit.config.training import Kernels, Optimizer, Trainable

VISION_SIZES = (
    *("vision_hidden_size", "vision_intermediate_size", "vision_depth", "vision_num_heads"),
    "patch_size",
)


class Architecture(Settings):
    """Sizes of a model built from scratch; every other field keeps the real model's value.

    A Qwen2.5-VL if the sizes of the vision part are given (all of them), else a Qwen2 text model.
    """

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    vision_hidden_size: PositiveInt | None = None
    vision_intermediate_size: PositiveInt | None = None
    vision_depth: PositiveInt | None = None
    vision_num_heads: PositiveInt | None = None
    patch_size: PositiveInt | None = None
    initializer_range: PositiveFloat

    @property
    def has_vision(self) -> bool:
        return self.vision_depth is not None

    @model_validator(mode="after")
    def _whole_vision_part(self) -> Architecture:
        sizes = {name: getattr(self, name) for name in VISION_SIZES}
        missing = [name for name, size in sizes.items() if size is None]
        if 0 < len(missing) < len(sizes):
            raise ValueError(
                f"{', '.join(f'`{name}`' for name in missing)} missing: give all sizes of the "
                "vision part, or none of them for a text model"
            )
        return self


class Phase(Settings):
    """One phase of building the base: its data, the components that learn, its steps."""

    name: str
    data: str  # what the data stage wrote: "labels", "captions", "conversations", ...
    trainable: Trainable
    num_steps: PositiveInt
    optimizer: Optimizer
    # how a step is computed: as in `training`
    precision: Literal["float32", "bfloat16"] = "float32"
    pack_tokens: PositiveInt | None = None
    gradient_checkpointing: bool | PositiveInt = False
    kernels: Kernels = "plain"
    workers: Annotated[int, Field(ge=0)] = 0


class Origin(Settings):
    """A finished model: a folder, or a repository of the hub at a commit."""

    checkpoint: str | None = None
    hub: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Origin:
        if (self.checkpoint is None) == (self.hub is None):
            raise ValueError("give either `checkpoint` or `hub`")
        check_revision(self.hub, self.revision)
        return self


class Assembly(Settings):
    """A Qwen2.5-VL assembled of a vision encoder, a Qwen2 language model and a fresh projector: the
    start of LLaVA's recipe.
    """

    vision: Origin
    decoder: Origin


def check_revision(hub: str | None, revision: str | None) -> None:
    if (hub is None) != (revision is None):
        raise ValueError("`hub` and `revision` go together: a name and the commit of it")


class Base(Settings):
    """theta0: built from scratch, assembled, or taken from a folder or the hub; then `phases`.

    A model of the hub is named with its `revision`, a commit, which never changes. `release` is a
    folder of the repository that keeps what the phases built, in 16 bits: written once, and
    compared with whatever is built again.
    """

    seed: int = 0
    architecture: Architecture | None = None
    checkpoint: str | None = None
    hub: str | None = None
    revision: str | None = None
    assemble: Assembly | None = None
    phases: list[Phase] = []
    release: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Base:
        origins = (self.architecture, self.checkpoint, self.hub, self.assemble)
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("give exactly one of `architecture`, `checkpoint`, `hub`, `assemble`")
        if self.release and not self.phases:
            raise ValueError("`release` keeps what `phases` build; give both")
        check_revision(self.hub, self.revision)
        return self

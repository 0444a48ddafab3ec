"""A model's tensors from its config.json alone: on the meta device, without a byte of weights."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from merit.config import Base, Origin
from merit.errors import MeritError
from merit.io.artifacts import read_json
from merit.train.gguf import SUFFIX, checkpoint_place

CONFIGS = Path(__file__).parent / "configs"  # of public models, by the end of their hub names


@dataclass(frozen=True)
class Shapes:
    """The sizes that memory and time follow from; entries, not bytes.

    `tensors` by the names of the checkpoint's file, a tied embedding once; `components` as training
    names them; `linears` inputs + outputs of every linear map, by module name; `embedding` is the
    lookup table, `output_layer` what makes logits (the same where tied).
    """

    tensors: dict[str, tuple[int, ...]]
    components: dict[str, int]
    linears: dict[str, int]
    layer: int  # entries of one decoder layer
    num_layers: int
    hidden: int
    intermediate: int
    kv: int  # key (or value) entries a token and layer
    vocabulary: int
    tied: bool
    stored_bytes: int  # of an entry in the checkpoint
    vision_hidden: int = 0
    vision_intermediate: int = 0
    patches: int = 0  # an image token

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def decoder(self) -> int:
        return self.components["decoder"]

    @property
    def vision(self) -> int:
        """Vision encoder and projector."""
        return self.total - self.decoder

    @property
    def total(self) -> int:
        return sum(self.components.values())

    @property
    def outside_layers(self) -> int:
        """Of the decoder: embedding, output layer and last norm."""
        return self.decoder - self.num_layers * self.layer

    @property
    def largest(self) -> int:
        return max(prod(shape) for shape in self.tensors.values())


def shapes_of(model: Any, stored_bytes: int) -> Shapes:
    """Of a model on any device."""
    import torch

    from merit.train.model import component_of, decoder, has_vision, stored_tensors

    parameters = dict(model.named_parameters())
    counts: Counter[str] = Counter()
    for name, parameter in parameters.items():
        counts[component_of(name)] += parameter.numel()
    config = model.config.text_config if has_vision(model) else model.config
    layers = decoder(model).layers
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    vision: dict[str, int] = {}
    if has_vision(model):
        seen = model.config.vision_config
        vision = {
            "vision_hidden": seen.hidden_size,
            "vision_intermediate": seen.intermediate_size,
            "patches": seen.spatial_merge_size**2,
        }
    return Shapes(
        tensors={n: tuple(t.shape) for n, t in stored_tensors(model, parameters).items()},
        components=dict(counts),
        linears={
            name: module.in_features + module.out_features
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        },
        layer=sum(p.numel() for p in layers[0].parameters()),
        num_layers=len(layers),
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        kv=config.num_key_value_heads * head,
        vocabulary=config.vocab_size,
        tied="lm_head.weight" not in parameters,
        stored_bytes=stored_bytes,
        **vision,
    )


def shapes_from_config(path: Path) -> Shapes:
    """Of the model that a config.json describes. Raises MeritError for another architecture."""
    import torch
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if path.suffix == SUFFIX:
        return shapes_from_gguf(path)
    from merit.train.model import ARCHITECTURES

    values = read_json(path)
    architecture = (values.get("architectures") or [""])[0]
    if architecture not in ARCHITECTURES:
        raise MeritError(
            f"{path}: key `architectures`: found {architecture!r}, expected "
            f"{' or '.join(ARCHITECTURES)}"
        )
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    kind = values.get("torch_dtype") or values.get("dtype") or "float32"
    return shapes_of(on_meta(architecture, config), getattr(torch, kind).itemsize)


def shapes_from_gguf(path: Path) -> Shapes:
    """Of a GGUF file's model, by its header; taken to be stored as float32 once it is dequantised.

    Raises MeritError for another architecture, and where the package `gguf` is missing.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except (ImportError, OSError, ValueError, struct.error) as error:
        raise MeritError(
            f"{path}: its sizes are unknown until the base stage has run "
            f"({str(error).splitlines()[0]})"
        ) from None
    kinds = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    if config.model_type not in kinds:
        raise MeritError(
            f"{path}: found a model of type {config.model_type!r}, expected {' or '.join(kinds)}"
        )
    return shapes_of(on_meta(kinds[config.model_type], config), 4)


def on_meta(architecture: str, config: Any) -> Any:
    """The model without a byte of weights."""
    import torch
    import transformers

    with torch.device("meta"):
        return getattr(transformers, architecture)(config)


def base_shapes(base: Base, built: Path) -> Shapes:
    """Of an experiment's theta0: as it was built, else of what it is taken or put together from.

    Args: built: the folder that the base stage writes. Raises MeritError where no config is known.
    """
    import torch

    from merit.train.base_phases import initialise

    if (built / "config.json").is_file():
        return shapes_from_config(built / "config.json")
    if base.architecture is not None:
        with torch.device("meta"):
            model, _ = initialise(base.architecture, base.seed)
        return shapes_of(model, 4)
    parts = [shapes_from_config(known_config(origin)) for origin in origins(base)]
    return assembled(*parts) if len(parts) == 2 else parts[0]


def origins(base: Base) -> list[Base | Origin]:
    """The models that a base begins with: one, or an encoder's and a decoder's."""
    if base.assemble is not None:
        return [base.assemble.vision, base.assemble.decoder]
    return [base] if base.architecture is None else []


def known_config(origin: Base | Origin) -> Path:
    """config.json of a folder, or of a public model by its hub name; a GGUF file. Raises
    MeritError.
    """
    if origin.checkpoint is not None:
        place = checkpoint_place(origin.checkpoint, "base.checkpoint")
        path = place if place.suffix == SUFFIX else place / "config.json"
    else:
        path = CONFIGS / f"{(origin.hub or '').rpartition('/')[2]}.json"
    if not path.is_file():
        raise MeritError(
            f"{path}: no config.json of the base; lay that of the model there, or one of the same "
            "sizes"
        )
    return path


def assembled(eyes: Shapes, words: Shapes) -> Shapes:
    """One model's encoder and projector before another's decoder, of one hidden size."""
    parts = {name: count for name, count in eyes.components.items() if name != "decoder"}
    tensors = {name: shape for name, shape in eyes.tensors.items() if name.startswith("visual.")}
    return replace(
        words,
        components=words.components | parts,
        tensors=words.tensors | tensors,
        linears={n.replace("model.", "model.language_model."): c for n, c in words.linears.items()},
        vision_hidden=eyes.vision_hidden,
        vision_intermediate=eyes.vision_intermediate,
        patches=eyes.patches,
    )

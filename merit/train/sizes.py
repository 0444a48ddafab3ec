"""A model's sizes from its config.json: on the meta device, without a byte of weights."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from merit.config import COMPONENTS, Base, Lora, Origin, Phase, Training
from merit.errors import MeritError
from merit.io.artifacts import read_json
from merit.train.gguf import SUFFIX, checkpoint_place

FILE = Path(__file__).with_suffix(".yaml")
# float32 optimiser states per parameter (muon: at most; 8 bits: a scale for 256 entries)
STATES = {"adamw": 2, "adamw_8bit": 0.51, "muon": 2, "sgd": 0}
CHUNK = 2048  # supervised tokens whose logits exist at a time (merit.train.loss)


@dataclass(frozen=True)
class Sizes:
    """A base's parameters (a tied embedding once) and what else disk and time follow from."""

    decoder: int
    vision: int  # encoder and projector
    hidden: int
    patches: int  # that the vision part sees per image token
    width: int  # bytes per stored parameter
    linears: dict[str, int]  # inputs + outputs of every linear map, by module name
    projector: int = 0  # parameters, of `vision`
    layers: int = 0  # of the decoder
    intermediate: int = 0
    vocabulary: int = 0
    tied: bool = True  # whether the output head is the embedding

    def trained(self, lora: Lora | None) -> int:
        """Parameters that a branch trains: the decoder, or the adapters' r (inputs + outputs)."""
        if lora is None:
            return self.decoder
        return lora.rank * sum(
            count for name, count in self.linears.items() if re.fullmatch(lora.targets, name)
        )


def training_memory(
    sizes: Sizes, training: Training | Phase, processes: int = 1
) -> dict[str, float]:
    """Bytes per GPU that a training takes, by parts, as `merit.train.distributed` holds them.

    bfloat16 with checkpointed layers and packed rows; without `pack_tokens` no activations are
    counted. What is trained is float32 with its gradient and the optimiser's state; a decoder that
    is trained whole is cut over the processes. Of its layers two are whole at a time, in bfloat16,
    with one gradient, which is summed in float32; so are embedding and head.
    """
    lora = training.lora if isinstance(training, Training) else None
    chosen = ["lora"] if lora else training.trainable
    counts = {"vision": sizes.vision - sizes.projector, "projector": sizes.projector}
    whole = float(sum(count for name, count in counts.items() if name in chosen))
    cut = float(sizes.decoder) if "decoder" in chosen else 0.0
    if not cut and set(chosen) - set(counts):  # adapters, or patterns, of all at most
        whole += sizes.trained(lora)
    frozen = sizes.vision + sizes.decoder - cut - (0 if lora else whole)
    states = 8 + 4 * STATES[training.optimizer.algorithm]
    table = float(sizes.vocabulary * sizes.hidden)
    tables = table * (2 - sizes.tied)
    layer = (sizes.decoder - tables) / max(1, sizes.layers)
    tokens = training.pack_tokens or 0
    every = int(training.gradient_checkpointing) or 1
    kept = 1 + sizes.layers - -(-sizes.layers // every)  # the one at hand, and those not recomputed
    return {
        "trained, cut over processes": states * cut / processes,
        "trained, whole": states * whole,
        "frozen": sizes.width * max(0.0, frozen),
        "gathered": (2 * (2 * layer + table * (2 - sizes.tied)) + 6 * max(layer, table))
        * bool(cut),
        "inputs of layers": 2.0 * tokens * sizes.hidden * sizes.layers,
        "layers kept": 2.0 * tokens * (4 * sizes.intermediate + 12 * sizes.hidden) * kept,
        "logits": 10.0 * min(tokens, CHUNK) * sizes.vocabulary,
    }


def base_sizes(base: Base, built: Path) -> Sizes:
    """Sizes of theta0: as built in the folder `built`, else of what it begins with.

    Raises MeritError if no config.json is known, or if its architecture cannot be trained.
    """
    if (built / "config.json").is_file():
        return config_sizes(read_json(built / "config.json"), f"{built}/config.json")
    if base.architecture is not None:
        import torch

        from merit.train.registry import initialise

        with torch.device("meta"):
            return sizes_of(initialise(base.architecture, base.seed)[0], 4)
    first, *others = [origin_sizes(origin) for origin in origins(base)]
    if not others:
        return first
    linears = {name: count for name, count in first.linears.items() if "visual." in name}
    for name, count in others[0].linears.items():
        linears[name.replace("model.", "model.language_model.", 1)] = count
    return replace(
        others[0],
        linears=linears,
        vision=first.vision,
        projector=first.projector,
        patches=first.patches,
    )


def origins(base: Base) -> list[Base | Origin]:
    """The finished models that a base begins with: none, one, or an encoder's and a decoder's."""
    if base.assemble is not None:
        return [base.assemble.vision, base.assemble.decoder]
    return [base] if base.architecture is None else []


def origin_sizes(origin: Base | Origin) -> Sizes:
    """Sizes of a public model, of a folder's, or of a GGUF file's."""
    if origin.checkpoint is None:
        return config_sizes(public_config(str(origin.hub)), str(origin.hub))
    place = checkpoint_place(origin.checkpoint, "base.checkpoint")
    if place.suffix != SUFFIX:
        return config_sizes(read_json(place / "config.json"), f"{place}/config.json")
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(
            place.parent, gguf_file=place.name, local_files_only=True, trust_remote_code=False
        )
    except (ImportError, OSError, ValueError, struct.error) as error:
        reason = str(error).splitlines()[0]
        raise MeritError(f"{place}: sizes unknown until the base is built ({reason})") from None
    kind = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}.get(found.model_type, "")
    return config_sizes(
        {**found.to_dict(), "architectures": [kind or found.model_type]}, str(place)
    )


def public_config(hub: str) -> dict[str, Any]:
    """config.json of a public model by its name on the hub. Raises MeritError for unknown ones."""
    known, name = _known(), hub.rpartition("/")[2].removesuffix("-Instruct")
    if name not in known:
        raise MeritError(f"{FILE}: no config.json of {hub}; add its sizes there")
    return dict(known[name])


@cache
def _known() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def config_sizes(values: Mapping[str, Any], where: str) -> Sizes:
    """Sizes of the model that a config.json describes, built without a byte of weights."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from merit.train.model import ARCHITECTURES

    architecture = (values.get("architectures") or [""])[0]
    if architecture not in ARCHITECTURES:
        raise MeritError(
            f"{where}: key `architectures`: found {architecture!r}, expected "
            f"{' or '.join(ARCHITECTURES)}"
        )
    kind = str(values.get("torch_dtype") or values.get("dtype") or "float32")
    with torch.device("meta"):
        config = CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))
        model = getattr(transformers, architecture)(config)
    return sizes_of(model, getattr(torch, kind.removeprefix("torch.")).itemsize)


def sizes_of(model: Any, width: int) -> Sizes:
    """Sizes of a model on any device."""
    import torch

    from merit.train.model import component_of, has_vision

    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in model.named_parameters():
        counts[component_of(name)] += parameter.numel()
    linears = {
        name: module.in_features + module.out_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    config, patches = model.config, 0
    if has_vision(model):
        config, patches = config.text_config, config.vision_config.spatial_merge_size**2
    return Sizes(
        counts["decoder"],
        counts["vision"] + counts["projector"],
        config.hidden_size,
        patches,
        width,
        linears,
        projector=counts["projector"],
        layers=config.num_hidden_layers,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    )

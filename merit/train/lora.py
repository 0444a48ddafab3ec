"""LoRA through peft: adapters on the decoder, stored as peft stores them.

Branches are averaged as weight deltas, scale B A, never factor by factor (merit.merge.model).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from merit.config import Lora
from merit.errors import MeritError

PREFIX = "base_model.model."  # of every name in a peft folder


def add_adapters(model: Any, settings: Lora, seed: int) -> dict[str, torch.nn.Parameter]:
    """Put adapters beside the modules that `targets` matches; return their parameters by name.

    Everything else is frozen. A is drawn from `seed`, B is zero, so the model is still the base.
    Raises MeritError if `targets` matches nothing, or something outside the decoder.
    """
    from peft import inject_adapter_in_model

    matched = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.fullmatch(settings.targets, name)
    ]
    tied = model.get_output_embeddings() is not None and model.config.tie_word_embeddings
    outside = [name for name in matched if "visual" in name or (tied and name == "lm_head")]
    if not matched or outside:
        problem = f"matches {outside[0]!r}" if outside else "matches no linear map"
        raise MeritError(
            f"key `training.lora.targets`: {settings.targets!r} {problem}; it is a regular "
            "expression for whole names of the decoder's modules (without `lm_head`, where it is "
            "the input embedding)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(adapter_config(settings), model)
    adapters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * len(matched)  # an A and a B per module
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapters)
    return dict(sorted(adapters.items()))


def adapter_config(settings: Lora) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        target_modules=settings.targets,
        lora_dropout=0.0,
        bias="none",
    )


def save_adapters(
    model: Any, parameters: Mapping[str, torch.nn.Parameter], settings: Lora, folder: Path
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors as `PeftModel.from_pretrained` reads
    them; return the path of the tensors.
    """
    from merit.io.checkpoints import save_tensors

    adapter_config(settings).save_pretrained(folder)
    tensors = {f"{PREFIX}{n}".replace(".default", ""): p for n, p in parameters.items()}
    path = folder / "adapter_model.safetensors"
    save_tensors(tensors, path)
    return path

"""theta0: load a Qwen2.5-VL or a Qwen2, and name its components.

The components follow the paper: the vision encoder, the projector (`visual.merger`) and the
language decoder. The fine-tuning stage trains the decoder alone; building the base also trains
the other two. A text model is a decoder and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from merit.errors import MeritError
from merit.io.artifacts import read_json

SPECIAL_TOKENS = {
    "pad": "<|endoftext|>",
    "start": "<|im_start|>",
    "end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "unknown": "<|unk|>",
}
ARCHITECTURES = ("Qwen2_5_VLForConditionalGeneration", "Qwen2ForCausalLM")


def has_vision(model: Any) -> bool:
    """Whether the model reads images."""
    return hasattr(model.config, "vision_config")


def load_model(folder: Path) -> Any:
    """A Qwen2.5-VL or a Qwen2 from a Hugging Face folder, float32, in evaluation mode.

    config.json's `architectures` says which. Raises MeritError where a file is missing, truncated
    or does not fit the architecture, or the architecture is another one.
    """
    import transformers
    from safetensors import SafetensorError

    if not (folder / "config.json").is_file():
        raise MeritError(f"{folder}: no model here (config.json is missing); `dvc repro` writes it")
    architectures = read_json(folder / "config.json").get("architectures") or [""]
    if architectures[0] not in ARCHITECTURES:
        raise MeritError(
            f"{folder}/config.json: key `architectures`: found {architectures}, expected "
            f"{' or '.join(ARCHITECTURES)}"
        )
    try:
        loaded: Any = getattr(transformers, architectures[0]).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise MeritError(f"{folder}: the model cannot be read ({error}); write it anew") from None
    model, report = loaded
    missing = [name for name in report["missing_keys"] if name != "lm_head.weight"]
    if missing or report["unexpected_keys"]:
        raise MeritError(
            f"{folder}/model.safetensors: tensors do not match config.json: missing "
            f"{missing[:3]}, unexpected {sorted(report['unexpected_keys'])[:3]}"
        )
    return model.eval()


def load_processor(folder: Path) -> Any:
    """The processor saved beside a model; for a text model, its tokenizer."""
    from transformers import AutoProcessor, PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise MeritError(f"{folder}: no processor here (tokenizer.json is missing)")
    if not (folder / "processor_config.json").is_file():
        # AutoTokenizer would choose Qwen2's class by the model, and with it another pre-tokenizer
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return AutoProcessor.from_pretrained(folder, local_files_only=True)


def component_of(name: str) -> str:
    """The component a parameter belongs to, by its name."""
    if ".visual.merger." in name or name.startswith("visual.merger."):
        return "projector"
    return "vision" if "visual." in name else "decoder"


def set_trainable(
    model: torch.nn.Module, components: Iterable[str]
) -> dict[str, torch.nn.Parameter]:
    """Let exactly `components` learn; returns their parameters by name, in a fixed order."""
    chosen = set(components)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(component_of(name) in chosen)
    return {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}


def stored_tensors(
    model: Any, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """`parameters` under the names that they have in the model's checkpoint file.

    transformers renames tensors while loading, and back in `save_pretrained`: a module called
    `model.visual` is `visual` in every Qwen2.5-VL checkpoint.
    """
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, dict(parameters))


@torch.no_grad()
def vision_hidden_states(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """What the vision encoder gives the projector, for images of one size.

    Args: pixel_values float32 (num_images, num_patches, patch_dim), patches in merge-group order.
    Returns: float32 (num_images, num_patches, vision_hidden_size), in the same order.
    """
    visual = model.model.visual
    count, patches, _ = pixel_values.shape
    grid = image_grid(model, patches).expand(count, 3)
    hidden = visual(pixel_values.flatten(0, 1), grid_thw=grid).last_hidden_state
    return hidden.view(count, patches, -1)


def image_grid(model: Any, num_patches: int) -> torch.Tensor:
    """(1, 3): the patch grid of one square image."""
    side = int(num_patches**0.5)
    return torch.tensor([[1, side, side]])


def project(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The projector: (num_images, num_patches, vision) -> (num_images, num_tokens, hidden_size)."""
    count, patches, _ = hidden.shape
    return model.model.visual.merger(hidden.flatten(0, 1)).view(count, patches // 4, -1)


def use_one_thread() -> None:
    """Two single-threaded processes beat one with two threads at the mini size (measured)."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.set_flush_denormal(True)

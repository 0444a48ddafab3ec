"""theta0: load a Qwen2.5-VL, a Qwen2 or a Llama, and name its components.

The components follow the paper: the vision encoder, the projector (`visual.merger`) and the
language decoder. Branches train only the decoder; building the base also trains the other two. A
text model is only a decoder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from merit.config import COMPONENTS, Runtime
from merit.errors import MeritError, message_of
from merit.io.artifacts import read_json
from merit.io.checkpoint_files import check_no_adapter
from merit.io.machine import visible_gpus

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
ARCHITECTURES = ("Qwen2_5_VLForConditionalGeneration", "Qwen2ForCausalLM", "LlamaForCausalLM")
MAX_LAYERS = 1000  # each is built before the weights show that it is not there


def has_vision(model: Any) -> bool:
    """Whether the model reads images."""
    return hasattr(model.config, "vision_config")


def decoder(model: Any) -> Any:
    """The language decoder: embeddings, layers and last norm."""
    return model.model.language_model if has_vision(model) else model.model


def check_architecture(folder: Path) -> str:
    """The class of a Hugging Face folder's model, as its config.json says; no weights are needed.

    Raises MeritError without a config.json, beside an adapter, and for an architecture that this
    project cannot train.
    """
    if not (folder / "config.json").is_file():
        raise MeritError(
            f"{folder}: no model here (config.json is missing); `merit run NAME base` writes it"
        )
    check_no_adapter(folder)
    config = read_json(folder / "config.json")
    names = (config.get("architectures") if isinstance(config, dict) else None) or [""]
    if not isinstance(names, list) or names[0] not in ARCHITECTURES:
        raise MeritError(
            f"{folder}/config.json: key `architectures`: found {names}, expected "
            f"{' or '.join(ARCHITECTURES)}"
        )
    for part in (config, config.get("text_config"), config.get("vision_config")):
        for key in ("num_hidden_layers", "depth") if isinstance(part, dict) else ():
            if (part.get(key) or 1) not in range(1, MAX_LAYERS + 1):
                raise MeritError(
                    f"{folder}/config.json: key `{key}`: found {part[key]!r:.80}, expected 1 to "
                    f"{MAX_LAYERS}"
                )
    return str(names[0])


def load_model(folder: Path, runtime: Runtime | None = None, generates: bool = False) -> Any:
    """A model from a Hugging Face folder, sharded or not, in evaluation mode.

    On the device, in the type and with the attention that `runtime` asks for (by default: a GPU if
    there is one, the checkpoint's type, the fastest); one that `generates` has a cache. Raises
    MeritError for a file that is missing, truncated or does not fit the architecture, or an unknown
    architecture.
    """
    import transformers

    runtime = runtime or Runtime()
    architecture = check_architecture(folder)
    own = runtime.attention in ("auto", "varlen")  # chosen below, once the type is known
    first = "eager" if own else runtime.attention
    try:
        loaded: Any = getattr(transformers, architecture).from_pretrained(
            folder,
            dtype="auto" if runtime.dtype == "stored" else getattr(torch, runtime.dtype),
            device_map=placement(runtime),
            attn_implementation=first,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except ImportError as error:  # an attention of another package
        why = str(error).splitlines()[0]
        raise MeritError(f"key `model.attention`: {runtime.attention!r}: {why}") from None
    except Exception as error:  # a config.json may hold anything
        if text := message_of(error):
            raise MeritError(f"{folder}: {text}") from None
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise MeritError(f"{folder}: the model cannot be read ({why})") from None
    model, report = loaded
    missing = [name for name in report["missing_keys"] if name != "lm_head.weight"]
    if missing or report["unexpected_keys"]:
        raise MeritError(
            f"{folder}: the checkpoint's tensors do not match config.json: missing "
            f"{missing[:3]}, unexpected {sorted(report['unexpected_keys'])[:3]}"
        )
    if own:
        from merit.train.attention import choose_attention  # imports much of transformers

        choose_attention(model, runtime.attention, model.dtype.itemsize == 2, generates)
    return model.eval()


def placement(runtime: Runtime) -> Any:
    """transformers' `device_map`; None leaves the model on the CPU.

    Of several processes on a host, each takes the GPU of its LOCAL_RANK. Raises MeritError if a
    GPU is asked for and there is none; torch's error if there are GPUs that it cannot use.
    """
    if runtime.device == "cpu" or not torch.cuda.is_available():
        if runtime.device == "cuda":
            raise MeritError("key `model.device`: found 'cuda', and torch finds no GPU here")
        if runtime.device == "auto" and torch.version.cuda and visible_gpus():
            torch.cuda.init()  # raises, and says why: hours on the CPU are not what was meant
        return None
    return "auto" if runtime.spread else {"": f"cuda:{os.environ.get('LOCAL_RANK', 0)}"}


def load_processor(folder: Path) -> Any:
    """The processor saved beside a model; for a text model, its tokenizer."""
    from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise MeritError(f"{folder}: no processor here (tokenizer.json is missing)")
    known = ("processor_config.json", "preprocessor_config.json")
    kind: Any = AutoTokenizer
    try:
        stated = read_json(folder / "tokenizer_config.json").get("tokenizer_class", "")
        if any((folder / name).is_file() for name in known):
            kind = AutoProcessor
        elif stated in ("PreTrainedTokenizerFast", "TokenizersBackend"):
            # AutoTokenizer would choose Qwen2's class by the model, and with it another splitting
            kind = PreTrainedTokenizerFast
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except MeritError:
        raise
    except Exception as error:  # tokenizers raises plain ones
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise MeritError(
            f"{folder}: its tokenizer or processor cannot be read ({why}); take a whole copy of "
            "it, and a class of transformers: code in the folder is not run"
        ) from None


def component_of(name: str) -> str:
    """The component a parameter belongs to, by its name."""
    if ".visual.merger." in name or name.startswith("visual.merger."):
        return "projector"
    return "vision" if "visual." in name else "decoder"


def set_trainable(model: torch.nn.Module, chosen: Iterable[str]) -> dict[str, torch.nn.Parameter]:
    """Let exactly `chosen` learn; return their parameters by name, in a fixed order.

    An entry of `chosen` is a component or a regular expression that whole parameter names match.
    Tied embeddings are one parameter. Raises MeritError for an entry that matches nothing.
    """
    named = dict(model.named_parameters())
    trainable: set[str] = set()
    for entry in chosen:
        try:
            matches = {n for n in named if entry == component_of(n) or re.fullmatch(entry, n)}
        except re.error as error:
            raise MeritError(
                f"key `trainable`: {entry!r} is no regular expression: {error}"
            ) from None
        if not matches:
            raise MeritError(
                f"key `trainable`: {entry!r} matches no parameter; it is one of "
                f"{', '.join(COMPONENTS)} or a regular expression for whole names such as "
                f"{next(iter(named))!r}"
            )
        trainable |= matches
    for name, parameter in named.items():
        parameter.requires_grad_(name in trainable)
    return {name: named[name] for name in sorted(trainable)}


def recompute_layers(model: Any, every: int) -> None:
    """Compute every `every`-th layer of the decoder again in the backward pass, from the first on.

    Their activations need no memory in between; values stay the same to the bit.
    """
    decoder(model).activation_checkpointing_enable()
    for i, layer in enumerate(decoder(model).layers):
        layer.gradient_checkpointing = i % every == 0


def use_kernels(model: Any, kernels: str) -> None:
    """Compute the decoder with `training.kernels`. Raises MeritError where Liger's cannot run."""
    if kernels == "compiled":
        for layer in decoder(model).layers:
            layer.compile(dynamic=True)  # rows differ in length
    if kernels != "liger":
        return
    from transformers.integrations.liger import apply_liger_kernel

    try:
        if model.device.type != "cuda":
            raise ImportError(f"they are for a GPU, and the model is on {model.device}")
        # the loss is our own
        apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})
    except ImportError as error:
        why = str(error).splitlines()[0]
        raise MeritError(
            f"key `kernels`: 'liger': {why}; `pip install 'merit[gpu]'`, or set `kernels: plain`"
        ) from None


def stored_tensors(
    model: Any, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """`parameters` under the names that they have in the model's checkpoint file.

    transformers renames tensors while loading, and back in `save_pretrained`: a module called
    `model.visual` is `visual` in every Qwen2.5-VL checkpoint.
    """
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, dict(parameters))


def vision_hidden_states(model: Any, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """(num_patches, vision_hidden_size): what the vision encoder gives the projector.

    In the encoder's order: that of the pixels, if no image spans several attention windows.

    Args: pixels (num_patches, patch_dim) of all images one behind the other, patches in merge-group
    order; grids int64 (num_images, 3).
    """
    return model.model.visual(pixels, grid_thw=grids).last_hidden_state


def image_embeddings(model: Any, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """(num_tokens, hidden_size): images as the decoder sees them. Arguments as above."""
    visual = model.model.visual
    inputs = pixels.to(visual.device, visual.dtype), grids.to(visual.device, non_blocking=True)
    return visual(inputs[0], grid_thw=inputs[1], **_places(visual, grids.cpu())).pooler_output


def _places(visual: Any, grids: torch.Tensor) -> dict[str, Any]:
    """What the vision part derives from its grids, made on the CPU: on a GPU it would wait for
    each number.
    """
    from transformers import vision_utils

    config = visual.config
    merge, sizes = config.spatial_merge_size, (config.window_size, config.patch_size)
    index, windows = vision_utils.get_vision_window_index(grids, merge, *sizes)
    bounds, _ = vision_utils.get_vision_attention_seqlens(grids, config)
    found = {
        "position_ids": vision_utils.get_vision_position_ids(grids, merge),
        **{"cu_seqlens": bounds, "window_index": index, "cu_window_seqlens": windows},
    }
    longest = {"max_seqlen": bounds, "max_window_seqlen": windows}
    return {
        **{name: tensor.to(visual.device, non_blocking=True) for name, tensor in found.items()},
        **{name: int(tensor.diff().max()) for name, tensor in longest.items()},
    }


def project(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The projector: (num_patches, vision_hidden_size) -> (num_tokens, hidden_size)."""
    return model.model.visual.merger(hidden)


def use_one_thread() -> None:
    """Two single-threaded processes beat one with two threads at the mini size (measured)."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.set_flush_denormal(True)

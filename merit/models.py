"""theta0: build a small Qwen2.5-VL or Qwen2 from scratch, or load one; name its components.

The components follow the paper: the vision encoder, the projector (`visual.merger`) and the
language decoder. The fine-tuning stage trains the decoder alone; building the base also trains
the other two. A text model is a decoder and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from merit.config import Architecture
from merit.errors import MeritError
from merit.io.artifacts import read_json

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2ForCausalLM

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
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES = ("user", "assistant")
ARCHITECTURES = ("Qwen2_5_VLForConditionalGeneration", "Qwen2ForCausalLM")


def build_processor(words: Iterable[str], architecture: Architecture, image_size: int) -> Any:
    """A Qwen2.5-VL processor with a word-level tokenizer over a frozen vocabulary."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    limits = {"shortest_edge": image_size**2, "longest_edge": image_size**2}
    vision: dict[str, Any] = {
        "patch_size": architecture.patch_size,
        "merge_size": 2,
        "size": limits,
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=build_tokenizer(words),
        video_processor=Qwen2VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )


def build_tokenizer(words: Iterable[str]) -> Any:
    """A word-level tokenizer with Qwen2.5's special tokens over a frozen vocabulary."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*SPECIAL_TOKENS.values(), *ROLES, *sorted(set(words) - set(ROLES))]
    tokenizer = Tokenizer(
        models.WordLevel(
            {word: i for i, word in enumerate(vocabulary)}, unk_token=SPECIAL_TOKENS["unknown"]
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True
    )
    # joins the words with spaces: no word starts with the prefix that would glue it to the last one
    tokenizer.decoder = decoders.WordPiece(prefix="\x00", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS["pad"],
        eos_token=SPECIAL_TOKENS["end"],
        unk_token=SPECIAL_TOKENS["unknown"],
        additional_special_tokens=[
            SPECIAL_TOKENS[k] for k in ("start", "vision_start", "vision_end", "image", "video")
        ],
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    processor: Any, architecture: Architecture, seed: int
) -> Qwen2_5_VLForConditionalGeneration:
    """A randomly initialised Qwen2.5-VL of the given sizes, float32."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    a, tokenizer = architecture, processor.tokenizer
    assert a.vision_depth is not None
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
    rotary = a.hidden_size // a.num_attention_heads // 2  # the M-RoPE sections must sum to this
    temporal = rotary - 2 * (3 * rotary // 8)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": a.hidden_size,
            "intermediate_size": a.intermediate_size,
            "num_hidden_layers": a.num_hidden_layers,
            "num_attention_heads": a.num_attention_heads,
            "num_key_value_heads": a.num_key_value_heads,
            "max_position_embeddings": 2048,
            "initializer_range": a.initializer_range,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [temporal, 3 * rotary // 8, 3 * rotary // 8],
            },
            "bos_token_id": ids["start"],
            "eos_token_id": ids["end"],
            "pad_token_id": ids["pad"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": a.vision_depth,
            "hidden_size": a.vision_hidden_size,
            "intermediate_size": a.vision_intermediate_size,
            "num_heads": a.vision_num_heads,
            "patch_size": a.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [a.vision_depth - 1],
            "out_hidden_size": a.hidden_size,
            "initializer_range": a.initializer_range,
        },
        image_token_id=ids["image"],
        video_token_id=ids["video"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["end"]
    model.generation_config.pad_token_id = ids["pad"]
    return model.eval()


def build_text_model(tokenizer: Any, architecture: Architecture, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of the given sizes, float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    a = architecture
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=a.hidden_size,
        intermediate_size=a.intermediate_size,
        num_hidden_layers=a.num_hidden_layers,
        num_attention_heads=a.num_attention_heads,
        num_key_value_heads=a.num_key_value_heads,
        max_position_embeddings=2048,
        initializer_range=a.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=ids["start"],
        eos_token_id=ids["end"],
        pad_token_id=ids["pad"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = ids["end"]
    model.generation_config.pad_token_id = ids["pad"]
    return model.eval()


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

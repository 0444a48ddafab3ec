"""Small models from scratch: a Qwen2.5-VL or a Qwen2 over a world's frozen vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from merit.config import Architecture
from merit.mini.world.draw import IMAGE_SIZE
from merit.train.model import SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2ForCausalLM

VOCABULARY = Path(__file__).parent / "world" / "vocabulary.txt"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES = ("user", "assistant")


def vision_model(architecture: Architecture, seed: int) -> tuple[Any, Any]:
    """(model, processor) for the visual world, with random weights."""
    words = VOCABULARY.read_text(encoding="utf-8").split()
    processor = build_processor(words, architecture, IMAGE_SIZE)
    return build_model(processor, architecture, seed), processor


def text_model(architecture: Architecture, seed: int) -> tuple[Any, Any]:
    """(model, tokenizer) for the text world, with random weights."""
    tokenizer = build_tokenizer(VOCABULARY.read_text(encoding="utf-8").split())
    return build_text_model(tokenizer, architecture, seed), tokenizer


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

    a, ids = architecture, _special_ids(processor.tokenizer)
    assert a.vision_depth is not None
    rotary = a.hidden_size // a.num_attention_heads // 2  # the M-RoPE sections must sum to this
    sections = [rotary - 2 * (3 * rotary // 8), 3 * rotary // 8, 3 * rotary // 8]
    config = Qwen2_5_VLConfig(
        text_config=_text_config(a, processor.tokenizer, mrope_section=sections),
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
    return _initialised(Qwen2_5_VLForConditionalGeneration, config, ids, seed)


def build_text_model(tokenizer: Any, architecture: Architecture, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of the given sizes, float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**_text_config(architecture, tokenizer))
    return _initialised(Qwen2ForCausalLM, config, _special_ids(tokenizer), seed)


def _special_ids(tokenizer: Any) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in SPECIAL_TOKENS.items()}


def _text_config(architecture: Architecture, tokenizer: Any, **rope: Any) -> dict[str, Any]:
    a, ids = architecture, _special_ids(tokenizer)
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": a.hidden_size,
        "intermediate_size": a.intermediate_size,
        "num_hidden_layers": a.num_hidden_layers,
        "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.num_key_value_heads,
        "max_position_embeddings": 2048,
        "initializer_range": a.initializer_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **rope},
        "bos_token_id": ids["start"],
        "eos_token_id": ids["end"],
        "pad_token_id": ids["pad"],
        "tie_word_embeddings": True,
    }


def _initialised(kind: Any, config: Any, ids: dict[str, int], seed: int) -> Any:
    """A model with weights from `seed`, which generates until the end mark."""
    torch.manual_seed(seed)
    model = kind(config)
    model.set_attn_implementation("eager")  # as `attention: auto` on a CPU
    model.generation_config.eos_token_id = ids["end"]
    model.generation_config.pad_token_id = ids["pad"]
    return model.eval()

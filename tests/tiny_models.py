"""Tiny random checkpoints laid out as the hub lays out the real ones: names, files, types, shards.

Tokenizers are byte-level without merges, so that a text has as many tokens as it has bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
LLAMA_TOKENS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    "<|eot_id|>",
)
# as the released templates put the turns: with a system prompt of their own, ...
QWEN_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# ... or with a mark at the very beginning
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
BYTES = 256
TEXT = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096},
    "initializer_range": 0.1,
}


def dump(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")


def qwen_vl(folder: Path, seed: int = 0) -> None:
    """A Qwen2.5-VL as released: flat config, bfloat16 shards, processor and template in files of
    their own, a generation config that would penalise repetitions.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = tokenizer(folder, QWEN_TOKENS, "Qwen2Tokenizer", eos="<|im_end|>")
    config = {
        **TEXT,
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vocab_size": BYTES + 16,  # padded, as the released ones are
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_config": {
            **{"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2},
            **{"out_hidden_size": 32, "patch_size": 14, "spatial_merge_size": 2},
            **{"spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]},
            **{"in_chans": 3, "tokens_per_second": 2, "temporal_patch_size": 2},
            "hidden_act": "silu",
        },
    }
    torch.manual_seed(seed)
    save(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)), folder, shards="20KB")
    dump(folder / "config.json", config)
    dump(
        folder / "generation_config.json",
        {
            **{"bos_token_id": ids["<|endoftext|>"], "pad_token_id": ids["<|endoftext|>"]},
            **{"do_sample": True, "temperature": 1e-06, "repetition_penalty": 1.05},
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        },
    )
    dump(
        folder / "preprocessor_config.json",
        {
            **{"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2},
            **{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
            **{"temporal_patch_size": 2, "image_processor_type": "Qwen2VLImageProcessor"},
            "processor_class": "Qwen2_5_VLProcessor",
        },
    )
    dump(folder / "chat_template.json", {"chat_template": QWEN_TEMPLATE})


def qwen(folder: Path, seed: int = 0) -> None:
    """A pre-trained Qwen2.5: one bfloat16 file, tied embeddings, `<|endoftext|>` ends a text."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ids = tokenizer(folder, QWEN_TOKENS[:3], "Qwen2Tokenizer", eos="<|endoftext|>")
    ends = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|endoftext|>"]}
    config = Qwen2Config(**TEXT, **ends, vocab_size=BYTES + 16, tie_word_embeddings=True)
    torch.manual_seed(seed)
    save(Qwen2ForCausalLM(config), folder)


def llama(folder: Path, seed: int = 0) -> None:
    """An instruction-tuned Llama 3: float32 shards, untied embeddings, a tokenizer that puts
    `<|begin_of_text|>` first by itself.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = tokenizer(
        folder,
        LLAMA_TOKENS,
        "PreTrainedTokenizerFast",
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        template=LLAMA_TEMPLATE,
    )
    ends = {"bos_token_id": ids["<|begin_of_text|>"], "eos_token_id": ids["<|eot_id|>"]}
    config = LlamaConfig(**TEXT, **ends, vocab_size=BYTES + 8, tie_word_embeddings=False)
    torch.manual_seed(seed)
    save(LlamaForCausalLM(config), folder, dtype=torch.float32, shards="30KB")


def save(
    model: Any, folder: Path, dtype: torch.dtype = torch.bfloat16, shards: str = "5GB"
) -> None:
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)


def tokenizer(
    folder: Path,
    marks: tuple[str, ...],
    kind: str,
    eos: str,
    bos: str | None = None,
    template: str | None = None,
) -> dict[str, int]:
    """Write tokenizer.json, vocab.json, merges.txt and tokenizer_config.json; {mark: its id}."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    assert len(vocabulary) == BYTES
    made = Tokenizer(models.BPE(vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    ids = {mark: made.token_to_id(mark) for mark in marks}
    if bos is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
        )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    dump(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    values: dict[str, Any] = {
        "added_tokens_decoder": {
            str(i): {"content": mark, "special": True, **flags} for mark, i in ids.items()
        },
        **{"tokenizer_class": kind, "eos_token": eos, "bos_token": bos},
        "pad_token": marks[0] if bos is None else eos,
        "model_max_length": 4096,
    }
    if template is not None:
        values["chat_template"] = template
    dump(folder / "tokenizer_config.json", values)
    return ids

"""A Qwen2.5-VL assembled as in LLaVA: an encoder, a text decoder and a fresh projector.

The decoder of a Qwen2.5-VL's checkpoint and a Qwen2.5's checkpoint name their tensors alike, so the
result is the union of two files and the five tensors of a projector; phases train it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from merit.errors import MeritError

PROJECTOR = "visual.merger."
NORM = f"{PROJECTOR}ln_q.weight"


def assemble(vision: Path, decoder: Path, folder: Path, seed: int) -> None:
    """Write the model into `folder`: encoder, processor and template of `vision`, a Qwen2.5-VL's
    folder; the language model of `decoder`, a Qwen2's; a projector from `seed`: weights normal with
    the decoder's `initializer_range`, biases zero, the norm one. Tensors keep their types, the
    projector has the encoder's.

    Raises MeritError if a folder is of another architecture, or the vocabularies or the heads'
    sizes differ.
    """
    from merit.io.checkpoint_writer import CheckpointWriter
    from merit.io.checkpoints import Checkpoint

    config = assembled_config(vision, decoder)
    check_vocabularies(vision, decoder)
    eyes, words = Checkpoint(vision), Checkpoint(decoder)
    encoder = [n for n in eyes.names if n.startswith("visual.") and not n.startswith(PROJECTOR)]
    dtype = eyes.info(encoder[0]).dtype
    projector = fresh_projector(config, dtype, seed)
    layout = {name: eyes.info(name) for name in encoder}
    layout |= {name: words.info(name) for name in words.names}
    layout |= {
        name: eyes.info(NORM)._replace(dtype=dtype, shape=tuple(tensor.shape))
        for name, tensor in projector.items()
    }
    for path in sorted(vision.iterdir()):
        if path.suffix in (".json", ".txt", ".jinja") and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    config.save_pretrained(folder)
    with CheckpointWriter(folder, layout) as writer:
        for source, names in ((eyes, encoder), (words, list(words.names))):
            for name in names:
                writer.write(name, source.read(name))
        for name, tensor in projector.items():
            writer.write(name, tensor)


def assembled_config(vision: Path, decoder: Path) -> Any:
    """The encoder's configuration with the decoder's sizes. Raises MeritError as `assemble`."""
    from transformers import AutoConfig, Qwen2_5_VLConfig

    eyes, words = (
        AutoConfig.from_pretrained(f, local_files_only=True, trust_remote_code=False)
        for f in (vision, decoder)
    )
    for key, folder, kind, expected in (
        ("vision", vision, eyes.model_type, "qwen2_5_vl"),
        ("decoder", decoder, words.model_type, "qwen2"),
    ):
        if kind != expected:
            raise MeritError(
                f"key `base.assemble.{key}`: {folder}: found a {kind!r}, expected a {expected!r}"
            )
    head = words.hidden_size // words.num_attention_heads
    sections = eyes.text_config.rope_parameters["mrope_section"]
    if 2 * sum(sections) != head:
        raise MeritError(
            f"key `base.assemble`: the encoder's `mrope_section` {sections} is for heads of size "
            f"{2 * sum(sections)}, the decoder's are of size {head}"
        )
    values, sizes = eyes.to_dict(), words.to_dict()
    text = {k: sizes[k] for k in values["text_config"] if k in sizes and k != "model_type"}
    text["rope_parameters"] = {**words.rope_parameters, "mrope_section": sections}
    values["text_config"] |= text
    values["vision_config"]["out_hidden_size"] = words.hidden_size
    values["tie_word_embeddings"] = words.tie_word_embeddings
    config = Qwen2_5_VLConfig.from_dict(values)
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    return config


def check_vocabularies(vision: Path, decoder: Path) -> None:
    """Raises MeritError if a token of both has two ids."""
    from merit.train.model import load_processor

    seen, written = (
        getattr(p, "tokenizer", p).get_vocab() for p in map(load_processor, (vision, decoder))
    )
    different = sorted(t for t in seen.keys() & written.keys() if seen[t] != written[t])
    if different:
        token = different[0]
        raise MeritError(
            f"key `base.assemble`: {token!r} is token {seen[token]} in {vision} and "
            f"{written[token]} in {decoder}; only a decoder of the same vocabulary fits"
        )


def fresh_projector(config: Any, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """The five tensors of `visual.merger`, from only the seed."""
    generator = torch.Generator().manual_seed(seed)
    eyes, std = config.vision_config, config.text_config.initializer_range
    wide = eyes.hidden_size * eyes.spatial_merge_size**2

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * std).to(dtype)

    return {
        NORM: torch.ones(eyes.hidden_size, dtype=dtype),
        f"{PROJECTOR}mlp.0.weight": normal(wide, wide),
        f"{PROJECTOR}mlp.0.bias": torch.zeros(wide, dtype=dtype),
        f"{PROJECTOR}mlp.2.weight": normal(eyes.out_hidden_size, wide),
        f"{PROJECTOR}mlp.2.bias": torch.zeros(eyes.out_hidden_size, dtype=dtype),
    }

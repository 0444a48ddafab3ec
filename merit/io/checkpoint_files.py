"""A checkpoint's files: one, or shards with an index; what else may lie in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from merit.errors import MeritError
from merit.io.artifacts import file_hash, read_json, value_hash

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"  # peft's; merit.io.adapters reads such a folder
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def checkpoint_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint (a folder or a file), in order, as its index says.

    Raises MeritError where there is none, the index is unreadable, names a file that is missing or
    lies elsewhere, or leaves out a shard that is there.
    """
    if not path.is_dir():
        if not path.exists() and not path.suffix:
            raise MeritError(f"{path}: no checkpoint here, neither folder nor file")
        return [path]
    check_no_adapter(path)
    if not (path / INDEX).exists():
        if not (path / SINGLE).is_file():
            raise MeritError(f"{path / SINGLE}: checkpoint not found{other_weights(path / SINGLE)}")
        return [path / SINGLE]
    if (path / SINGLE).exists():
        raise MeritError(
            f"{path}: holds both {SINGLE} and {INDEX}; name the file itself, or a folder with one "
            "of the two"
        )
    listed = sorted({str(file) for file in weight_map(path).values()})
    for name in listed:
        if Path(name).name != name:
            raise MeritError(f"{path / INDEX}: shard {name!r} does not lie in the folder itself")
        if not (path / name).is_file():
            raise MeritError(f"{path / name}: shard not found, and {INDEX} names it; add it")
    for name in sorted(file.name for file in path.iterdir()):
        if SHARD.fullmatch(name) and name not in listed:
            raise MeritError(
                f"{path / INDEX}: shard {name} is there, but the index does not name it; remove "
                "it, or take a whole copy of the checkpoint into a folder of its own"
            )
    return [path / name for name in listed]


def check_no_adapter(folder: Path) -> None:
    """Raise MeritError if an adapter lies in the folder of a model: either could be meant.

    transformers would put it onto the model without a word.
    """
    if (folder / ADAPTER).is_file():
        found = "a whole model and an adapter" if _holds_model(folder) else "an adapter, no model"
        raise MeritError(
            f"{folder}: found {found} ({ADAPTER}); move the adapter into a folder of its own"
        )


def _holds_model(folder: Path) -> bool:
    return any((folder / name).exists() for name in (SINGLE, INDEX))


def other_weights(path: Path) -> str:
    """What to do where the folder holds weights in pickles."""
    for file in sorted(path.parent.glob("*model*.bin"))[:1]:
        return (
            f"; {file.name} lies there, and reading a pickle may run code: load it with the "
            "library that wrote it and save it as safetensors (`save_pretrained`)"
        )
    return ""


def checkpoint_hash(path: Path) -> str:
    """SHA-256 of a checkpoint: of the bytes of its file; of shards, of their names and hashes."""
    files = checkpoint_files(path)
    if len(files) == 1:
        return file_hash(files[0])
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(file_hash, files))
    return value_hash([[file.name, found] for file, found in zip(files, hashes, strict=True)])


def weight_map(folder: Path) -> Mapping[str, str]:
    index = read_json(folder / INDEX)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found:
        raise MeritError(f"{folder / INDEX}: key `weight_map` (tensor name to file) is missing")
    return found

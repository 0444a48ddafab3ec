"""What is merged: checkpoints and adapters, each checked against the base when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from merit.errors import MeritError
from merit.io.adapters import OUTPUT_EMBEDDING, Adapter, input_embedding
from merit.io.artifacts import read_json
from merit.io.checkpoint_files import ADAPTER, INDEX, SINGLE
from merit.io.checkpoints import Checkpoint, TensorInfo, check_same_tensors
from merit.merge.pieces import pieces_of


class Source(Protocol):
    """What is merged: a checkpoint, or an adapter that stands for one (merit.io.adapters)."""

    path: Path
    names: list[str]

    def has(self, name: str) -> bool: ...

    def info(self, name: str) -> TensorInfo: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor: ...


def open_branch(path: Path, base: Checkpoint, folder: Path) -> Source:
    """A branch, checked against the base in `folder`: its names, shapes and types.

    A folder with a config.json is a whole model, and lacks no tensor of the base.
    """
    if (path / ADAPTER).is_file() and not any((path / name).exists() for name in (SINGLE, INDEX)):
        tied = _tied(base, folder)
        return Adapter(path, base, lambda names: stored_names(folder, names), tied)
    branch = Checkpoint(path)
    branch.name_as(base)
    forget_tied(branch, folder)
    check_same_tensors(branch, base)
    missing = sorted(set(base.names) - set(branch.names))
    if missing and (path / "config.json").is_file():
        raise MeritError(
            f"{branch.path}: {len(missing)} tensors of the base {base.path} are missing, "
            f"{missing[0]!r} among them; take a whole copy of it (a folder of only trained tensors "
            "has no config.json)"
        )
    return branch


def trained_names(branches: Sequence[Source], base: Checkpoint) -> list[str]:
    """The tensors that any branch holds; those that hold some of the base's hold the same ones."""
    partial = [
        branch
        for branch in branches
        if isinstance(branch, Checkpoint) and len(branch.names) < len(base.names)
    ]
    for branch in partial:
        check_same_tensors(branch, base, set(partial[0].names))
    return sorted({name for branch in branches for name in branch.names})


def forget_tied(checkpoint: Checkpoint, folder: Path) -> None:
    """Leave the output embedding out where the base's config.json says that it is the input's.

    Raises MeritError where the two are stored and differ.
    """
    name = input_embedding(checkpoint.names)
    if not _tied(checkpoint, folder) or not checkpoint.has(OUTPUT_EMBEDDING) or name is None:
        return
    if checkpoint.shape(OUTPUT_EMBEDDING) != checkpoint.shape(name):
        raise MeritError(f"{checkpoint.path}: {OUTPUT_EMBEDDING!r} and {name!r} differ in shape")
    for _, *rows in pieces_of(OUTPUT_EMBEDDING, checkpoint.info(OUTPUT_EMBEDDING)):
        output, embedding = (checkpoint.read(n, *rows) for n in (OUTPUT_EMBEDDING, name))
        if not torch.equal(output, embedding):
            raise MeritError(
                f"{checkpoint.path}: {OUTPUT_EMBEDDING!r} differs from {name!r}, but "
                f"{folder / 'config.json'} says `tie_word_embeddings`; correct the config or the "
                "tensor"
            )
    checkpoint.forget(OUTPUT_EMBEDDING)


def _tied(checkpoint: Checkpoint, folder: Path) -> bool:
    """Whether the output embedding is the input's, as the base's config.json says.

    Some architectures are tied where it says nothing: then no output embedding is stored.
    """
    path = (folder if folder.is_dir() else folder.parent) / "config.json"
    config = read_json(path) if path.is_file() else {}
    parts = [config, config.get("text_config") or {}]
    stated = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
    names = config.get("architectures") or [""]
    has_head = str(names[0]).endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"))
    return any(stated) if stated else has_head and not checkpoint.has(OUTPUT_EMBEDDING)


def stored_names(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Names in a loaded model -> in its checkpoint; a name that cannot be found stays as it is.

    transformers renames tensors of some architectures while loading.
    """
    import transformers

    from merit.train.model import stored_tensors

    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            model = getattr(transformers, config.architectures[0])(config)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise MeritError(
            f"{folder}: its architecture, which says how {names[0]!r} is called in the "
            f"checkpoint, cannot be read ({error})"
        ) from None
    parameters, stored = dict(model.named_parameters()), {name: name for name in names}
    for name in names:
        if name in parameters:
            found = list(stored_tensors(model, {name: parameters[name]}))
            stored[name] = found[0] if len(found) == 1 else name
    return stored

"""LoRA adapters (peft's folders) as checkpoints: theta0 + s B A, row by row.

Branches that were trained as adapters merge as what they do to the weights. The average of B_k A_k
is not the product of averages; averaging factors would be another model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from merit.errors import MeritError
from merit.io.artifacts import read_json
from merit.io.checkpoints import Checkpoint, TensorInfo

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
# settings of peft's LoraConfig with which a weight is not theta0 + s B A
REFUSED = (
    *("use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication", "arrow_config"),
    *("target_parameters", "trainable_token_indices", "alora_invocation_tokens"),
    *("monteclora_config", "kasa_config", "velora_config"),
)
# ways to begin that leave theta0 as it was
INITIAL = (True, False, "gaussian", "orthogonal", "eva", "mica")
Rename = Callable[[Sequence[str]], dict[str, str]]


class Low(NamedTuple):
    """What is added to a weight: scale * left @ right, with the keys of both factors."""

    left: str
    right: str
    transposed: bool  # the file's factors give the weight's transpose
    scale: float


class Adapter:
    """A LoRA adapter at its base, tensor by tensor; float64, so that the delta is exact.

    `rename` gives the names in the base's checkpoint for those in a loaded model (transformers
    renames some while loading); it is asked only where the base lacks a name. Tensors that the
    adapter holds whole (`modules_to_save`) are read as they are.

    Raises MeritError, naming file and key, for another kind of adapter, a setting that changes
    weights in another way, a factor without its partner, or a shape that is not the base's.
    """

    def __init__(self, path: Path, base: Checkpoint, rename: Rename) -> None:
        self.path, self._base = path, base
        self._file = Checkpoint(path / WEIGHTS)
        config = read_json(path / CONFIG)
        _check(path / CONFIG, config)
        pairs: dict[tuple[str, bool], dict[str, str]] = {}
        whole: dict[str, str] = {}
        for key in self._file.names:
            inner = key.removeprefix(PREFIX)
            if found := FACTOR.fullmatch(inner):
                place = (found["module"], bool(found["embedding"]))
                pairs.setdefault(place, {})[found["side"]] = key
            else:
                whole[inner] = key
        for module, _ in pairs:  # peft saves what it adapts of the embedding beside its factors
            whole.pop(f"{module}.base_layer.weight", None)
        low = {}
        for (module, embedding), keys in pairs.items():
            if len(keys) < 2:
                raise MeritError(
                    f"{self._file.path}: tensor {next(iter(keys.values()))!r} is one factor of "
                    "two, the other is missing; fetch the adapter again"
                )
            rank = self._file.shape(keys["A"])[0]
            alpha = _of_module(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
            scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
            transposed = embedding or bool(config.get("fan_in_fan_out"))
            low[f"{module}.weight"] = Low(keys["B"], keys["A"], transposed, scale)
        stored = self._stored([*low, *whole], rename)
        self._low = {stored[name]: factors for name, factors in low.items()}
        self._whole = {stored[name]: key for name, key in whole.items()}
        self.names: list[str] = sorted(self._low | self._whole)
        self._check_shapes()

    def has(self, name: str) -> bool:
        return name in self._low or name in self._whole

    def info(self, name: str) -> TensorInfo:
        if name in self._whole:
            return self._file.info(self._whole[name])
        return TensorInfo(torch.float64, self._base.shape(name))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The weight with the adapter merged into it, or some of its rows."""
        if name in self._whole:
            return self._file.read(self._whole[name], start, stop)
        stop = self._base.info(name).num_rows if stop is None else stop
        low = self._low[name]
        if low.transposed:  # (B A)^T = A^T B^T
            left = self._file.read(low.right).double().T[start:stop]
            right = self._file.read(low.left).double().T
        else:
            left = self._file.read(low.left, start, stop).double()
            right = self._file.read(low.right).double()
        return self._base.read(name, start, stop).double().add(left @ right, alpha=low.scale)

    def _stored(self, names: list[str], rename: Rename) -> dict[str, str]:
        """Every name's own in the base's checkpoint."""
        known = {name: name for name in names}
        missing = [name for name in names if not self._base.has(name)]
        if missing:
            known |= rename(missing)
        for name in names:
            if not self._base.has(known[name]):
                raise MeritError(
                    f"{self._file.path}: adapts {name!r}, which does not exist in the base "
                    f"{self._base.path}; the adapter belongs to another model"
                )
        return known

    def _check_shapes(self) -> None:
        for name in self.names:
            if name in self._whole:
                found = self._file.shape(self._whole[name])
            else:
                low = self._low[name]
                left, right = self._file.shape(low.left), self._file.shape(low.right)
                found = (left[0], right[1]) if len(left) == len(right) == 2 else (*left, *right)
                if len(found) == 2 and left[1] != right[0]:
                    found = (*left, *right)
                found = found[::-1] if low.transposed else found
            if found != self._base.shape(name):
                raise MeritError(
                    f"{self._file.path}: what is added to {name!r} has shape {found}, the base "
                    f"{self._base.path} has {self._base.shape(name)}; the adapter belongs to "
                    "another model"
                )


def _check(path: Path, config: dict[str, Any]) -> None:
    """Raises MeritError where the adapter's weights are not theta0 + s B A."""
    if config.get("peft_type") != "LORA":
        raise MeritError(
            f"{path}: key `peft_type`: found {config.get('peft_type')!r}, expected 'LORA'; merge "
            "the adapter into its base with peft (`merge_and_unload`) and give that model"
        )
    if not isinstance(config.get("lora_alpha"), int | float):
        raise MeritError(f"{path}: key `lora_alpha` is missing or no number")
    wrong = [key for key in REFUSED if config.get(key)]
    wrong += ["bias"] if config.get("bias", "none") != "none" else []
    wrong += ["init_lora_weights"] if config.get("init_lora_weights", True) not in INITIAL else []
    if wrong:
        raise MeritError(
            f"{path}: key `{wrong[0]}`: found {config[wrong[0]]!r}, with which the adapter is more "
            "than B A added to its base; merge it with peft (`merge_and_unload`) and give that "
            "model"
        )


def _of_module(patterns: dict[str, float], module: str, default: float) -> float:
    """A setting of one module: that of the first pattern that its name ends with."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default

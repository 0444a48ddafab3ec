"""LoRA adapters (peft's folders) as checkpoints: theta0 + s B A, row by row.

Branches that were trained as adapters merge as what they do to the weights. The average of B_k A_k
is not the product of averages; averaging factors would be another model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch

from merit.errors import MeritError
from merit.io.artifacts import read_json
from merit.io.checkpoint_files import ADAPTER
from merit.io.checkpoints import Checkpoint, TensorInfo

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
PREFIX = "base_model.model."
OUTPUT_EMBEDDING = "lm_head.weight"
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
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
    adapter holds whole (`modules_to_save`) are read as they are. `tied`: the base's output
    embedding is the input's; peft trains them apart unless it is told `ensure_weight_tying`, and
    then saves what is the same twice.

    Raises MeritError, naming file and key, for another kind of adapter, a setting that changes
    weights in another way, a factor without its partner, a shape that is not the base's, or one
    of two tied embeddings.
    """

    def __init__(self, path: Path, base: Checkpoint, rename: Rename, tied: bool = False) -> None:
        self.path, self._base = path, base
        self._file = Checkpoint(path / WEIGHTS)
        config = read_json(path / CONFIG)
        if not isinstance(config, dict):
            raise MeritError(f"{path / CONFIG}: expected keys and values, found {config!r:.80}")
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
                    "two, the other is missing; take a whole copy of the adapter"
                )
            rank = max([1, *self._file.shape(keys["A"])[:1]])  # `_check_shapes` refuses others
            alpha = _of_module(path / CONFIG, config, module)
            scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
            transposed = embedding or bool(config.get("fan_in_fan_out"))
            low[f"{module}.weight"] = Low(keys["B"], keys["A"], transposed, scale)
        if tied:
            self._forget_tied(low, whole, bool(config.get("ensure_weight_tying")))
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

    def _forget_tied(self, low: dict[str, Low], whole: dict[str, str], ensured: bool) -> None:
        """Leave out what is added to the output embedding, if the input's gets the same."""
        inputs, output = input_embedding([*low, *whole]) or "", OUTPUT_EMBEDDING
        head, embedding = (
            [self._factors(found, name) for found in (low, whole) if name in found]
            for name in (output, inputs)
        )
        same = len(head) == len(embedding) == 1 and len(head[0]) == len(embedding[0])
        same = same and all(map(torch.equal, head[0], embedding[0]))
        if not same and (head or embedding) and not (ensured and embedding and not head):
            one, other = (output, "input") if head else (inputs, "output")
            raise MeritError(
                f"{self._file.path}: changes {one!r} and not the {other} embedding likewise, but "
                f"in the base {self._base.path} they are one tensor (`tie_word_embeddings`); train "
                "it with `ensure_weight_tying`, or start from a base that is saved untied"
            )
        for found in (low, whole):
            found.pop(output, None)

    def _factors(self, found: dict[str, Any], name: str) -> list[torch.Tensor]:
        """Tensors that decide a weight: the whole one, or both factors of its delta."""
        at = found[name]
        if isinstance(at, str):
            return [self._file.read(at)]
        left, right = self._file.read(at.left), self._file.read(at.right)
        return [torch.tensor(at.scale), *([right.T, left.T] if at.transposed else [left, right])]

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
                fits = len(left) == len(right) == 2 and left[1] == right[0]
                found = (left[0], right[1]) if fits else (*left, *right)
                found = found[::-1] if low.transposed else found
            if found != self._base.shape(name):
                raise MeritError(
                    f"{self._file.path}: what is added to {name!r} has shape {found}, the base "
                    f"{self._base.path} has {self._base.shape(name)}; the adapter belongs to "
                    "another model"
                )


def input_embedding(names: Sequence[str]) -> str | None:
    """The input embedding among a model's names; None if there is none, or more than one."""
    found = [name for name in names if name.endswith(INPUT_EMBEDDINGS)]
    return found[0] if len(found) == 1 else None


def _check(path: Path, config: dict[str, Any]) -> None:
    """Raises MeritError where the adapter's weights are not theta0 + s B A."""
    if config.get("peft_type") != "LORA":
        raise MeritError(
            f"{path}: key `peft_type`: found {config.get('peft_type')!r}, expected 'LORA'; merge "
            "the adapter into its base with peft (`merge_and_unload`) and give that model"
        )
    if not _is_number(config.get("lora_alpha")):
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


def _of_module(path: Path, config: dict[str, Any], module: str) -> float:
    """A module's alpha: that of the first pattern that its name ends with, or `lora_alpha`.

    Raises MeritError that names the pattern if it is none, or its value no number.
    """
    patterns = config.get("alpha_pattern") or {}
    pairs: list[tuple[Any, Any]] = [(patterns, None)]
    for pattern, value in patterns.items() if isinstance(patterns, dict) else pairs:
        try:
            found = re.fullmatch(rf"(.*\.)?({pattern})", module)
        except re.error as error:
            raise MeritError(
                f"{path}: key `alpha_pattern`: {pattern!r} is no regular expression: {error}"
            ) from None
        if not _is_number(value):
            raise MeritError(f"{path}: key `alpha_pattern`: {pattern!r}: {value!r} is no number")
        if found:
            return float(value)
    return float(config["lora_alpha"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)

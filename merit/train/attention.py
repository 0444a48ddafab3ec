"""`varlen`: torch's flash attention over sequences of any lengths, as an attention of transformers.

In the decoder it reads only where each packed example begins, where sdpa masks a row by a dense
(L, L) table; in the vision part it attends to all windows of a row in one call per layer, where
transformers loops over them. For GPUs, in bfloat16 or float16.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel, varlen
from transformers import AttentionInterface, AttentionMaskInterface

from merit.errors import MeritError

VARLEN = "varlen"
# transformers gives the bounds of windows in one call to what has "flash" in its name
WINDOWS = "varlen_flash"
# torch 2.10 to 2.12 say `is_causal`; later ones give a window, of which 0 to the right is causal
_known = inspect.signature(varlen.varlen_attn).parameters
_WINDOWED, _SHARED_HEADS = "window_size" in _known, "enable_gqa" in _known


def choose_attention(model: Any, wanted: str, low: bool, generates: bool = False) -> None:
    """Set the attention of the decoder and of the vision part that `model.attention` asks for.

    `auto` is varlen on a GPU if the model computes in 16 bits (`low`) and its heads have a size
    that the kernel takes; else sdpa on a GPU, and eager on a CPU, where sdpa's bytes depend on it.
    A model that `generates` has a cache and a mask, which only sdpa reads: its decoder takes that.

    Raises MeritError if varlen is asked for where it cannot be.
    """
    on_gpu = model.device.type == "cuda"
    parts = [model.config.get_text_config(), *filter(None, [_vision(model)])]
    sizes = [
        c.hidden_size // (getattr(c, "num_attention_heads", None) or c.num_heads) for c in parts
    ]
    fits = on_gpu and low and all(size % 8 == 0 and size <= 256 for size in sizes)
    if wanted == VARLEN and not fits:
        raise MeritError(
            "key `model.attention`: 'varlen' is for a GPU, 16 bits and heads of up to 256, a "
            f"multiple of 8; found {model.device.type}, {'16' if low else '32'} bits and heads of "
            f"{', '.join(map(str, sizes))}; set `attention: auto`"
        )
    if wanted == "auto":
        wanted = VARLEN if fits else "sdpa" if on_gpu else "eager"
    decoder = "sdpa" if wanted == VARLEN and generates else wanted
    vision = "sdpa" if wanted == VARLEN else wanted  # which transformers checks
    names = {"": vision, "text_config": decoder, "vision_config": vision}
    model.set_attn_implementation(names if _vision(model) else decoder)
    if wanted == VARLEN and _vision(model):
        model.model.visual.config._attn_implementation = WINDOWS


def _vision(model: Any) -> Any:
    """The vision part's configuration; None for a text model."""
    return getattr(model.config, "vision_config", None)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each sequence, causal or as the module is; (1, L, heads, head_dim).

    Args: query (1, heads, L, head_dim), key and value (1, key_value_heads, L, head_dim);
    cu_seq_lens_q int32 (B + 1,): where the sequences begin; without it every row of a padded batch
    (B, ...) is a sequence of its own.
    """
    rows, heads, length, size = query.shape
    if cu_seq_lens_q is None:
        cu_seq_lens_q = torch.arange(rows + 1, dtype=torch.int32, device=query.device) * length
        max_length_q = length
    given: dict[str, Any] = {"scale": scaling}
    causal = module.is_causal if is_causal is None else is_causal
    given |= {"window_size": (-1, 0 if causal else -1)} if _WINDOWED else {"is_causal": causal}
    if _SHARED_HEADS:
        given["enable_gqa"] = True
    else:
        repeats = heads // key.shape[1]
        key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
    # autocast may leave query and key in float32 after rotation; the kernel takes one type
    parts = (query.to(value.dtype), key.to(value.dtype), value)
    q, k, v = (t.transpose(1, 2).reshape(rows * length, -1, size) for t in parts)
    begins, longest = cu_seq_lens_q, max_length_q or length
    with _flash():
        attended = varlen.varlen_attn(q, k, v, begins, begins, longest, longest, **given)
    assert isinstance(attended, torch.Tensor)
    return attended.view(rows, length, heads, size), None


def _flash() -> AbstractContextManager[Any]:
    """Keep to flash attention: cuDNN, which torch prefers on some GPUs, plans for every shape."""
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION) if _WINDOWED else nullcontext()


for name in (VARLEN, WINDOWS):
    AttentionInterface.register(name, attend)
    # no mask: what may be seen follows from where the sequences begin
    AttentionMaskInterface.register(name, lambda *_, **__: None)

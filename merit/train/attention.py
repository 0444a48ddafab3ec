"""`varlen`: torch's flash attention over packed rows, as an attention of transformers.

transformers' sdpa masks a packed row by a dense (L, L) table; this reads only where each example
begins. For GPUs, in bfloat16 or float16. Registered on import.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

# torch 2.10 to 2.12 say `is_causal`; later ones give a window, of which 0 to the right is causal
_known = inspect.signature(varlen_attn).parameters
_CAUSAL: dict[str, Any] = (
    {"window_size": (-1, 0)} if "window_size" in _known else {"is_causal": True}
)
_SHARED_HEADS = "enable_gqa" in _known


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each packed example; (1, L, heads, head_dim).

    Args: query (1, heads, L, head_dim), key and value (1, key_value_heads, L, head_dim);
    cu_seq_lens_q int32 (B + 1,): where the examples begin; without it every row of a padded batch
    (B, ...) is a sequence of its own.
    """
    rows, heads, length, size = query.shape
    if cu_seq_lens_q is None:
        cu_seq_lens_q = torch.arange(rows + 1, dtype=torch.int32, device=query.device) * length
        max_length_q = length
    given: dict[str, Any] = {"scale": scaling, **_CAUSAL}
    if _SHARED_HEADS:
        given["enable_gqa"] = True
    else:
        repeats = heads // key.shape[1]
        key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
    # autocast may leave query and key in float32 after rotation; the kernel takes one type
    parts = (query.to(value.dtype), key.to(value.dtype), value)
    q, k, v = (t.transpose(1, 2).reshape(rows * length, -1, size) for t in parts)
    begins, longest = cu_seq_lens_q, max_length_q or length
    attended = varlen_attn(q, k, v, begins, begins, longest, longest, **given)
    assert isinstance(attended, torch.Tensor)
    return attended.view(rows, length, heads, size), None


AttentionInterface.register("varlen", attend)
# no mask: what may be seen follows from where the examples begin
AttentionMaskInterface.register("varlen", lambda *_, **__: None)

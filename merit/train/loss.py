"""The mean next-token loss of a batch, padded or packed, for any model on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from merit.train.dataset import IGNORED, Batch
from merit.train.model import has_vision, image_embeddings

Project = Callable[[torch.Tensor], torch.Tensor]
# up to it all logits are computed at once, as transformers does: a miniature's fit anywhere
SMALL_VOCABULARY = 16_384
CHUNK = 2048  # supervised tokens whose logits exist at a time: 1.2 GB at 152k entries


def forward_loss(model: Any, batch: Batch, project: Project | None) -> torch.Tensor:
    """Mean next-token loss over the batch's supervised tokens (scalar).

    Of a text model or a Qwen2.5-VL; the batch comes from `TokenizedDataset.batch` or `.pack`, on
    any device. `project` turns cached vision hidden states into image embeddings, if the projector
    learns; without it the batch's features are image embeddings already.
    """
    device = model.get_input_embeddings().weight.device
    # grids stay: the vision part would wait for each of their numbers
    on = {k: v if k == "grids" else v.to(device, non_blocking=True) for k, v in batch.items()}
    inputs: dict[str, Any] = {"input_ids": on["input_ids"], "use_cache": False}
    packed = "bounds" in on
    if packed:
        inputs |= _sequences(batch["bounds"], device)
    if has_vision(model):
        inputs |= {"position_ids": on["position_ids"], **_images(model, on, project)}
    elif packed:
        inputs["position_ids"] = on["position_ids"][0]
    hidden = model.model(**inputs)[0]
    return token_loss(model, hidden, on["labels"])


def _sequences(bounds: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """Where the packed examples lie, for attention that reads it; sdpa masks by the positions."""
    longest, bounds = int(bounds.diff().max()), bounds.to(device)
    return {
        **{"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds},
        **{"max_length_q": longest, "max_length_k": longest},
    }


def _images(model: Any, on: Batch, project: Project | None) -> dict[str, Any]:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    if "features" in on:
        embeddings = on["features"] if project is None else project(on["features"])
    elif "pixel_values" in on:
        # nothing is kept for the backward pass of parts that do not learn
        learns = any(p.requires_grad for p in model.model.visual.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            embeddings = image_embeddings(model, on["pixel_values"], on["grids"])
    else:
        return {}
    outputs: Any = (embeddings,)  # a sequence of tensors, as the vision encoder itself returns them
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=outputs)}}


def token_loss(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, float32, over the supervised ones; 0 without any.

    With a large vocabulary only the supervised tokens' logits are computed, a chunk at a time, and
    again in the backward pass: all logits of 8,000 tokens would take 5 GB, twice.

    Args: hidden (B, L, hidden_size), labels int64 (B, L).
    """
    following = labels[:, 1:].reshape(-1)
    places = (following != IGNORED).nonzero().squeeze(1)
    if not len(places):  # the mean of nothing is no number; through the head, as any other loss
        return model.lm_head(hidden[:, :1]).float().sum() * 0.0
    vocabulary = model.lm_head.weight.shape[0]
    if vocabulary <= SMALL_VOCABULARY:
        logits = model.lm_head(hidden)
        return model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
    rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])[places]
    targets = following[places]
    total = rows.new_zeros((), dtype=torch.float32)
    for start in range(0, len(places), CHUNK):
        part = slice(start, start + CHUNK)
        total = total + checkpoint(
            _summed, model.lm_head, rows[part], targets[part], use_reentrant=False
        )
    return total / len(places)


def _summed(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")


class LanguageLoss(torch.nn.Module):
    """A model with its loss as one module: what is sharded, and called, as a whole."""

    def __init__(self, model: Any, project: Project | None = None, low: bool = False) -> None:
        super().__init__()
        self.model = model
        self.project = project
        self.low = low  # computes in bfloat16

    def forward(self, batch: Batch) -> torch.Tensor:
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.low):
            return forward_loss(self.model, batch, self.project)

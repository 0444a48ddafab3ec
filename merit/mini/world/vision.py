"""The visual world's vision encoder, pre-trained on labels (in place of a public encoder)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from merit.config import Phase
from merit.errors import MeritError
from merit.mini.world.cell_labels import HEADS, labelled_batch
from merit.mini.world.draw import Pen
from merit.train.checkpoint import Log
from merit.train.model import set_trainable
from merit.train.optimizers import build_optimizers, learning_rate_at, step_all


def pretrain_vision(model: Any, processor: Any, phase: Phase, seed: int, log: Log) -> None:
    """Train the vision encoder to name what is in every cell, through throw-away linear heads.

    The heads read the encoder's hidden states, four patches a cell, before the projector.
    """
    parameters = set_trainable(model, phase.trainable)
    settings = phase.optimizer
    size = model.config.vision_config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(4 * size, sum(HEADS.values()))
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / math.sqrt(4 * size))
        head.bias.zero_()
    optimizers = build_optimizers({**parameters, **dict(head.named_parameters())}, settings)
    rng, pen = np.random.default_rng(seed), Pen("train")
    for step in range(phase.num_steps):
        rate = learning_rate_at(step, phase.num_steps, settings)
        images, labels = labelled_batch(settings.batch_size, rng, pen)
        pixels = pixels_of(images, processor)
        side = int(pixels.shape[1] ** 0.5)
        grid = torch.tensor([[1, side, side]]).expand(len(images), 3)
        hidden = model.model.visual(pixels.flatten(0, 1), grid_thw=grid).last_hidden_state
        logits = head(hidden.view(len(images), -1, 4 * size))
        losses = [
            torch.nn.functional.cross_entropy(part.flatten(0, 1), target.flatten())
            for part, target in zip(
                logits.split(list(HEADS.values()), dim=-1),
                torch.from_numpy(labels).unbind(1),
                strict=True,
            )
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm)
        step_all(optimizers, rate)
        if (step + 1) % max(1, phase.num_steps // 50) == 0:
            _check_finite(loss, phase, step)
            log(
                {
                    "step": step + 1,
                    "loss": loss.item(),
                    "learning_rate": rate,
                    "gradient_norm": float(norm),
                },
                {},
            )


def pixels_of(images: np.ndarray, processor: Any) -> torch.Tensor:
    """float32 (B, num_patches, patch_dim) of uint8 images (B, H, W, 3)."""
    values = processor.image_processor(
        [torch.from_numpy(image).permute(2, 0, 1) for image in images], return_tensors="pt"
    )["pixel_values"]
    return values.view(len(images), -1, values.shape[-1])


def _check_finite(loss: torch.Tensor, phase: Phase, step: int) -> None:
    if not torch.isfinite(loss):
        raise MeritError(
            f"base phase {phase.name!r}: the loss is {loss.item()} at step {step + 1}; lower "
            f"`learning_rate` (now {phase.optimizer.learning_rate:g})"
        )

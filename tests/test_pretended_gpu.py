"""The path of a GPU on a pretended one: devices never mix, and attention and waiting are counted."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from merit.errors import MeritError
from merit.train.attention import choose_attention
from merit.train.loss import forward_loss
from merit.train.model import load_model, set_trainable
from tests import tiny_models
from tests.pretended_gpu import OnGpu, moved, pretended_gpu

GRIDS = torch.tensor([[1, 16, 20], [1, 8, 24]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eyes")
    tiny_models.qwen_vl(folder)
    return folder


@pytest.fixture
def model(folder: Path) -> Any:
    return load_model(folder).float()


def row(model: Any) -> dict[str, torch.Tensor]:
    """Three packed examples, two of them with an image."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    counts = (GRIDS.prod(dim=1) // 4).tolist()
    tokens: list[int] = []
    bounds = [0]
    for count in (counts[0], 0, counts[1]):
        tokens += [*range(5, 12), *[config.image_token_id] * count, *range(20, 31)]
        bounds.append(len(tokens))
    ids = torch.tensor(tokens)
    positions = torch.cat([torch.arange(b - a) for a, b in zip(bounds, bounds[1:], strict=False)])
    labels = torch.where(ids < 25, -100, ids)
    return {
        "input_ids": ids[None],
        "labels": labels[None],
        "position_ids": positions.expand(4, 1, -1).clone(),
        "bounds": torch.tensor(bounds, dtype=torch.int32),
        "pixel_values": torch.randn(int(GRIDS.prod(dim=1).sum()), 1176, generator=generator),
        "grids": GRIDS,
    }


def test_a_packed_row_with_images_takes_one_call_a_layer_and_waits_for_no_layer(
    model: Any,
) -> None:
    """Two layers of the encoder and two of the decoder: four calls of attention, whatever the
    number of windows; as many points that wait with one layer as with two. The loss and all
    gradients are the CPU's.
    """
    parameters = set_trainable(model, ["vision", "projector", "decoder"])
    expected = forward_loss(model, row(model), None)
    gradients = torch.autograd.grad(expected, list(parameters.values()))
    waits = []
    for layers in (1, 2):
        again = copy.deepcopy(model)
        if layers == 1:
            del again.model.visual.blocks[0], again.model.language_model.layers[1]
            again.model.language_model.config.num_hidden_layers = 1
        with pretended_gpu() as gpu:
            moved(again)
            choose_attention(again, "auto", low=True)
            learns = set_trainable(again, ["vision", "projector", "decoder"])
            loss = forward_loss(again, row(model), None)
            loss.backward()
            assert gpu.attention == 2 * layers
            waits.append(gpu.waits.total())
    assert waits[0] == waits[1] <= 10, gpu.waits
    assert isinstance(loss, OnGpu)
    assert_close(loss.host.detach(), expected.detach())
    for (name, parameter), gradient in zip(learns.items(), gradients, strict=True):
        assert isinstance(parameter.grad, OnGpu), name
        assert_close(parameter.grad.host, gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_devices_that_mix_are_found() -> None:
    with pretended_gpu(), pytest.raises(RuntimeError, match="same device"):
        OnGpu(torch.ones(3)) + torch.ones(3)


def test_varlen_is_refused_where_its_kernel_cannot_be(model: Any) -> None:
    with pytest.raises(MeritError, match="found cpu"):
        choose_attention(model, "varlen", low=True)
    with pretended_gpu():
        moved(model)
        with pytest.raises(MeritError, match="32 bits"):
            choose_attention(model, "varlen", low=False)
        choose_attention(model, "auto", low=False)
        assert model.model.visual.config._attn_implementation == "sdpa"
        choose_attention(model, "auto", low=True, generates=True)  # a cache needs a mask
        parts = model.model.visual.config, model.model.language_model.config
        assert [part._attn_implementation for part in parts] == ["varlen_flash", "sdpa"]

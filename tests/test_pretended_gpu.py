"""The path of a GPU on a pretended one: devices never mix; attention and waiting are counted."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from merit.errors import MeritError
from merit.method.gradients import Sketch, Stride
from merit.run import smoke_table
from merit.train.attention import choose_attention
from merit.train.loss import forward_loss
from merit.train.model import load_model, load_processor, set_trainable
from merit.train.task_gradients import BaseGradients
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
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise(bounds)])
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


@pytest.mark.parametrize("representation", [Stride(3), Sketch(101)])
def test_gradients_of_packed_rows_are_those_of_padded_batches(representation: Any) -> None:
    data, gradients = smoke_table.dataset("vision"), []
    owner = np.arange(len(data), dtype=np.int32) % 2

    def gradient(model: Any, pack_tokens: int | None) -> torch.Tensor:
        parameters = set_trainable(model, ["projector", "decoder"])
        base = BaseGradients(model, parameters, data, owner, ["a", "b"], 2, pack_tokens)
        return base.task_gradient(1, 200, 0, representation)

    model = copy.deepcopy(smoke_table.model_of("vision"))
    gradients.append(gradient(model, None))
    with pretended_gpu() as gpu:
        choose_attention(moved(model), "auto", low=True)
        found = gradient(model, 60)
        assert isinstance(found, OnGpu)
        assert gpu.attention > 0
        gradients.append(found.cpu())
    assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("images", [True, False])
def test_generation_on_the_pretended_gpu_gives_the_cpus_answers(folder: Path, images: bool) -> None:
    """The encoder in one call per layer, with each image's windows; the decoder with its cache."""
    processor, model = load_processor(folder), load_model(folder, generates=True).float()
    picture = Image.new("RGB", (112, 84), "red")
    parts = [{"type": "text", "text": "say"}]
    messages = [{"role": "user", "content": parts + [{"type": "image"}] * images}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    shown = {"images": [picture] * 2} if images else {}
    inputs = processor(text=[text, text], return_tensors="pt", **shown)
    options = {"max_new_tokens": 5, "do_sample": False, "repetition_penalty": 1.0}

    def answer() -> torch.Tensor:
        given = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        with torch.no_grad():
            return model.generate(**given, **options).cpu()

    expected = answer()
    with pretended_gpu() as gpu:
        choose_attention(moved(model), "auto", low=True, generates=True)
        assert answer().tolist() == expected.tolist()
        assert gpu.attention == 2 * images

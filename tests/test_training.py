"""The training loop and the mean gradients, on a model of one layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch.testing import assert_close

from merit.config import Optimizer
from merit.errors import MeritError
from merit.method.gradients import calibration_sample
from merit.train.loop import Record, train
from merit.train.loss import forward_loss
from merit.train.model import component_of, set_trainable
from merit.train.optimizers import build_optimizers, learning_rate_at, step_all
from merit.train.order import batches, data_order, grouped_by_length
from tests.conftest import Tiny

OPTIMIZER = Optimizer(learning_rate=3e-3, batch_size=4, warmup_ratio=0.0)


def run(
    tiny: Tiny,
    optimizer: Optimizer = OPTIMIZER,
    *,
    epochs: float = 2.0,
    seed: int = 1,
    prepare: Callable[[Any], None] = lambda model: None,
) -> tuple[dict[str, torch.Tensor], list[Record]]:
    """(trained decoder tensors, records) of a copy of the tiny model."""
    model = copy.deepcopy(tiny.model)
    prepare(model)
    parameters = set_trainable(model, ["decoder"])
    records: list[Record] = []
    order = data_order(len(tiny.encoded), epochs, seed)
    train(
        model,
        parameters,
        tiny.encoded,
        order,
        optimizer,
        what="branch merit-3d-s1-g0",
        log=lambda record, timing: records.append(record),
    )
    return {name: p.detach() for name, p in parameters.items()}, records


# --- the loop -----------------------------------------------------------------------------------


def test_training_twice_is_the_same_bytes(tiny: Tiny) -> None:
    (first, records), (second, again) = run(tiny), run(tiny)
    assert records == again
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.numpy().tobytes() == second[name].numpy().tobytes(), name
    other, _ = run(tiny, seed=2)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_only_the_decoder_learns_and_the_loss_falls(tiny: Tiny) -> None:
    before = {name: p.detach().clone() for name, p in tiny.model.named_parameters()}
    trained, records = run(tiny, epochs=25.0)
    assert {component_of(name) for name in trained} == {"decoder"}
    assert len(trained) == sum(component_of(name) == "decoder" for name in before)
    assert all(not torch.equal(trained[name], before[name]) for name in trained)
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert records[0]["loss"] == pytest.approx(math.log(len(tiny.processor.tokenizer)), rel=0.05)


def test_records_by_hand(tiny: Tiny) -> None:
    """15 examples in batches of 4: 4 steps an epoch and the last epoch's rest, 8 in 2 epochs."""
    _, records = run(tiny)
    assert [record["step"] for record in records] == list(range(1, 9))
    epochs = [round(4 * step / 15, 6) for step in range(1, 8)]
    assert [record["epoch"] for record in records] == [*epochs, 2.0]
    rates = [3e-3 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [record["learning_rate"] for record in records] == pytest.approx(rates)
    # of loss-bearing tokens none is the first of its example, so none is lost to the shift
    order, ends = data_order(15, 2.0, 1), [3, 7, 11, 15, 19, 23, 27, 29]
    counts = {
        "num_tokens": tiny.encoded.num_tokens(),
        "num_loss_tokens": tiny.encoded.num_loss_tokens(),
    }
    for key, found in counts.items():
        assert records[-1][key] == 2 * int(found.sum())
        assert [r[key] for r in records] == np.cumsum(found[order])[ends].tolist()
    assert records[-1]["num_tokens"] > 2 * records[-1]["num_loss_tokens"]


def test_the_first_record_is_the_loss_and_gradient_of_the_base(tiny: Tiny) -> None:
    _, records = run(tiny)
    model = copy.deepcopy(tiny.model)
    parameters = set_trainable(model, ["decoder"])
    loss = forward_loss(model, tiny.encoded.batch(data_order(15, 2.0, 1)[:4]), None)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    assert records[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert records[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_poisoned_model_is_named_with_branch_and_step(tiny: Tiny) -> None:
    def poison(model: Any) -> None:
        with torch.no_grad():
            model.get_input_embeddings().weight.fill_(math.nan)

    with pytest.raises(
        MeritError, match=r"^branch merit-3d-s1-g0: the loss is nan at step 1 of 8; lower"
    ):
        run(tiny, prepare=poison)


def test_a_learning_rate_that_explodes_is_named(tiny: Tiny) -> None:
    optimizer = OPTIMIZER.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(
        MeritError,
        match=r"^branch merit-3d-s1-g0: the loss is \S+ at step 2 of 8; .*\(now 1e\+30\)",
    ):
        run(tiny, optimizer)


def test_a_last_step_that_explodes_is_not_kept(tiny: Tiny) -> None:
    """No loss is computed after the last step: the parameters themselves are looked at."""
    optimizer = OPTIMIZER.model_copy(
        update={"learning_rate": 1e39, "batch_size": 15, "schedule": "constant"}
    )
    with pytest.raises(
        MeritError, match=r"^branch merit-3d-s1-g0: .* not finite after step 1 of 1"
    ):
        run(tiny, optimizer, epochs=1.0)


# --- the optimisers -----------------------------------------------------------------------------

MUON = OPTIMIZER.model_copy(update={"algorithm": "muon"})


def held(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Any]) -> set[str]:
    """The names of what this optimiser steps."""
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name for name, parameter in parameters.items() if id(parameter) in mine}


def test_muon_takes_the_matrices_and_adamw_the_rest(tiny: Tiny) -> None:
    parameters = dict(copy.deepcopy(tiny.model).named_parameters())
    muon, adamw = build_optimizers(parameters, MUON)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    matrices, rest = held(muon, parameters), held(adamw, parameters)
    assert matrices | rest == set(parameters)
    assert not matrices & rest
    layer = "model.language_model.layers.0"
    assert {f"{layer}.self_attn.{x}_proj.weight" for x in "qkvo"} | {
        f"{layer}.mlp.{x}_proj.weight" for x in ("gate", "up", "down")
    } <= matrices
    assert {
        "model.language_model.embed_tokens.weight",
        "model.language_model.norm.weight",
        f"{layer}.input_layernorm.weight",
        f"{layer}.self_attn.q_proj.bias",
        "model.visual.patch_embed.proj.weight",  # a convolution
    } <= rest
    for name in matrices:
        assert parameters[name].ndim == 2
        assert "embed" not in name
    assert all(parameters[name].ndim != 2 or "embed" in name for name in rest)
    assert {g["lr"] for o in (muon, adamw) for g in o.param_groups} == {3e-3}


def test_one_optimizer_where_one_is_enough() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3))
    both = {"w": matrix, "b": vector}
    (adamw,) = build_optimizers(both, OPTIMIZER)
    assert isinstance(adamw, torch.optim.AdamW)
    assert held(adamw, both) == {"w", "b"}
    (sgd,) = build_optimizers(both, OPTIMIZER.model_copy(update={"algorithm": "sgd"}))
    assert isinstance(sgd, torch.optim.SGD)
    assert held(sgd, both) == {"w", "b"}
    assert [type(o) for o in build_optimizers({"w": matrix}, MUON)] == [torch.optim.Muon]
    assert [type(o) for o in build_optimizers({"b": vector}, MUON)] == [torch.optim.AdamW]


def test_a_step_of_all_is_at_the_given_rate_and_leaves_no_gradient() -> None:
    parameters = {
        "w": torch.nn.Parameter(torch.zeros(2, 2)),
        "b": torch.nn.Parameter(torch.zeros(2)),
    }
    optimizers = build_optimizers(parameters, MUON.model_copy(update={"weight_decay": 0.0}))
    parameters["w"].grad = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    parameters["b"].grad = torch.tensor([5.0, -2.0])
    step_all(optimizers, 0.5)
    assert {g["lr"] for o in optimizers for g in o.param_groups} == {0.5}
    assert all(p.grad is None for p in parameters.values())
    # AdamW's first step is the rate itself, against the gradient's sign
    assert_close(parameters["b"].detach(), torch.tensor([-0.5, 0.5]), rtol=1e-5, atol=0)
    # Muon's is the rate x 0.2 sqrt(2) x about the identity, the orthogonal part of the gradient
    moved = -parameters["w"].detach() / (0.5 * 0.2 * math.sqrt(2))
    assert_close(moved, torch.eye(2), rtol=0, atol=0.35)
    assert_close(moved[0, 0], moved[1, 1])


def test_muon_learns_matrices_and_the_rest(tiny: Tiny) -> None:
    before = {name: p.detach().clone() for name, p in tiny.model.named_parameters()}
    trained, records = run(tiny, MUON, epochs=25.0)
    assert all(not torch.equal(trained[name], before[name]) for name in trained)
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    again, records_again = run(tiny, MUON, epochs=25.0)
    assert records == records_again
    assert all(torch.equal(trained[name], again[name]) for name in trained)


@pytest.mark.parametrize("part", ["matrices", "rest"])
def test_each_of_muon_and_adamw_lowers_the_loss_by_itself(tiny: Tiny, part: str) -> None:
    model = copy.deepcopy(tiny.model)
    parameters = set_trainable(model, ["decoder"])
    optimizer = build_optimizers(parameters, MUON)[0 if part == "matrices" else 1]
    batch, losses = tiny.encoded.batch(range(15)), []
    for _ in range(30):
        loss = forward_loss(model, batch, None)
        loss.backward()
        step_all([optimizer], 1e-2)
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


# --- the schedule and the order of data ---------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (
            "cosine",
            [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)],
        ),
    ],
)
def test_learning_rate_by_hand(schedule: Any, expected: list[float]) -> None:
    """10 steps, 2 of them warm-up."""
    optimizer = Optimizer(learning_rate=2.0, batch_size=1, schedule=schedule, warmup_ratio=0.2)
    found = [learning_rate_at(step, 10, optimizer) for step in range(10)]
    assert found == pytest.approx([2.0 * value for value in expected])


@given(
    num_examples=st.integers(1, 60),
    halves=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
    batch_size=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_sees_every_example_once(
    num_examples: int, halves: int, seed: int, batch_size: int
) -> None:
    epochs = halves / 2
    order = data_order(num_examples, epochs, seed)
    assert_array_equal(order, data_order(num_examples, epochs, seed))
    assert len(order) == round(num_examples * epochs)
    for epoch in range(int(epochs)):
        one = order[epoch * num_examples : (epoch + 1) * num_examples]
        assert sorted(one) == list(range(num_examples))
    rest = order[int(epochs) * num_examples :]
    assert len(set(rest)) == len(rest)
    parts = list(batches(order, batch_size))
    assert_array_equal(np.concatenate(parts) if parts else order, order)
    assert {len(part) for part in parts[:-1]} <= {batch_size}


def test_two_seeds_are_two_orders() -> None:
    assert data_order(20, 1.0, 1).tolist() != data_order(20, 1.0, 2).tolist()
    two = data_order(20, 2.0, 1)
    assert two[:20].tolist() == data_order(20, 1.0, 1).tolist()
    assert two[:20].tolist() != two[20:].tolist()


# --- calibration samples ------------------------------------------------------------------------


def test_calibration_takes_at_most_its_limit() -> None:
    assert calibration_sample(3, 200, seed=0).tolist() == [0, 1, 2]
    sample = calibration_sample(500, 200, seed=0)
    assert len(set(sample.tolist())) == 200
    assert sample.tolist() == sorted(sample.tolist())
    assert sample.tolist() == calibration_sample(500, 200, seed=0).tolist()
    assert sample.tolist() != calibration_sample(500, 200, seed=1).tolist()


def test_an_epoch_is_a_pass_over_the_examples_trained_on(tiny: Tiny) -> None:
    """A branch that trains on two of the examples, twice, ends at epoch 2, not at a fraction."""
    records: list[Record] = []
    model = copy.deepcopy(tiny.model)
    train(
        model,
        set_trainable(model, ["decoder"]),
        tiny.encoded,
        np.array([0, 1, 1, 0]),
        Optimizer(learning_rate=1e-4, batch_size=2),
        what="branch",
        num_examples=2,
        log=lambda record, timing: records.append(record),
    )
    assert [record["epoch"] for record in records] == [1.0, 2.0]


def test_batches_of_like_length_hold_every_example_once() -> None:
    lengths = np.array([5, 1, 4, 2, 3, 6, 9])
    order = np.array([6, 0, 1, 2, 3, 4, 5])
    # one window: by length the order is 1 3 4 2 0 5 6: batches (1 3) (4 2) (0 5) (6)
    found = grouped_by_length(order, lengths, batch_size=2, seed=0)
    pairs = {tuple(found[i : i + 2]) for i in range(0, 6, 2)}
    assert pairs == {(1, 3), (4, 2), (0, 5)}
    assert found[-1] == 6
    # windows of one batch keep the order of batches and sort inside them
    narrow = grouped_by_length(order, lengths, batch_size=2, seed=0, window=1)
    assert narrow.tolist() == [0, 6, 1, 2, 3, 4, 5]


@given(st.integers(1, 60), st.integers(1, 7), st.integers(0, 5))
def test_grouping_permutes_the_order(num_examples: int, batch_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths, order = rng.integers(1, 9, num_examples), rng.permutation(num_examples)
    found = grouped_by_length(order, lengths, batch_size, seed, window=2)
    assert sorted(found) == sorted(order)
    again = grouped_by_length(order, lengths, batch_size, seed, window=2)
    assert found.tolist() == again.tolist()

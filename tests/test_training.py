"""The training loop, its optimisers and the order of the data, on a model of one layer."""

from __future__ import annotations

import copy
import math
import sys
from functools import partialmethod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch.testing import assert_close
from transformers import Qwen2Config, Qwen2ForCausalLM

from merit.config import Optimizer
from merit.errors import MeritError
from merit.method.gradients import calibration_sample
from merit.train.batches import BatchPlan, data_order, grouped_by_length
from merit.train.loss import forward_loss
from merit.train.model import component_of, recompute_layers, set_trainable, use_kernels
from merit.train.optimizers import build_optimizers, learning_rate_at, step_all
from tests.conftest import Tiny
from tests.training import fit, same_bytes, settings

# --- the loop -----------------------------------------------------------------------------------


def test_training_twice_is_the_same_bytes(tiny: Tiny) -> None:
    (first, records), (second, again) = fit(tiny, settings()), fit(tiny, settings())
    assert records == again
    assert same_bytes(first, second)
    assert not same_bytes(first, fit(tiny, settings(), data_order(15, 2.0, 2))[0])


def test_every_second_layer_is_computed_again_and_nothing_changes() -> None:
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "vocab_size": 9}
    torch.manual_seed(0)
    plain = Qwen2ForCausalLM(Qwen2Config(**config, num_attention_heads=2, num_key_value_heads=1))
    model, calls = copy.deepcopy(plain), [0, 0, 0]
    recompute_layers(model, every=2)
    for i, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    ids = torch.arange(9)[None]
    for m in (plain.train(), model.train()):
        m(input_ids=ids, labels=ids).loss.backward()
    assert calls == [2, 1, 2]
    assert all(
        torch.equal(a.grad, b.grad)
        for a, b in zip(plain.parameters(), model.parameters(), strict=True)
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler's own
def test_compiled_layers_train_as_plain_ones(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also computed again in the backward pass; one graph serves rows of all lengths."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    traced = partialmethod(torch.nn.Module.compile, backend=backend)
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    order, packed = np.arange(8), {"pack_tokens": 120, "gradient_checkpointing": True}
    plain, records = fit(tiny, settings(**packed), order)
    compiled, again = fit(tiny, settings(kernels="compiled", **packed), order)
    assert [r["loss"] for r in again] == pytest.approx([r["loss"] for r in records], rel=1e-6)
    assert_close(compiled, plain, rtol=0, atol=2e-5)
    assert 1 <= len(graphs) <= 2


@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_eight_bits_step_as_adamw_does() -> None:
    """Within the rounding of states in 8 bits; the rate is set in place, as torchao needs it."""
    pytest.importorskip("torchao")
    found = []
    for algorithm in ("adamw", "adamw_8bit"):
        matrix = torch.nn.Parameter(torch.zeros(64, 64))
        values = {"learning_rate": 1.0, "batch_size": 1, "algorithm": algorithm}
        (optimizer,) = build_optimizers({"m": matrix}, Optimizer.model_validate(values))
        generator = torch.Generator().manual_seed(0)
        with torch.compiler.set_stance("force_eager"):
            for _ in range(3):
                matrix.grad = 1 + torch.rand(64, 64, generator=generator)
                step_all([optimizer], 0.25)
        found.append(matrix.detach())
        sizes = [v.element_size() for v in _codes(optimizer.state[matrix])]
    assert sizes == [1, 1]
    assert_close(found[1], found[0], rtol=0.03, atol=0)
    assert found[0].mean() == pytest.approx(-0.75, rel=0.01)  # 3 steps of the rate


def _codes(state: dict[str, Any]) -> list[torch.Tensor]:
    return [v.codes for v in state.values() if hasattr(v, "codes")]


def test_what_needs_a_package_or_a_gpu_says_so(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(MeritError, match=r"^key `optimizer.algorithm`: 'adamw_8bit' needs torchao"):
        fit(tiny, settings("adamw_8bit"))
    with pytest.raises(MeritError, match=r"^key `kernels`: 'liger': they are for a GPU, and"):
        fit(tiny, settings(kernels="liger"))
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: False)
    with pytest.raises(MeritError, match=r"liger-kernel >= .* is not available") as raised:
        use_kernels(on_gpu, "liger")
    assert len(str(raised.value).splitlines()) == 1


def test_only_the_decoder_learns_and_the_loss_falls(tiny: Tiny) -> None:
    before = {name: p.detach().clone() for name, p in tiny.model.named_parameters()}
    trained, records = fit(tiny, settings("muon", 6e-3), data_order(15, 12.0, 1))
    assert set(trained) == {name for name in before if component_of(name) == "decoder"}
    assert all(not torch.equal(trained[name], before[name]) for name in trained)
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert records[0]["loss"] == pytest.approx(math.log(len(tiny.processor.tokenizer)), rel=0.05)


def test_records_by_hand(tiny: Tiny) -> None:
    """15 examples in batches of 4: 4 steps an epoch and the last epoch's rest, 8 in 2 epochs."""
    _, records = fit(tiny, settings())
    assert [record["step"] for record in records] == list(range(1, 9))
    epochs = [round(4 * step / 15, 6) for step in range(1, 8)]
    assert [record["epoch"] for record in records] == [*epochs, 2.0]
    rates = [3e-3 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [record["learning_rate"] for record in records] == pytest.approx(rates)
    # no supervised token is the first of its example, so none is lost to the shift
    order, ends = data_order(15, 2.0, 1), [3, 7, 11, 15, 19, 23, 27, 29]
    counts = {
        "num_tokens": tiny.encoded.num_tokens(),
        "num_loss_tokens": tiny.encoded.num_loss_tokens(),
    }
    for key, count in counts.items():
        assert [r[key] for r in records] == np.cumsum(count[order])[ends].tolist()


def test_the_first_record_is_the_loss_and_gradient_of_the_base(tiny: Tiny) -> None:
    _, records = fit(tiny, settings())
    model = copy.deepcopy(tiny.model)
    parameters = set_trainable(model, ["decoder"])
    loss = forward_loss(model, tiny.encoded.batch(data_order(15, 2.0, 1)[:4]), None)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    assert records[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert records[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def poison(model: Any) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(math.nan)


@pytest.mark.parametrize(
    ("changes", "prepare", "message"),
    [
        ({}, poison, r"step 1 of 8"),
        ({"rate": 1e30}, None, r"step 2 of 8; .*1e\+30"),
        # no loss is computed after the last step: the parameters themselves are looked at
        ({"rate": 1e39, "optimizer": {"batch_size": 30, "schedule": "constant"}}, None, "step 1"),
    ],
)
def test_what_is_not_finite_is_named_with_branch_and_step(
    tiny: Tiny, changes: dict[str, Any], prepare: Any, message: str
) -> None:
    with pytest.raises(MeritError, match=f"^branch x: .*{message}"):
        fit(tiny, settings(**changes), prepare=prepare or (lambda model: None))


# --- the optimisers -----------------------------------------------------------------------------

MUON = settings("muon").optimizer


def test_muon_takes_the_matrices_and_adamw_the_rest(tiny: Tiny) -> None:
    parameters = dict(copy.deepcopy(tiny.model).named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    muon, adamw = build_optimizers(parameters, MUON)
    assert (type(muon), type(adamw)) == (torch.optim.Muon, torch.optim.AdamW)
    matrices, rest = ({names[id(p)] for p in o.param_groups[0]["params"]} for o in (muon, adamw))
    assert matrices | rest == set(parameters)
    assert matrices == {n for n, p in parameters.items() if p.ndim == 2 and "embed" not in n}


def test_a_step_of_all_is_at_the_given_rate_and_leaves_no_gradient() -> None:
    parameters = {
        "w": torch.nn.Parameter(torch.zeros(2, 2)),
        "b": torch.nn.Parameter(torch.zeros(2)),
    }
    optimizers = build_optimizers(parameters, MUON.model_copy(update={"weight_decay": 0.0}))
    parameters["w"].grad = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    parameters["b"].grad = torch.tensor([5.0, -2.0])
    step_all(optimizers, 0.5)
    assert all(p.grad is None for p in parameters.values())
    # AdamW's first step is the rate itself, against the gradient's sign
    assert_close(parameters["b"].detach(), torch.tensor([-0.5, 0.5]), rtol=1e-5, atol=0)
    # Muon's is the rate x 0.2 sqrt(2) x about the identity, the orthogonal part of the gradient
    moved = -parameters["w"].detach() / (0.5 * 0.2 * math.sqrt(2))
    assert_close(moved, torch.eye(2), rtol=0, atol=0.35)
    assert_close(moved[0, 0], moved[1, 1])


# --- the schedule and the order of data ---------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]),
    ],
)
def test_learning_rate_by_hand(schedule: Any, expected: list[float]) -> None:
    """10 steps, 2 of them warm-up."""
    optimizer = Optimizer(learning_rate=2.0, batch_size=1, schedule=schedule, warmup_ratio=0.2)
    rates = [learning_rate_at(step, 10, optimizer) for step in range(10)]
    assert rates == pytest.approx([2.0 * value for value in expected])


@given(
    num_examples=st.integers(1, 60),
    halves=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
    batch_size=st.integers(1, 9),
)
@examples(max_examples=60, deadline=None)
def test_every_epoch_sees_every_example_once(
    num_examples: int, halves: int, seed: int, batch_size: int
) -> None:
    epochs = halves / 2
    order = data_order(num_examples, epochs, seed)
    assert_array_equal(order, data_order(num_examples, epochs, seed))
    other = data_order(num_examples, epochs, seed + 1)
    assert len(order) < 20 or not np.array_equal(order, other)
    assert len(order) == round(num_examples * epochs)
    for epoch in range(int(epochs)):
        one = order[epoch * num_examples : (epoch + 1) * num_examples]
        assert sorted(one) == list(range(num_examples))
    rest = order[int(epochs) * num_examples :]
    assert len(set(rest)) == len(rest)
    lengths = np.arange(num_examples) % 5
    data: Any = SimpleNamespace(num_tokens=lambda: lengths)
    plan = BatchPlan.of(order, data, batch_size, None)
    steps = [plan.examples(step) for step in range(len(plan))]
    assert_array_equal(np.concatenate([order[:0], *steps]), order)
    assert {len(step) for step in steps[:-1]} <= {batch_size}
    if len(order):
        grouped = grouped_by_length(order, lengths, batch_size, seed, window=2)
        assert sorted(grouped) == sorted(order)


def test_calibration_takes_at_most_its_limit() -> None:
    assert calibration_sample(3, 200, seed=0).tolist() == [0, 1, 2]
    sample, other = (calibration_sample(500, 200, seed).tolist() for seed in (0, 1))
    assert len(set(sample)) == 200
    assert sample == sorted(sample) != other


def test_batches_of_like_length_by_hand() -> None:
    lengths = np.array([5, 1, 4, 2, 3, 6, 9])
    order = np.array([6, 0, 1, 2, 3, 4, 5])
    # one window: by length the order is 1 3 4 2 0 5 6: batches (1 3) (4 2) (0 5) (6)
    grouped = grouped_by_length(order, lengths, batch_size=2, seed=0)
    assert {tuple(grouped[i : i + 2]) for i in range(0, 6, 2)} == {(1, 3), (4, 2), (0, 5)}
    assert grouped[-1] == 6
    # windows of one batch keep the order of batches and sort inside them
    narrow = grouped_by_length(order, lengths, batch_size=2, seed=0, window=1)
    assert narrow.tolist() == [0, 6, 1, 2, 3, 4, 5]

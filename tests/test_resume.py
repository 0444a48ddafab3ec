"""Long training: checkpoints, several processes, LoRA. What was stopped goes on to the bit."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch.testing import assert_close

from merit.config import Lora, Optimizer, Training
from merit.errors import MeritError
from merit.train.checkpoint import Checkpoints, Progressed, stopping
from merit.train.distributed import ProcessGroup
from merit.train.loop import Record, Stopped, train
from merit.train.lora import add_adapters
from merit.train.model import set_trainable
from merit.train.order import data_order
from tests import processes
from tests.conftest import Tiny

PACKED: dict[str, Any] = {"trainable": ["decoder"], "pack_tokens": 120}


def optimizer(algorithm: str) -> Optimizer:
    return Optimizer(algorithm=algorithm, learning_rate=3e-3, batch_size=4)  # type: ignore[arg-type]


def run(
    tiny: Tiny,
    settings: Training,
    checkpoints: Callable[[list[Record], list[Record]], Checkpoints] | None = None,
    data: Any = None,
) -> tuple[dict[str, torch.Tensor], list[Record]]:
    model = copy.deepcopy(tiny.model)
    parameters = set_trainable(model, settings.trainable)
    records: list[Record] = []
    timings: list[Record] = []

    def log(record: Record, timing: Record) -> None:
        records.append(record)
        timings.append(timing)

    train(
        model,
        parameters,
        data or tiny.encoded,
        data_order(len(tiny.encoded), 2.0, 1),
        settings.optimizer,
        what="branch x",
        settings=settings,
        log=log,
        num_records=3,
        checkpoints=checkpoints(records, timings) if checkpoints else None,
    )
    return {name: p.detach() for name, p in parameters.items()}, records


def trained(
    tiny: Tiny, data: Any, order: np.ndarray, settings: Training
) -> tuple[dict[str, torch.Tensor], list[Record]]:
    model = copy.deepcopy(tiny.model)
    parameters = set_trainable(model, settings.trainable)
    records: list[Record] = []
    train(
        model,
        parameters,
        data,
        order,
        settings.optimizer,
        what="branch x",
        settings=settings,
        log=lambda record, timing: records.append(record),
    )
    return {name: p.detach() for name, p in parameters.items()}, records


class Always(Checkpoints):
    def due(self) -> bool:
        return True


class StopAfter(Checkpoints):
    """Told to stop once the loop has asked `times` times whether to save."""

    times = 3

    def due(self) -> bool:
        self.times -= 1
        self.stop = self.times == 0
        return super().due()


@pytest.mark.parametrize("algorithm", ["adamw", "muon", "sgd"])
def test_a_stopped_training_goes_on_to_the_bit(tiny: Tiny, tmp_path: Path, algorithm: str) -> None:
    """8 steps, logged every second one, stopped after the third: between two records."""
    settings = Training(**PACKED, optimizer=optimizer(algorithm))
    whole, records = run(tiny, settings)
    with pytest.raises(Stopped, match=r"^branch x: stopped after step 3 of 8$"):
        run(tiny, settings, lambda *logs: StopAfter(tmp_path, None, *logs))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-0.safetensors"]
    again, resumed = run(tiny, settings, lambda *logs: Checkpoints(tmp_path, None, *logs))
    assert resumed == records
    for name, tensor in whole.items():
        assert tensor.numpy().tobytes() == again[name].numpy().tobytes(), name


def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    """The loss is finite: only the gradient of step 2 overflows, in one parameter."""
    model = copy.deepcopy(tiny.model)
    parameters = set_trainable(model, ["decoder"])
    before: dict[str, torch.Tensor] = {}
    passes: list[int] = []

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        passes.append(len(passes))
        if len(passes) == 1:
            return gradient
        before.update({n: p.detach().clone() for n, p in parameters.items()})
        return gradient * math.inf

    next(p for n, p in parameters.items() if "mlp" in n).register_hook(overflow)
    order = np.arange(12)
    message = (
        r"^branch x: the gradient's norm is (inf|nan) at step 2 of 3; lower `learning_rate` .*: "
        r"line 4, line 5, line 6, line 7$"
    )
    with pytest.raises(MeritError, match=message):
        train(
            model,
            parameters,
            tiny.encoded,
            order,
            optimizer("adamw"),
            what="branch x",
            name_of="line {}".format,
            checkpoints=Always(tmp_path, 1.0, [], []),
        )
    (kept,) = tmp_path.iterdir()  # that of step 1
    with safe_open(kept, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["progressed"]["step"] == 1
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("pack_tokens", [None, 10])
@pytest.mark.parametrize("vocabulary", ["small", "large"])
def test_what_bears_no_loss_has_no_gradient(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, pack_tokens: int | None, vocabulary: str
) -> None:
    """Examples 0 to 3 bear none: step 1 has only those, step 2 has them and another, in rows of
    their own where packed. As a training on the other one alone, which takes two steps.
    """
    if vocabulary == "large":
        monkeypatch.setattr("merit.train.loss.SMALL_VOCABULARY", 0)
    bearing = tiny.encoded.bearing.copy()
    bearing[: tiny.encoded.offsets[4]] = False
    data = replace(tiny.encoded, bearing=bearing)
    sgd = Optimizer(algorithm="sgd", learning_rate=0.1, batch_size=5, schedule="constant")
    settings = Training(trainable=["decoder"], optimizer=sgd, pack_tokens=pack_tokens)
    found, records = trained(tiny, data, np.array([0, 1, 2, 3, 0, 0, 1, 4, 2, 3]), settings)
    alone, expected = trained(tiny, data, np.array([4]), settings)
    assert [record["loss"] for record in records] == [0.0, pytest.approx(expected[0]["loss"])]
    assert records[0]["gradient_norm"] == 0.0
    assert records[1]["gradient_norm"] == pytest.approx(expected[0]["gradient_norm"], rel=1e-4)
    for name, tensor in alone.items():
        assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_another_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    settings = Training(**PACKED, optimizer=optimizer("adamw"))
    with pytest.raises(Stopped):
        run(tiny, settings, lambda *logs: StopAfter(tmp_path, None, *logs))
    other = settings.model_copy(update={"trainable": [r".*mlp.*"]})
    with pytest.raises(MeritError, match=r"checkpoint-0.*other tensors.*delete it"):
        run(tiny, other, lambda *logs: Checkpoints(tmp_path, None, *logs))
    path = tmp_path / "checkpoint-0.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MeritError, match=r"checkpoint-0.*no checkpoint to go on from"):
        run(tiny, settings, lambda *logs: Checkpoints(tmp_path, None, *logs))


def test_processes_go_on_from_the_last_step_that_all_have(tmp_path: Path) -> None:
    """This one was killed after it had written step 5, and before the others had."""
    weight = torch.nn.Parameter(torch.zeros(2))
    checkpoints = Checkpoints(tmp_path, None, [], [])
    for step in (3, 5):
        weight.data.fill_(step)
        checkpoints.save(Progressed(step=step), {"w": weight}, [])
    for least, found in ((5, 5), (3, 3), (0, 0)):
        weight.data.zero_()
        assert (
            checkpoints.restore({"w": weight}, [], lambda own, n=least: min(own, n)).step == found
        )
        assert weight.tolist() == [found, found]
    checkpoints.path.unlink()  # killed between two renames
    assert checkpoints.restore({"w": weight}, []).step == 3
    checkpoints.save(Progressed(step=7), {"w": weight}, [])
    checkpoints.forget_previous()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-0.safetensors"]
    with pytest.raises(MeritError, match=r"checkpoint-0\.safetensors: not of step 5, as those of"):
        checkpoints.restore({"w": weight}, [], lambda own: 5)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    weight = torch.nn.Parameter(torch.ones(2))
    checkpoints = Checkpoints(tmp_path, None, [], [])
    checkpoints.save(Progressed(step=3), {"w": weight}, [])
    monkeypatch.setattr("merit.train.checkpoint.save_file", full)
    weight.data.zero_()
    with pytest.raises(MeritError, match=r"checkpoint-0\.new: cannot be written .* GB are free"):
        checkpoints.save(Progressed(step=4), {"w": weight}, [])
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-0.safetensors"]
    assert checkpoints.restore({"w": weight}, []).step == 3
    assert weight.tolist() == [1, 1]


def test_a_checkpoint_is_due_when_its_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("merit.train.checkpoint.time.monotonic", lambda: clock.now)
    every, never = (Checkpoints(tmp_path, minutes, [], []) for minutes in (0.5, None))
    clock.now += 29
    assert not every.due()
    clock.now += 1
    assert every.due()
    assert not never.due()
    every.save(Progressed(), {}, [])
    assert not every.due()
    never.stop = True  # is another reason to save, which the loop looks at once
    assert not never.due()


def test_packed_training_is_padded_training(tiny: Tiny) -> None:
    """The same steps, computed in several rows each: equal but for rounding."""
    plain = Training(trainable=["decoder"], optimizer=optimizer("sgd"))
    padded, records = run(tiny, plain)
    packed, again = run(tiny, Training(**PACKED, optimizer=optimizer("sgd")))
    for one, other in zip(records, again, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for name, tensor in padded.items():
        assert_close(tensor, packed[name], rtol=1e-4, atol=1e-6)


def test_bfloat16_keeps_its_sums_in_float32(tiny: Tiny) -> None:
    settings = Training(**PACKED, optimizer=optimizer("sgd"), precision="bfloat16")
    found, records = run(tiny, settings)
    exact, expected = run(tiny, settings.model_copy(update={"precision": "float32"}))
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert records[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=0.02)
    assert records[-1]["loss"] != expected[-1]["loss"]
    assert any(not torch.equal(found[name], exact[name]) for name in found)


def test_workers_that_read_ahead_change_nothing(tiny: Tiny) -> None:
    """From pixels, in two processes; and a missing image is one message, without a traceback."""
    nothing = np.zeros((0, 0), dtype=np.float32)
    pixels = replace(tiny.encoded, features=nothing)
    settings = Training(**PACKED, optimizer=optimizer("sgd"))
    alone, _ = run(tiny, settings, data=pixels)
    ahead = settings.model_copy(update={"workers": 2})
    together, _ = run(tiny, ahead, data=pixels)
    for name, tensor in alone.items():
        assert torch.equal(tensor, together[name])
    gone = replace(pixels, paths=np.array([b"gone.png"] * len(pixels.paths)))
    with pytest.raises(MeritError, match=r"gone.png: image not found; an example refers to it$"):
        run(tiny, ahead, data=gone)


# --- several processes ----------------------------------------------------------------------------


def test_rows_are_dealt_out_evenly() -> None:
    rows = [np.array([i]) for i in range(5)]
    groups = [ProcessGroup(rank, 2) for rank in range(2)]
    assert [[int(r[0]) for r in group.share(rows)] for group in groups] == [[0, 2, 4], [1, 3, 0]]
    assert [group.own(rows) for group in groups] == [3, 2]


@pytest.fixture(scope="module")
def pair() -> dict[str, dict[str, Any]]:
    return processes.in_processes(2)


@pytest.mark.parametrize("case", ["float32", "frozen tower", "lora"])
def test_two_processes_train_as_one(pair: dict[str, dict[str, Any]], case: str) -> None:
    """Over gloo: the same losses, norms and parameters but for rounding. FSDP2; adapters are whole
    in each process, and so is the frozen tower, which rows without an image do not wait for.
    """
    one, two = processes.outcome(case), pair[case]
    assert (one["sharded"], two["sharded"]) == (False, case != "lora")
    assert len(one["losses"]) == 6
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-4)
    assert two["norm"] == pytest.approx(one["norm"], rel=1e-6)
    assert one["frozen"]
    assert two["frozen"]
    assert (one["num_frozen"] > 0) == (case != "float32")


def test_two_processes_compute_in_bfloat16(pair: dict[str, dict[str, Any]]) -> None:
    """Sums stay in float32: near to the float32 training, and not the same."""
    low, exact = pair["bfloat16"], pair["float32"]
    assert low["sharded"]
    np.testing.assert_allclose(
        np.array(low["losses"])[:, 0], np.array(exact["losses"])[:, 0], rtol=0.02
    )
    assert low["losses"] != exact["losses"]
    assert low["norm"] == pytest.approx(exact["norm"], rel=0.01)


# --- LoRA -----------------------------------------------------------------------------------------


def test_adapters_lie_on_the_decoders_linear_maps_alone(tiny: Tiny) -> None:
    model = copy.deepcopy(tiny.model)
    adapters = add_adapters(model, Lora(rank=2), seed=3)
    # 7 maps a layer, A and B each
    assert len(adapters) == 2 * 7 * model.config.text_config.num_hidden_layers
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(adapters)
    assert not any("visual" in name for name in adapters)
    again = add_adapters(copy.deepcopy(tiny.model), Lora(rank=2), seed=3)
    other = add_adapters(copy.deepcopy(tiny.model), Lora(rank=2), seed=4)
    for name, tensor in adapters.items():
        assert torch.equal(tensor, again[name])
        assert bool((tensor == 0).all()) == ("lora_B" in name)
    assert any(not torch.equal(adapters[name], other[name]) for name in adapters)


@pytest.mark.parametrize(
    ("targets", "why"), [("no_such", "matches no linear map"), (r".*", "visual")]
)
def test_targets_outside_of_the_decoder_are_refused(tiny: Tiny, targets: str, why: str) -> None:
    with pytest.raises(MeritError, match=rf"training.lora.targets.*{why}"):
        add_adapters(copy.deepcopy(tiny.model), Lora(targets=targets), seed=0)


def test_a_pattern_that_matches_nothing_is_refused(tiny: Tiny) -> None:
    with pytest.raises(MeritError, match=r"'decodr' matches no parameter; it is one of vision"):
        set_trainable(copy.deepcopy(tiny.model), ["decodr"])
    found = set_trainable(copy.deepcopy(tiny.model), [r".*layers\.0\.mlp.*", "projector"])
    assert all("layers.0.mlp" in name or "merger" in name for name in found)
    assert len(found) == 3 + 5


def test_signals_end_a_training_after_its_step(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, None, [], [])
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        stopping(checkpoints)
        os.kill(os.getpid(), signal.SIGTERM)
        assert checkpoints.stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

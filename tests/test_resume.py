"""Long training: checkpoints, several processes, LoRA. What was stopped resumes to the bit."""

from __future__ import annotations

import copy
import errno
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from merit.config import Lora
from merit.errors import MeritError
from merit.io.artifacts import read_json
from merit.train.batches import BatchDataset
from merit.train.checkpoint import Checkpoints, LoopState, Stopped
from merit.train.dataset import TokenizedDataset
from merit.train.lora import add_adapters
from merit.train.model import set_trainable
from tests.conftest import Tiny
from tests.training import fit, same_bytes, settings

PACKED = {"pack_tokens": 120}


class StopAfter(Checkpoints):
    """Told to stop once the loop has asked three times whether to save."""

    times = 3

    def due(self) -> bool:
        self.times -= 1
        if self.times == 0:
            self.stop.set()
        return super().due()


@pytest.mark.parametrize("algorithm", ["adamw", "muon", "sgd"])
def test_a_stopped_training_resumes_to_the_bit(tiny: Tiny, tmp_path: Path, algorithm: str) -> None:
    """8 steps, logged every second one, stopped after the third: between two records."""
    training = settings(algorithm, **PACKED)
    whole, records = fit(tiny, training, num_records=3)
    with pytest.raises(Stopped, match=r"^branch x: stopped after step 3 of 8$"):
        fit(
            tiny,
            training,
            num_records=3,
            checkpoints=lambda *logs: StopAfter(tmp_path, None, *logs),
        )
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]

    def resume(**changes: Any) -> Any:
        return fit(
            tiny,
            training.model_copy(update=changes),
            num_records=3,
            checkpoints=lambda *logs: Checkpoints(tmp_path, None, *logs),
        )

    again, resumed = resume()
    assert resumed == records
    assert same_bytes(whole, again)
    with pytest.raises(MeritError, match=r"checkpoint-3: .*other tensors"):
        resume(trainable=[r".*mlp.*"])
    for name, cut in (("__0_0.distcp", 9000), (".metadata", 9), ("state.json", 9)):
        path = tmp_path / "checkpoint-3" / name
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(MeritError, match=rf"^{tmp_path}/checkpoint-3[^\n]*$"):
            resume()


def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    """The loss is finite: only the gradient of step 2 overflows, in one parameter."""
    before: dict[str, torch.Tensor] = {}
    after: dict[str, torch.nn.Parameter] = {}

    def prepare(model: Any) -> None:
        after.update(set_trainable(model, ["decoder"]))

        def overflow(gradient: torch.Tensor) -> torch.Tensor:
            steps = len(before) // len(after)
            before.update({f"{n}/{steps}": p.detach().clone() for n, p in after.items()})
            return gradient * math.inf if steps == 1 else gradient

        next(p for n, p in after.items() if "mlp" in n).register_hook(overflow)

    class Always(Checkpoints):
        def due(self) -> bool:
            return True

    with pytest.raises(MeritError, match=r"^branch x: .* step 2 of 3.* line 4, .* line 7$"):
        fit(
            tiny,
            settings(),
            np.arange(12),
            prepare=prepare,
            name_of="line {}".format,
            checkpoints=lambda *logs: Always(tmp_path, 1.0, *logs),
        )
    (kept,) = tmp_path.iterdir()
    assert (kept.name, read_json(kept / "state.json")["loop"]["step"]) == ("checkpoint-1", 1)
    assert all(torch.equal(p, before[f"{n}/1"]) for n, p in after.items())


@pytest.mark.parametrize("pack_tokens", [None, 10])
def test_unsupervised_examples_have_no_gradient(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, pack_tokens: int | None
) -> None:
    """Examples 0 to 3 are not supervised: step 1 has only those, step 2 has them and another, in
    rows of their own if packed. As a training on only the other one, which takes two steps.
    """
    if pack_tokens:  # and of a large vocabulary
        monkeypatch.setattr("merit.train.loss.SMALL_VOCABULARY", 0)
    mask = tiny.encoded.loss_mask.copy()
    mask[: tiny.encoded.offsets[4]] = False
    data = replace(tiny.encoded, loss_mask=mask)
    steps = {"batch_size": 5, "schedule": "constant"}
    training = settings("sgd", 0.1, pack_tokens=pack_tokens, optimizer=steps)
    mixed, records = fit(tiny, training, np.array([0, 1, 2, 3, 0, 0, 1, 4, 2, 3]), data)
    alone, expected = fit(tiny, training, np.array([4]), data)
    assert [record["loss"] for record in records] == [0.0, pytest.approx(expected[0]["loss"])]
    assert records[0]["gradient_norm"] == 0.0
    assert records[1]["gradient_norm"] == pytest.approx(expected[0]["gradient_norm"], rel=1e-4)
    for name, tensor in alone.items():
        assert_close(mixed[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_replaces_another_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while step 7 is written: step 5 is left."""
    weight = torch.nn.Parameter(torch.zeros(2))
    checkpoints = Checkpoints(tmp_path, None, [], [])

    def save(step: int) -> None:
        weight.data.fill_(step)
        checkpoints.save(LoopState(step=step), {"w": weight}, [])

    def kept() -> list[str]:
        weight.data.zero_()
        assert checkpoints.restore({"w": weight}, []).step == weight[0] == weight[1]
        return sorted(p.name for p in tmp_path.iterdir())

    save(3)
    save(5)
    assert kept() == ["checkpoint-5"]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken in ("os.replace", "torch.save"):
        with monkeypatch.context() as patch:
            patch.setattr(broken, full)
            with pytest.raises(MeritError, match=r"checkpoint\.new: .* GB"):
                save(7)
        assert kept()[0] == "checkpoint-5"
    save(8)
    assert kept() == ["checkpoint-8"]


# --- how a step is computed -----------------------------------------------------------------------


def test_packed_training_is_padded_training(tiny: Tiny) -> None:
    """The same steps, computed in several rows each: equal but for rounding."""
    padded, records = fit(tiny, settings("sgd"))
    packed, again = fit(tiny, settings("sgd", **PACKED))
    for record, other in zip(records, again, strict=True):
        assert record == pytest.approx(other, rel=1e-5)
    for name, tensor in padded.items():
        assert_close(tensor, packed[name], rtol=1e-4, atol=1e-6)


def test_workers_that_read_ahead_change_nothing(tiny: Tiny) -> None:
    """From pixels, in a process; and a missing image is one message, without a traceback."""
    pixels = replace(tiny.encoded, features=np.zeros((0, 0), dtype=np.float32))
    order, ahead = np.arange(8), settings("sgd", workers=1, **PACKED)
    alone, _ = fit(tiny, settings("sgd", **PACKED), order, pixels)
    assert same_bytes(alone, fit(tiny, ahead, order, pixels)[0])
    gone = replace(pixels, paths=np.array([b"gone.png"] * len(pixels.paths)))
    with pytest.raises(MeritError, match=r"^\S*gone\.png: [^\n]*\Z"):
        fit(tiny, ahead, order, gone)


def test_workers_share_the_mixture(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Python's way to start processes is, nothing of the mixture is sent to them."""

    def refuse(_: Any, __: Any) -> Any:
        raise AssertionError("the mixture is copied")

    monkeypatch.setattr(TokenizedDataset, "__reduce_ex__", refuse)
    batches = BatchDataset(tiny.encoded, [np.arange(3), np.arange(3, 5)], packed=True)
    expected = [batch["input_ids"].tolist() for batch in batches.read(0)]
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert [batch["input_ids"].tolist() for batch in batches.read(2)] == expected
    finally:
        multiprocessing.set_start_method(None, force=True)


# --- which parameters learn -----------------------------------------------------------------------


def test_adapters_lie_only_on_the_decoders_linear_maps(tiny: Tiny) -> None:
    model = copy.deepcopy(tiny.model)
    adapters = add_adapters(model, Lora(rank=2), seed=3)
    # 7 maps a layer, A and B each
    assert len(adapters) == 2 * 7 * model.config.text_config.num_hidden_layers
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(adapters)
    assert not any("visual" in name for name in adapters)
    for seed in (3, 4):
        other = add_adapters(copy.deepcopy(tiny.model), Lora(rank=2), seed)
        assert all(torch.equal(adapters[n], t) for n, t in other.items()) == (seed == 3)
    assert all(bool((t == 0).all()) == ("lora_B" in name) for name, t in adapters.items())
    for targets, why in (("no_such", "no_such"), (r".*", "visual")):
        with pytest.raises(MeritError, match=rf"training.lora.targets.*{why}"):
            add_adapters(copy.deepcopy(tiny.model), Lora(targets=targets), seed=0)


def test_components_and_patterns_name_what_learns(tiny: Tiny) -> None:
    model = copy.deepcopy(tiny.model)
    with pytest.raises(MeritError, match=r"'decodr'"):
        set_trainable(model, ["decodr"])
    trainable = set_trainable(model, [r".*layers\.0\.mlp.*", "projector"])
    assert all("layers.0.mlp" in name or "merger" in name for name in trainable)
    assert len(trainable) == 3 + 5

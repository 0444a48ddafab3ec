"""`merit smoke --gpu`, on a real GPU; and its checks on the pretended one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from merit.errors import MeritError
from merit.run.smoke_gpu import on_gpu, run_checks, smoke_gpu
from merit.train.attention import choose_attention
from tests.pretended_gpu import moved, pretended_gpu


@pytest.mark.gpu
def test_the_gpu_gives_the_cpus_results() -> None:
    assert run_checks(on_gpu) == []


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MeritError, match="no GPU"):
        smoke_gpu()


def test_the_checks_run_on_the_pretended_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """In float32, with the attention of 16 bits: no autocast, DTensor or peft is there."""

    def place(model: Any, low: bool, generates: bool = False) -> Any:
        choose_attention(moved(model), "auto", low=True, generates=generates)
        return model

    chosen = (
        *("train vision-projector+decoder-packed-adamw", "train text-decoder-packed-adamw"),
        *("train vision-vision+projector+decoder-adamw", "gradients float32"),
        *("generate text", "generate vision"),
    )
    with pretended_gpu() as gpu:
        assert run_checks(place, chosen.__contains__) == []
    assert gpu.attention == 36
    assert capsys.readouterr().out.count("passed") == len(chosen)


def test_what_the_pretended_gpu_lacks_runs_on_the_cpu() -> None:
    chosen = ("stop and resume", "gradients bfloat16", "train vision-lora-bfloat16-packed-adamw")
    assert run_checks(lambda model, *_: model, chosen.__contains__) == []


def test_a_check_that_fails_is_named() -> None:
    def place(model: Any, low: bool, generates: bool = False) -> Any:
        with torch.no_grad():
            model.lm_head.weight.mul_(1.5)
        return model

    (failure,) = run_checks(place, lambda name: name == "train text-decoder-adamw")
    assert failure.startswith("train text-decoder-adamw: loss off by ")

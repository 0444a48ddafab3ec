"""The train stage: a branch from its manifest and the base, or a failure, or a refusal."""

from __future__ import annotations

import copy
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from merit.config import Optimizer, Training
from merit.errors import MeritError
from merit.eval.measuring.losses import flatten, make_evaluator
from merit.io.artifacts import (
    Artifacts,
    file_hash,
    folder_hash,
    read_json,
    read_jsonl,
    value_hash,
    work_place,
    write_json,
)
from merit.io.checkpoints import Checkpoint
from merit.merge.sources import stored_names
from merit.train import branch as stage
from merit.train.batches import data_order
from merit.train.dataset import TokenizedDataset
from merit.train.loop import train
from merit.train.model import set_trainable, stored_tensors
from tests.conftest import Tiny
from tests.training import contents, save_encoded, steps_of, stop_at

BRANCH = "merit-1d-s3-g0"
# the tiny world's 15 examples in their order, by task: 3, 3, 4, 4 and 1
TASKS = ("count", "mate", "tallest", "talk", "text")
OWNER = [0] * 3 + [1] * 3 + [2] * 4 + [3] * 4 + [4]
EXAMPLES = [3, 4, 5, 14]  # of the branch's two tasks
OPTIMIZER = {"learning_rate": 3e-3, "batch_size": 3, "warmup_ratio": 0.0}


@pytest.fixture
def paths(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """What the train stage reads, in the working folder: base, mixture and one manifest."""
    monkeypatch.chdir(tmp_path)
    paths = Artifacts("x")
    tiny.model.save_pretrained(paths.base)
    write_json(paths.base / "base.json", {"base_hash": file_hash(paths.base / "model.safetensors")})
    paths.encoded.mkdir(parents=True)
    save_encoded(tiny.encoded, paths.encoded)
    np.save(paths.encoded / "task_of_example.npy", np.array(OWNER, dtype=np.int32))
    write_json(paths.encoded / "tasks.json", [{"task": task} for task in TASKS])
    write_manifest(paths)
    training = Training(trainable=["decoder"], optimizer=Optimizer.model_validate(OPTIMIZER))
    monkeypatch.setattr(stage, "load_experiment", lambda name: SimpleNamespace(training=training))
    return paths


def write_manifest(paths: Artifacts, **changes: Any) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "branch": BRANCH,
        "tasks": ["mate", "text"],
        "epochs": 2.0,
        "seed": 3,
        "num_samples": 4,
        "num_tokens": 222,
        "num_loss_tokens": 33,
        "training": {"trainable": ["decoder"], "optimizer": OPTIMIZER},
        "model": {},
        "encoding": {},
        "may_diverge": False,
        "base_hash": read_json(paths.base / "base.json")["base_hash"],
        "encoded_hash": folder_hash(paths.encoded),
    }
    write_json(paths.manifest(BRANCH), manifest | changes)
    return manifest | changes


def test_a_branch_is_the_loop_over_its_tasks(tiny: Tiny, paths: Artifacts) -> None:
    stage.run("x", BRANCH)
    model = copy.deepcopy(tiny.model)
    parameters = set_trainable(model, ["decoder"])
    before = {name: p.detach().clone() for name, p in parameters.items()}
    order = np.array(EXAMPLES)[data_order(4, 2.0, 3)]
    optimizer = Optimizer.model_validate(OPTIMIZER)
    train(model, parameters, tiny.encoded, order, optimizer, what="again", num_examples=4)

    folder = paths.folder / "branches" / "merit-1d-s3" / BRANCH
    trained = Checkpoint(folder / "model.safetensors")
    expected = stored_tensors(model, parameters)
    assert set(trained.names) == set(expected)
    for name, tensor in trained.items():
        assert tensor.numpy().tobytes() == expected[name].detach().numpy().tobytes(), name
    moved = [float((p.detach() - before[n]).double().square().sum()) for n, p in parameters.items()]
    records = read_jsonl(folder / "records.jsonl")
    manifest = read_json(paths.manifest(BRANCH))
    assert read_json(folder / "summary.json") == {
        "branch": BRANCH,
        "num_steps": 3,  # 8 examples in batches of 3
        "num_tokens": 222,
        "num_loss_tokens": 33,
        "num_trained_tensors": len(parameters),
        "num_trained_parameters": sum(p.numel() for p in parameters.values()),
        "base_hash": file_hash(paths.base / "model.safetensors"),
        "manifest_hash": value_hash(manifest),
        "final_loss": records[-1]["loss"],
        "displacement": pytest.approx(math.sqrt(sum(moved)), rel=1e-9),
        "checkpoint_hash": file_hash(folder / "model.safetensors"),
        "failure": None,
    }
    assert read_json(folder / "manifest.json") == manifest
    assert [(r["step"], r["epoch"]) for r in records] == [(1, 0.75), (2, 1.5), (3, 2.0)]
    assert [r["step"] for r in read_jsonl(paths.timing(BRANCH))] == [1, 2, 3]
    assert sorted(contents(folder)) == [
        *("manifest.json", "model.safetensors", "records.jsonl", "summary.json")
    ]


EXPLODING = {"learning_rate": 1e30, "batch_size": 3, "warmup_ratio": 0.0}
WHY = r"branch merit-1d-s3-g0: .* step 2 of 3; .*1e\+30"


def test_a_branch_that_may_diverge_leaves_its_failure_and_no_checkpoint(paths: Artifacts) -> None:
    manifest = write_manifest(
        paths, training={"trainable": ["decoder"], "optimizer": EXPLODING}, may_diverge=True
    )
    stage.run("x", BRANCH)
    folder = paths.branch(BRANCH)
    assert sorted(contents(folder)) == ["manifest.json", "records.jsonl", "summary.json"]
    summary = read_json(folder / "summary.json")
    assert summary["manifest_hash"] == value_hash(manifest)
    assert not {"checkpoint_hash", "final_loss", "displacement"} & set(summary)
    assert re.match(WHY, summary["failure"])
    assert [record["step"] for record in read_jsonl(folder / "records.jsonl")] == [1]
    # the step's three examples, by task and line
    assert len(re.findall(r"(?:mate|text), line [123]", summary["failure"])) == 3


def test_what_stood_there_stays_when_another_branch_fails(
    paths: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that diverges and may not; one that may, and whose image is gone."""
    stage.run("x", BRANCH)
    before = contents(paths.branch(BRANCH))
    write_manifest(paths, training={"trainable": ["decoder"], "optimizer": EXPLODING})
    with pytest.raises(MeritError, match=f"^{WHY}"):
        stage.run("x", BRANCH)

    def gone(data: TokenizedDataset, indices: Any) -> Any:
        raise MeritError("x.png: image not found")

    write_manifest(paths, may_diverge=True)
    monkeypatch.setattr(TokenizedDataset, "batch", gone)
    with pytest.raises(MeritError, match=r"^x\.png: image not found$"):
        stage.run("x", BRANCH)
    assert contents(paths.branch(BRANCH)) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_hash": "0123456789abcdef"}, "`base_hash`: .*0123456789ab.*artifacts/x/base"),
        ({"encoded_hash": "0123456789abcdef"}, "`encoded_hash`: .*0123456789ab"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    paths: Artifacts, changes: dict[str, Any], message: str
) -> None:
    """Even if it may diverge: this is no result."""
    write_manifest(paths, **changes, may_diverge=True)
    with pytest.raises(MeritError, match=f"^{paths.manifest(BRANCH)}: .*{message}"):
        stage.run("x", BRANCH)
    assert not (paths.folder / "branches").exists()


def test_a_branch_that_is_stopped_resumes_to_the_same_bytes(paths: Artifacts) -> None:
    """SIGTERM after the first of three steps: status 75, nothing at the branch's place; again."""
    stage.run("x", BRANCH)
    whole = contents(paths.branch(BRANCH))
    shutil.rmtree(paths.branch(BRANCH))
    stop_at(lambda: stage.run("x", BRANCH), call=1)
    assert not paths.branch(BRANCH).exists()
    (partial,) = work_place(paths.branch(BRANCH)).parent.glob(f".{BRANCH}.*")
    assert [p.name for p in partial.iterdir()] == ["checkpoint-1"]
    assert steps_of(lambda: stage.run("x", BRANCH)) == [1, 2]  # the first is not computed again
    assert contents(paths.branch(BRANCH)) == whole
    assert not partial.exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_adapters_are_stored_as_peft_reads_them(paths: Artifacts, tiny: Tiny) -> None:
    """And the merge of one branch is what peft itself merges."""
    from peft import PeftModel

    from merit.io.adapters import Adapter

    write_manifest(
        paths, training={"trainable": ["decoder"], "optimizer": OPTIMIZER, "lora": {"rank": 2}}
    )
    stage.run("x", BRANCH)
    folder = paths.branch(BRANCH)
    assert sorted(contents(folder)) == [
        *("adapter_config.json", "adapter_model.safetensors", "manifest.json", "records.jsonl"),
        "summary.json",
    ]
    merged = PeftModel.from_pretrained(copy.deepcopy(tiny.model), folder).merge_and_unload()
    expected = stored_tensors(merged, dict(merged.named_parameters()))
    base = Checkpoint(paths.base)
    found = Adapter(folder, base, lambda names: stored_names(paths.base, names))
    assert len(found.names) == 7
    for name in found.names:
        assert not torch.equal(found.read(name), base.read(name).double())
        torch.testing.assert_close(found.read(name).float(), expected[name].detach())
    # and so do the studies that measure branches read them
    meter = make_evaluator(copy.deepcopy(tiny.model), ["decoder"], tiny.encoded, 4)
    whole = flatten(expected[name] for name in meter.parameters)
    torch.testing.assert_close(meter.vector(paths, paths.branch(BRANCH)), whole)

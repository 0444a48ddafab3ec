"""LLaVA's recipe: an encoder, a decoder and a fresh projector as one model, trained by phases."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merit.data import stage as data
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_jsonl, work_place
from merit.io.checkpoints import Checkpoint
from merit.train import base
from merit.train.assembly import NORM, PROJECTOR, assemble
from merit.train.model import load_model, load_processor
from tests import tiny_models
from tests.processes import in_processes
from tests.public_fixtures import llava_mix665k, llava_pretrain
from tests.training import contents, steps_of, stop_at

STEP: dict[str, Any] = {
    "num_steps": 3,
    "precision": "bfloat16",
    "pack_tokens": 256,
    "optimizer": {"learning_rate": 0.01, "batch_size": 2, "warmup_ratio": 0.0},
}
RECIPE = {
    "name": "llava",
    "data": {
        "source": "public",
        "on_bad_record": "skip",
        "sources": [{"name": "llava_pretrain"}],
        "pretraining": {
            "captions": [{"name": "llava_pretrain"}],
            "instructions": [{"name": "llava_mix665k"}],
        },
    },
    "base": {
        "seed": 3,
        "assemble": {"vision": {"checkpoint": "eyes"}, "decoder": {"checkpoint": "words"}},
        "phases": [
            {"name": "stage 1", "data": "captions", "trainable": ["projector"], **STEP},
            {
                "name": "stage 2",
                "data": "instructions",
                "trainable": ["projector", "decoder"],
                "gradient_checkpointing": True,
                **STEP,
            },
        ],
    },
    "gradients": {},
    "training": {"trainable": ["decoder"], "optimizer": STEP["optimizer"]},
    "methods": {"base": {"partition": "base"}},
    "evaluation": {"benchmarks": ["mini_mcq"]},
    "report": {"title": "LLaVA", "paper_table": "table03_vision_176_7b"},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny_models.qwen_vl(folder / "eyes", seed=1)
    tiny_models.qwen(folder / "words", seed=2)
    tiny_models.llama(folder / "llama")
    return folder


def test_every_tensor_is_its_sources(parts: Path, tmp_path: Path) -> None:
    assemble(parts / "eyes", parts / "words", tmp_path, seed=3)
    eyes, words, found = (Checkpoint(f) for f in (parts / "eyes", parts / "words", tmp_path))
    projector = {name for name in eyes.names if name.startswith(PROJECTOR)}
    encoder = {name for name in eyes.names if name.startswith("visual.")} - projector
    assert set(found.names) == encoder | projector | set(words.names)
    for source, names in ((eyes, encoder), (words, set(words.names))):
        for name in names:
            assert torch.equal(found.read(name), source.read(name)), name
    assert torch.equal(found.read(NORM), torch.ones(16, dtype=torch.bfloat16))
    weight = found.read(f"{PROJECTOR}mlp.2.weight").float()
    assert weight.shape == (32, 64)
    assert weight.std().item() == pytest.approx(0.1, rel=0.05)  # the decoder's initializer_range
    assert not found.read(f"{PROJECTOR}mlp.0.bias").any()
    # from only the seed
    for seed in (3, 4):
        (tmp_path / str(seed)).mkdir()
        assemble(parts / "eyes", parts / "words", tmp_path / str(seed), seed)
        other = Checkpoint(tmp_path / str(seed)).read(f"{PROJECTOR}mlp.2.weight")
        assert torch.equal(other.float(), weight) == (seed == 3)
    # the whole is a model that transformers knows, with the encoder's processor
    model = load_model(tmp_path)
    assert model.config.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
    assert load_processor(tmp_path).image_processor.patch_size == 14


def test_other_parts_are_refused(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(MeritError, match=r"assemble\.decoder`: .*'llama'"):
        assemble(parts / "eyes", parts / "llama", tmp_path, 0)
    with pytest.raises(MeritError, match=r"assemble\.vision`: .*'qwen2'"):
        assemble(parts / "words", parts / "words", tmp_path, 0)


@pytest.fixture
def llava(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """What the base stage reads of LLaVA's recipe, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for part in ("eyes", "words"):
        (tmp_path / part).symlink_to(parts / part)
    llava_pretrain(Path("sources/llava_pretrain"))
    llava_mix665k(Path("sources/llava_mix665k"))
    Path("experiments").mkdir()
    Path("experiments/llava.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    data.run("llava")
    return Artifacts("llava")


def test_phases_train_what_they_name_and_resume_to_the_same_bytes(
    llava: Artifacts, tmp_path: Path, parts: Path
) -> None:
    """Images that are not cached, packed, in bfloat16: the encoder stays. Stopped after the second
    step of the second phase.
    """
    base.run("llava")
    assemble(parts / "eyes", parts / "words", tmp_path, seed=3)
    before, after = Checkpoint(tmp_path), Checkpoint(llava.base)
    assert set(before.names) == set(after.names)
    assert {after.info(name).dtype for name in after.names} == {torch.bfloat16}
    moved = {name for name in after.names if not torch.equal(before.read(name), after.read(name))}
    assert moved >= {NORM, "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"}
    assert all(name.startswith((PROJECTOR, "model.")) for name in moved)
    records = read_jsonl(llava.base / "records.jsonl")
    assert [(r["phase"], r["step"]) for r in records] == [
        *(("stage 1", step) for step in (1, 2, 3)),
        *(("stage 2", step) for step in (4, 5, 6)),
    ]
    expected = contents(llava.base)
    shutil.rmtree(llava.base)
    # after the last step of a phase nobody asks
    stop_at(lambda: base.run("llava"), call=4)
    assert not llava.base.exists()
    (kept,) = work_place(llava.base).parent.glob(".base-phases.*")
    assert sorted(p.name for p in kept.iterdir()) == ["1", "phases.safetensors"]
    assert steps_of(lambda: base.run("llava")) == [2]
    assert contents(llava.base) == expected
    assert not kept.exists()
    assert not list(llava.folder.glob(".base*"))


def test_two_processes_build_the_base_together(llava: Artifacts) -> None:
    """The projector whole in each, then the decoder cut over them; the same losses as in one."""
    base.run("llava")
    expected = read_jsonl(llava.base / "records.jsonl")
    one = {name: tensor.float() for name, tensor in Checkpoint(llava.base).items()}
    shutil.rmtree(llava.base)
    in_processes(2, [("llava",)], base.run)
    found = read_jsonl(llava.base / "records.jsonl")
    for record, other in zip(found, expected, strict=True):
        assert record == pytest.approx(other, rel=0.2), record  # gradient norms in bfloat16
        assert record["loss"] == pytest.approx(other["loss"], rel=2e-3)
    for name, tensor in Checkpoint(llava.base).items():
        if tensor.ndim == 2:
            assert (tensor.float() - one[name]).norm() < 0.02 * one[name].norm(), name
    assert not list(llava.folder.glob(".base*"))

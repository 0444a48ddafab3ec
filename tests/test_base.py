"""theta0 as a folder of the repository: written once, compared when built again, never changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from merit.config import Base, Origin
from merit.errors import MeritError
from merit.io.checkpoint_files import checkpoint_hash
from merit.run.cli import main
from merit.run.preflight import check_base
from merit.run.stages import _listing
from merit.train.base import model_folder, release
from tests import tiny_models


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "built"
    tiny_models.qwen(folder, seed=1)
    (folder / "base.json").write_text(json.dumps({"base_hash": checkpoint_hash(folder)}))
    (folder / "records.jsonl").write_text("{}\n")  # of the training: no part of the model
    return folder


def nudge(folder: Path) -> None:
    """Change one number of the weights."""
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_built_base_is_copied_once_and_then_compared(built: Path, tmp_path: Path) -> None:
    place = tmp_path / "bases" / "mine"
    release(built, place, "recipe")
    kept = {path.name: path.read_bytes() for path in place.iterdir()}
    assert "records.jsonl" not in kept
    assert kept["config.json"]
    release(built, place, "recipe")  # the same bytes
    nudge(built)
    with pytest.raises(MeritError, match=r"bases/mine/model.safetensors: differs .* recipe builds"):
        release(built, place, "recipe")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == kept


def test_a_changed_base_is_refused(built: Path) -> None:
    origin = Origin(checkpoint=str(built))
    assert model_folder(origin, built, "base", "mine") == built
    nudge(built)
    with pytest.raises(MeritError, match=r"built: the weights are not those that base.json names"):
        model_folder(origin, built, "base", "mine")


def test_a_base_without_its_weights_is_refused_by_its_own_name(tmp_path: Path) -> None:
    """Before anything is copied or computed; also one of which shards or all but pickles lack."""
    folder = tmp_path / "mine"
    tiny_models.llama(folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    origin = Origin(checkpoint=str(folder))
    assert model_folder(origin, tmp_path, "base", "x") == folder
    shards[-1].unlink()
    experiment: Any = SimpleNamespace(base=Base(checkpoint=str(folder)))
    for check in (
        lambda: model_folder(origin, tmp_path, "base", "x"),
        lambda: check_base(experiment),
    ):
        with pytest.raises(MeritError, match=rf"^{shards[-1]}: shard not found"):
            check()
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    for check in (
        lambda: model_folder(origin, tmp_path, "base", "x"),
        lambda: check_base(experiment),
    ):
        with pytest.raises(MeritError, match=r"mine/.*: checkpoint not found; pytorch_model\.bin"):
            check()


def test_a_small_folder_is_known_by_its_contents(tmp_path: Path) -> None:
    """Two clones agree on it, whatever the times of their files."""
    file = tmp_path / "weights"
    file.write_bytes(b"a")
    before = _listing(tmp_path)
    file.touch()
    assert _listing(tmp_path) == before
    file.write_bytes(b"b")
    assert _listing(tmp_path) != before


@pytest.mark.rebuild
def test_a_recipe_builds_the_committed_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes of one core: the recipe itself compares what it built, and raises."""
    shutil.copytree("experiments", tmp_path / "experiments")
    shutil.copyfile("params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    main(["run", "mini_sources_recipe", "data", "base"])
    built = tmp_path / "artifacts/mini_sources_recipe/base"
    assert checkpoint_hash(built) == checkpoint_hash(Path("experiments/bases/mini_sources"))

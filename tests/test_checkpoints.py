"""Broken and foreign checkpoints are refused, and what stood there before is left as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    atomic_write,
    file_hash,
    read_json,
    write_json,
)
from merit.io.checkpoints import Checkpoint, check_same_tensors, save_tensors
from merit.models import load_model
from merit.stages import merge
from tests import synthetic
from tests.conftest import Tiny

BASE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4), "frozen": torch.zeros(2)}
TRAINED = {"a", "b"}


def branch(shift: float) -> dict[str, torch.Tensor]:
    return {name: BASE[name] + shift for name in TRAINED}


def saved(path: Path, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, path)
    return Checkpoint(path)


# --- one file -----------------------------------------------------------------------------------


def test_tensors_come_back_bit_by_bit(tmp_path: Path) -> None:
    found = saved(tmp_path / "x.safetensors", BASE)
    assert found.names == ["a", "b", "frozen"]
    assert found.shape("a") == (2, 3)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in BASE.items()
    }
    saved(tmp_path / "y.safetensors", dict(reversed(BASE.items())))
    x, y = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "xy")
    assert x == y


@pytest.mark.parametrize("kept", [0, 4, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(BASE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(MeritError, match=r"x\.safetensors: truncated or not a safetensors file"):
        Checkpoint(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeritError, match=r"x\.safetensors: checkpoint not found"):
        Checkpoint(tmp_path / "x.safetensors")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(BASE, tmp_path / "x.safetensors")
    with pytest.raises(MeritError, match="not a safetensors file"):
        Checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {**branch(1), "a": torch.zeros(3, 2)},
            r"branch\.safetensors: tensor 'a' has shape \(3, 2\), the base .*base\.safetensors "
            r"has \(2, 3\)",
        ),
        (
            {**branch(1), "c": torch.zeros(1)},
            r"branch\.safetensors: tensor 'c' does not exist in the base .*base\.safetensors",
        ),
        ({"a": BASE["a"]}, r"branch\.safetensors: .*missing \['b'\], not expected \[\]"),
        (BASE, r"branch\.safetensors: .*missing \[\], not expected \['frozen'\]"),
    ],
)
def test_a_foreign_branch_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    base = saved(tmp_path / "base.safetensors", BASE)
    found = saved(tmp_path / "branch.safetensors", tensors)
    with pytest.raises(MeritError, match=message):
        check_same_tensors(found, base, TRAINED)


def test_a_branch_of_the_base_passes(tmp_path: Path) -> None:
    base = saved(tmp_path / "base.safetensors", BASE)
    check_same_tensors(saved(tmp_path / "branch.safetensors", branch(1)), base, TRAINED)
    check_same_tensors(base, base)


# --- a model folder -----------------------------------------------------------------------------


def test_a_model_whose_file_is_cut_or_lacks_a_tensor_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    names = Checkpoint(path).names
    found = load_model(tmp_path)
    for name, parameter in tiny.model.named_parameters():
        assert torch.equal(found.get_parameter(name), parameter), name
    tensors = dict(Checkpoint(path).items())
    del tensors[names[-1]]
    save_tensors(tensors, path)
    with pytest.raises(MeritError, match=r"tensors do not match config\.json: missing"):
        load_model(tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(MeritError, match="the model cannot be read"):
        load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(MeritError, match=r"no model here \(config.json is missing\)"):
        load_model(tmp_path)


# --- the merge stage ----------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """Base and two branches of merit-1d, 10 and 30 tokens; the working directory is theirs."""
    monkeypatch.chdir(tmp_path)
    settings = synthetic.experiment(methods=("merit-1d",)).model_dump(mode="json")
    settings["report"]["partition"] = None
    Path("experiments").mkdir()
    Path("experiments/synthetic.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    paths = Artifacts("synthetic")
    saved(paths.base / "model.safetensors", BASE)
    atomic_write(paths.base / "config.json", "{}")
    for k, (shift, num_tokens) in enumerate([(1.0, 10), (5.0, 30)]):
        name = f"merit-1d-s1-g{k}"
        saved(paths.branch(name) / "model.safetensors", branch(shift))
        base_hash = file_hash(paths.base / "model.safetensors")
        write_json(paths.branch(name) / "summary.json", {"base_hash": base_hash})
        write_json(paths.manifest(name), {"num_tokens": num_tokens})
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_merge_by_hand(experiment: Artifacts) -> None:
    """Shifts 1 and 5 at merge weights 1/4 and 3/4: shift 4, at a distance of 4 sqrt(10)."""
    merge.run("synthetic", "merit-1d-s1")
    folder = experiment.model("merit-1d-s1")
    merged = dict(Checkpoint(folder / "model.safetensors").items())
    assert {name: tensor.tolist() for name, tensor in merged.items()} == {
        "a": (BASE["a"] + 4).tolist(),
        "b": (BASE["b"] + 4).tolist(),
        "frozen": BASE["frozen"].tolist(),
    }
    record = read_json(folder / "merge.json")
    assert record["merge_weights"] == [0.25, 0.75]
    assert record["num_tokens"] == 40
    assert record["displacement"] == pytest.approx(4 * 10**0.5)
    assert sorted(contents(folder)) == ["config.json", "merge.json", "model.safetensors"]


def other_base(paths: Artifacts) -> None:
    tensors = {"a": torch.zeros(3, 3), "b": torch.ones(4)}
    saved(paths.branch("merit-1d-s1-g1") / "model.safetensors", tensors)


def other_tensors(paths: Artifacts) -> None:
    saved(paths.branch("merit-1d-s1-g1") / "model.safetensors", {"a": BASE["a"]})


def cut(paths: Artifacts) -> None:
    path = paths.branch("merit-1d-s1-g1") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def gone(paths: Artifacts) -> None:
    (paths.branch("merit-1d-s1-g1") / "model.safetensors").unlink()


def same_shapes_of_another_base(paths: Artifacts) -> None:
    write_json(paths.branch("merit-1d-s1-g1") / "summary.json", {"base_hash": "another"})


@pytest.mark.parametrize(
    "break_it", [other_base, same_shapes_of_another_base, other_tensors, cut, gone]
)
def test_a_refused_merge_leaves_the_last_one_untouched(
    experiment: Artifacts, break_it: Any
) -> None:
    merge.run("synthetic", "merit-1d-s1")
    folder = experiment.model("merit-1d-s1")
    before = contents(folder)
    break_it(experiment)
    with pytest.raises(MeritError, match=r"merit-1d-s1-g1.model\.safetensors: "):
        merge.run("synthetic", "merit-1d-s1")
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["merit-1d-s1"]


def test_an_unknown_model_is_refused(experiment: Artifacts) -> None:
    with pytest.raises(MeritError, match="no model 'merit-9d-s1'; it has merit-1d-s1"):
        merge.run("synthetic", "merit-9d-s1")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("old")

    def interrupted() -> None:
        with atomic_folder(target) as folder:
            (folder / "new").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(target) == {"old": b"old"}
    with atomic_folder(target) as folder:
        (folder / "new").write_text("new")
    assert contents(target) == {"new": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

"""Broken and foreign checkpoints are refused, and what stood there before is left as it was."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from merit.config.branches import plan
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    atomic_write,
    file_hash,
    read_json,
    write_json,
)
from merit.io.checkpoint_writer import CheckpointWriter
from merit.io.checkpoints import Checkpoint, TensorInfo, check_same_tensors, save_tensors
from merit.merge import model as merge
from merit.plan import recipe
from merit.train.base import check_finite
from merit.train.model import load_model
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_base_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    saved(tmp_path / "model.safetensors", BASE)
    check_finite(tmp_path, "the base of tiny")
    saved(tmp_path / "model.safetensors", {**BASE, "b": torch.tensor([1.0, bad, 1.0, 1.0])})
    with pytest.raises(MeritError) as caught:
        check_finite(tmp_path, "the base of tiny")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("the base of tiny: tensor 'b' is not finite; build or fetch it anew")


# --- the merge stage ----------------------------------------------------------------------------

COUNTS = (
    {"num_tokens": 10, "num_loss_tokens": 3, "num_samples": 1},
    {"num_tokens": 30, "num_loss_tokens": 2, "num_samples": 7},
)


MODEL, BRANCHES = "merit-1d-s1", ("merit-1d-s1-g0", "merit-1d-s1-g1")


def write_branch(
    paths: Artifacts, name: str, shift: float, counts: Mapping[str, int], num_groups: int = 2
) -> None:
    """A branch as the train stage leaves it, `shift` away from the base in every coordinate."""
    folder = paths.branch(name)
    saved(folder / "model.safetensors", branch(shift))
    write_json(folder / "summary.json", {"failure": None})
    base_hash = file_hash(paths.base / "model.safetensors")
    manifest = {"branch": name, "base_hash": base_hash, "partition_hash": f"of {num_groups}"}
    manifest |= {"tasks": [], "epochs": 1.0, "training": {}}
    write_json(folder / "manifest.json", manifest | counts | {"num_groups": num_groups})


def rewrite(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; None takes one away."""
    kept = {key: value for key, value in read_json(path).items() if key not in values}
    write_json(path, kept | {key: value for key, value in values.items() if value is not None})


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """Base, recipes, and two branches of merit-1d; the working directory is theirs."""
    monkeypatch.chdir(tmp_path)
    methods = ("base", "joint-1ep", "merit-1d")
    settings = synthetic.experiment(methods=methods, seeds=(1, 2))
    paths = Artifacts("synthetic")
    for model in plan(settings).models.values():
        write_json(paths.recipe(model.id), recipe(settings, model))
    base = saved(paths.base / "model.safetensors", BASE)
    write_json(paths.base / "base.json", {"base_hash": file_hash(base.path)})
    atomic_write(paths.base / "config.json", "{}")
    for name, shift, counts in zip(BRANCHES, (1.0, 5.0), COUNTS, strict=True):
        write_branch(paths, name, shift, counts)
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
    assert record["weighted_by"] == "tokens"
    assert (record["num_tokens"], record["num_loss_tokens"]) == (40, 5)
    assert record["displacement"] == pytest.approx(4 * 10**0.5)
    assert sorted(contents(folder)) == [
        *("README.md", "config.json", "merge.json", "model.safetensors"),
    ]
    of = {"model": MODEL, "method": "merit-1d", "seed": 1, "rule": "merge", "failure": None}
    assert {key: record[key] for key in of} == of
    assert record["branches"] == list(BRANCHES)
    assert record["checkpoint_hash"] == file_hash(folder / "model.safetensors")


def test_a_sharded_base_and_an_output_in_fewer_bits(experiment: Artifacts) -> None:
    """Shifts of 1 and 5 at 1/4 and 3/4, from a base in two files, written in bfloat16."""
    (experiment.base / "model.safetensors").unlink()
    layout = {name: TensorInfo(t.dtype, tuple(t.shape)) for name, t in BASE.items()}
    with CheckpointWriter(experiment.base, layout, max_shard_bytes=40) as writer:
        for name, tensor in BASE.items():
            writer.write(name, tensor)
    rewrite(experiment.recipe(MODEL), merge_dtype="bfloat16")
    atomic_write(experiment.base / "config.json", '{"dtype": "float32"}')
    merge.run("synthetic", MODEL)
    folder = experiment.model(MODEL)
    merged = Checkpoint(folder / "model.safetensors")
    assert merged.read("a").dtype == torch.bfloat16
    assert merged.read("a").tolist() == (BASE["a"] + 4).tolist()
    assert sorted(contents(folder)) == [
        "README.md",
        "config.json",
        "merge.json",
        "model.safetensors",
    ]
    assert read_json(folder / "config.json") == {"dtype": "bfloat16"}
    assert read_json(folder / "merge.json")["rounding_error"] == 0.0  # small whole numbers


def test_the_base_as_a_model_is_the_base(experiment: Artifacts) -> None:
    merge.run("synthetic", "base")
    folder = experiment.model("base")
    for name, tensor in Checkpoint(folder / "model.safetensors").items():
        assert tensor.tolist() == BASE[name].tolist()
    record = read_json(folder / "merge.json")
    assert (record["displacement"], record["merge_weights"]) == (0.0, [])
    assert (record["num_tokens"], record["num_loss_tokens"]) == (0, 0)


SHRUNK = {
    **{"model": "shrunk-s1", "method": "shrunk", "seed": 1, "rule": "shrunk", "branches": []},
    **{"source": "joint-1ep-s1", "match": MODEL, "merge_weights": "tokens"},
    **{"merge_dtype": "base", "origin": {"name": "x/y", "revision": "abc"}},
}


def test_the_control_by_hand(experiment: Artifacts) -> None:
    """Joint training moves by 16, merit by 4: a quarter of joint training's way."""
    write_branch(experiment, "joint-1ep-s1", 16.0, COUNTS[1], num_groups=1)
    write_json(experiment.recipe("shrunk-s1"), SHRUNK)
    for model in (MODEL, "joint-1ep-s1", "shrunk-s1"):
        merge.run("synthetic", model)
    folder = experiment.model("shrunk-s1")
    shrunk = Checkpoint(folder / "model.safetensors")
    assert shrunk.read("a").tolist() == (BASE["a"] + 4).tolist()
    assert shrunk.read("frozen").tolist() == BASE["frozen"].tolist()
    record = read_json(folder / "merge.json")
    assert record["alpha"] == pytest.approx(0.25)
    assert (record["source"], record["match"]) == ("joint-1ep-s1", MODEL)
    assert (record["num_tokens"], record["num_loss_tokens"]) == (30, 2)  # those of joint training
    assert record["displacement"] == pytest.approx(4 * 10**0.5)


def test_joint_runs_of_all_seeds_share_a_folder(experiment: Artifacts) -> None:
    for seed in (1, 2):
        write_branch(experiment, f"joint-1ep-s{seed}", seed, COUNTS[0], num_groups=1)
    merge.run("synthetic", "joint-1ep-s2")
    record = read_json(experiment.model("joint-1ep-s2") / "merge.json")
    assert (record["branches"], record["merge_weights"]) == (["joint-1ep-s2"], [1.0])
    assert record["displacement"] == pytest.approx(2 * 10**0.5)


def weighted_by(paths: Artifacts, reading: str) -> None:
    """Set `merge_weights` of the model's recipe."""
    rewrite(paths.recipe(MODEL), merge_weights=reading)


@pytest.mark.parametrize(
    ("reading", "weights"),
    [
        ("tokens", [0.25, 0.75]),
        ("loss_tokens", [0.6, 0.4]),
        ("samples", [0.125, 0.875]),
        ("uniform", [0.5, 0.5]),
    ],
)
def test_a_merge_of_every_reading_by_hand(
    experiment: Artifacts, reading: str, weights: list[float]
) -> None:
    """Shifts 1 and 5: the merged model is shifted by w_0 + 5 w_1."""
    weighted_by(experiment, reading)
    merge.run("synthetic", "merit-1d-s1")
    folder = experiment.model("merit-1d-s1")
    record = read_json(folder / "merge.json")
    assert (record["merge_weights"], record["weighted_by"]) == (weights, reading)
    assert (record["num_tokens"], record["num_loss_tokens"]) == (40, 5)  # whatever weighs
    shift = weights[0] + 5 * weights[1]
    merged = Checkpoint(folder / "model.safetensors")
    assert merged.read("a").tolist() == (BASE["a"] + shift).tolist()
    assert record["displacement"] == pytest.approx(shift * 10**0.5)


@pytest.mark.parametrize(
    ("reading", "key", "bad"),
    [
        ("loss_tokens", "num_loss_tokens", None),
        ("loss_tokens", "num_loss_tokens", 0),
        ("samples", "num_samples", None),
        ("tokens", "num_tokens", 0),
        ("tokens", "num_tokens", None),
    ],
)
def test_a_manifest_without_its_count_is_refused(
    experiment: Artifacts, reading: str, key: str, bad: int | None
) -> None:
    """By one line with folder, model and key; nothing is written."""
    weighted_by(experiment, reading)
    rewrite(experiment.branch(BRANCHES[1]) / "manifest.json", **{key: bad})
    with pytest.raises(MeritError) as caught:
        merge.run("synthetic", "merit-1d-s1")
    assert str(caught.value) == (
        f"{experiment.branch(BRANCHES[0]).parent}: merit-1d-s1: every branch needs a positive "
        f"`{key}`, found [{COUNTS[0][key]}, {bad}]; run the partition stage again"
    )
    assert not experiment.model("merit-1d-s1").exists()


@pytest.mark.parametrize(
    ("reading", "key"),
    [("tokens", "num_loss_tokens"), ("uniform", "num_loss_tokens"), ("uniform", "num_tokens")],
)
def test_a_count_that_does_not_weigh_is_needed_for_the_record(
    experiment: Artifacts, reading: str, key: str
) -> None:
    weighted_by(experiment, reading)
    rewrite(experiment.branch(BRANCHES[1]) / "manifest.json", **{key: None})
    message = f"^{experiment.branch(BRANCHES[0]).parent}: merit-1d-s1: key `{key}` is missing; run"
    with pytest.raises(MeritError, match=message):
        merge.run("synthetic", "merit-1d-s1")


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
    rewrite(paths.branch(BRANCHES[1]) / "manifest.json", base_hash="another")


def of_another_partition(paths: Artifacts) -> None:
    rewrite(paths.branch(BRANCHES[1]) / "manifest.json", partition_hash="another")


def another_branch(paths: Artifacts) -> None:
    rewrite(paths.branch(BRANCHES[1]) / "manifest.json", branch="merit-1d-s2-g1")


def missing(paths: Artifacts) -> None:
    shutil.rmtree(paths.branch(BRANCHES[1]))


def half_written(paths: Artifacts) -> None:
    (paths.branch(BRANCHES[1]) / "summary.json").unlink()


def surplus(paths: Artifacts) -> None:
    write_branch(paths, "merit-1d-s1-g2", 1.0, COUNTS[0])
    write_branch(paths, "merit-1d-s1-g7", 1.0, COUNTS[0])


RUN = "artifacts/synthetic/branches/merit-1d-s1"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (other_base, f"{RUN}/merit-1d-s1-g1/model.safetensors: tensor 'a' has shape (3, 3), the "),
        (other_tensors, f"{RUN}/merit-1d-s1-g1/model.safetensors: tensors differ from the other "),
        (cut, f"{RUN}/merit-1d-s1-g1/model.safetensors: truncated or not a safetensors file"),
        (gone, f"{RUN}/merit-1d-s1-g1/model.safetensors: checkpoint not found; `dvc repro` "),
        (
            same_shapes_of_another_base,
            f"{RUN}/merit-1d-s1-g1: trained from another base than artifacts/synthetic/base; "
            "train it again",
        ),
        (
            of_another_partition,
            "merge of merit-1d-s1: branch merit-1d-s1-g1 is of another partition than "
            "merit-1d-s1-g0; train it again",
        ),
        (
            another_branch,
            f"merge of merit-1d-s1: {RUN}/merit-1d-s1-g1 holds branch 'merit-1d-s2-g1', not "
            "merit-1d-s1-g1; train it again",
        ),
        (
            missing,
            f"merge of merit-1d-s1: branch merit-1d-s1-g1 is missing in {RUN}/merit-1d-s1-g1; "
            "`dvc repro` trains it",
        ),
        (half_written, "merge of merit-1d-s1: branch merit-1d-s1-g1 is missing in "),
        (
            surplus,
            f"merge of merit-1d-s1: {RUN} holds merit-1d-s1-g2, merit-1d-s1-g7 besides its "
            "branches; remove what an earlier plan has left there",
        ),
    ],
)
def test_a_refused_merge_leaves_the_last_one_untouched(
    experiment: Artifacts, break_it: Any, message: str
) -> None:
    merge.run("synthetic", "merit-1d-s1")
    folder = experiment.model("merit-1d-s1")
    before = contents(folder)
    break_it(experiment)
    with pytest.raises(MeritError) as caught:
        merge.run("synthetic", "merit-1d-s1")
    assert str(caught.value).startswith(message)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["merit-1d-s1"]


def test_a_model_of_a_diverged_branch_is_a_failure_without_a_checkpoint(
    experiment: Artifacts,
) -> None:
    """And so is what is derived from it; the base's other files are not copied either."""
    why = "branch merit-1d-s1-g1: the loss is nan at step 3 of 8"
    folder = experiment.branch(BRANCHES[1])
    rewrite(folder / "summary.json", failure=why)
    (folder / "model.safetensors").unlink()
    write_branch(experiment, "joint-1ep-s1", 16.0, COUNTS[1], num_groups=1)
    write_json(experiment.recipe("shrunk-s1"), SHRUNK)
    for model in (MODEL, "joint-1ep-s1", "shrunk-s1"):
        merge.run("synthetic", model)
    expected = {
        **{"model": MODEL, "method": "merit-1d", "seed": 1, "rule": "merge"},
        **{"branches": list(BRANCHES), "failure": why},
    }
    assert read_json(experiment.model(MODEL) / "merge.json") == expected
    assert read_json(experiment.model("shrunk-s1") / "merge.json")["failure"] == why
    assert read_json(experiment.model("joint-1ep-s1") / "merge.json")["failure"] is None
    for model in (MODEL, "shrunk-s1"):
        assert list(contents(experiment.model(model))) == ["merge.json"]


def test_a_model_without_a_recipe_is_refused(experiment: Artifacts) -> None:
    path = experiment.recipe("merit-9d-s1")
    with pytest.raises(MeritError, match=f"^{path}: file not found; `dvc repro` writes it$"):
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

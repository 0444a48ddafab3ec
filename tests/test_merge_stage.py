"""The merge stage: models by hand, and foreign, broken or missing branches refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from merit.config import Experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_write, file_hash, read_json, write_json
from merit.io.checkpoint_writer import CheckpointWriter
from merit.io.checkpoints import Checkpoint, TensorInfo, save_tensors
from merit.merge import model as merge
from tests import synthetic

BASE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4), "frozen": torch.zeros(2)}
COUNTS = (
    {"num_tokens": 10, "num_loss_tokens": 3, "num_samples": 1},
    {"num_tokens": 30, "num_loss_tokens": 2, "num_samples": 7},
)
MODEL, JOINT, SHRUNK = "merit-1d-s1", "joint-1ep-s1", "joint-shrunk-s1"
BRANCHES = (f"{MODEL}-g0", f"{MODEL}-g1")
CONTROL = {"partition": "shrunk", "source": "joint-1ep", "match": "merit-1d"}


class Place:
    """The artifacts of an experiment, whose settings a test may change."""

    def __init__(self) -> None:
        self.paths = Artifacts("synthetic")
        self.settings = synthetic.experiment(
            methods=("base", "joint-1ep", "merit-1d", "joint-shrunk"), seeds=(1, 2)
        )

    def set(self, **values: Any) -> None:
        self.settings = self.settings.model_copy(update=values)

    def load(self, name: str) -> Experiment:
        return self.settings

    def folder(self, index: int) -> Path:
        return self.paths.branch(BRANCHES[index])

    def merged(self, model: str) -> tuple[dict[str, Any], Path]:
        """What the stage writes: merge.json, and the folder."""
        merge.run("synthetic", model)
        folder = self.paths.model(model)
        return read_json(folder / "merge.json"), folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A base and two branches of merit-1d; the working directory is theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(synthetic.METHODS, "joint-shrunk", CONTROL)
    place = Place()
    monkeypatch.setattr(merge, "load_experiment", place.load)
    place.paths.base.mkdir(parents=True)
    save_tensors(BASE, place.paths.base / "model.safetensors")
    write_json(place.paths.base / "base.json", {"base_hash": "of the base"})
    atomic_write(place.paths.base / "config.json", '{"dtype": "float32"}')
    for name, shift, counts in zip(BRANCHES, (1.0, 5.0), COUNTS, strict=True):
        write_branch(place, name, shift, counts)
    return place


def write_branch(
    place: Place, name: str, shift: float, counts: Mapping[str, int], num_groups: int = 2
) -> None:
    """A branch as the train stage leaves it, `shift` away from the base in every coordinate."""
    folder = place.paths.branch(name)
    folder.mkdir(parents=True)
    save_tensors({key: BASE[key] + shift for key in "ab"}, folder / "model.safetensors")
    write_json(folder / "summary.json", {"failure": None})
    manifest = {"branch": name, "base_hash": "of the base", "partition_hash": f"of {num_groups}"}
    manifest |= {"tasks": [], "epochs": 1.0, "training": {}, "num_groups": num_groups}
    write_json(folder / "manifest.json", manifest | counts)


def rewrite(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; None takes one away."""
    kept = {key: value for key, value in read_json(path).items() if key not in values}
    write_json(path, kept | {key: value for key, value in values.items() if value is not None})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- models by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "weights"),
    [
        ("tokens", [0.25, 0.75]),
        ("loss_tokens", [0.6, 0.4]),
        ("samples", [0.125, 0.875]),
        ("uniform", [0.5, 0.5]),
    ],
)
def test_a_merge_of_every_reading(place: Place, reading: str, weights: list[float]) -> None:
    """Shifts 1 and 5 in ten coordinates: the merged model is shifted by w_0 + 5 w_1."""
    place.set(merge_weights=reading)
    record, folder = place.merged(MODEL)
    shift = weights[0] + 5 * weights[1]
    assert {name: t.tolist() for name, t in Checkpoint(folder).items()} == {
        "a": (BASE["a"] + shift).tolist(),
        "b": (BASE["b"] + shift).tolist(),
        "frozen": BASE["frozen"].tolist(),
    }
    assert record == {
        **{"model": MODEL, "method": "merit-1d", "seed": 1, "rule": "merge", "failure": None},
        **{"branches": list(BRANCHES), "merge_weights": weights, "weighted_by": reading},
        **{"num_tokens": 40, "num_loss_tokens": 5},  # whatever weighs
        **{
            "displacement": pytest.approx(shift * 10**0.5),
            "rounding_error": pytest.approx(0, abs=1e-7),
        },
        **{"checkpoint_hash": file_hash(folder / "model.safetensors")},
    }
    files = {"README.md", "config.json", "merge.json", "model.safetensors"}
    assert contents(folder).keys() == files


def test_a_sharded_base_and_an_output_in_fewer_bits(place: Place) -> None:
    (place.paths.base / "model.safetensors").unlink()
    layout = {name: TensorInfo(t.dtype, tuple(t.shape)) for name, t in BASE.items()}
    with CheckpointWriter(place.paths.base, layout, max_shard_bytes=40) as writer:
        for name, tensor in BASE.items():
            writer.write(name, tensor)
    place.set(merge_dtype="bfloat16")
    record, folder = place.merged(MODEL)
    merged = Checkpoint(folder)
    assert merged.read("a").dtype == torch.bfloat16
    assert merged.read("a").tolist() == (BASE["a"] + 4).tolist()
    assert read_json(folder / "config.json") == {"dtype": "bfloat16"}
    assert record["rounding_error"] == 0.0  # small whole numbers


def test_the_base_joint_training_and_the_control(place: Place) -> None:
    """Joint training moves by 16, merit by 4: the control goes a quarter of joint's way.

    Joint runs of all seeds share a folder.
    """
    for seed in (1, 2):
        write_branch(place, f"joint-1ep-s{seed}", 16.0 * seed, COUNTS[1], num_groups=1)
    records = {}
    for model, shift in {"base": 0.0, MODEL: 4.0, JOINT: 16.0, SHRUNK: 4.0}.items():
        records[model], folder = place.merged(model)
        assert Checkpoint(folder).read("a").tolist() == (BASE["a"] + shift).tolist()
        assert Checkpoint(folder).read("frozen").tolist() == BASE["frozen"].tolist()
        assert records[model]["displacement"] == pytest.approx(shift * 10**0.5)
    assert (records["base"]["merge_weights"], records["base"]["num_tokens"]) == ([], 0)
    assert (records[JOINT]["branches"], records[JOINT]["merge_weights"]) == ([JOINT], [1.0])
    control = records[SHRUNK]
    assert (control["alpha"], control["source"], control["match"]) == (0.25, JOINT, MODEL)
    assert (control["num_tokens"], control["num_loss_tokens"]) == (30, 2)  # joint training's


def test_a_model_of_a_diverged_branch_is_a_failure_without_a_checkpoint(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so is what is derived from it; both are said by name."""
    why = f"branch {BRANCHES[1]}: the loss is nan at step 3 of 8"
    rewrite(place.folder(1) / "summary.json", failure=why)
    (place.folder(1) / "model.safetensors").unlink()
    write_branch(place, JOINT, 16.0, COUNTS[1], num_groups=1)
    assert place.merged(MODEL)[0] == {
        **{"model": MODEL, "method": "merit-1d", "seed": 1, "rule": "merge"},
        **{"branches": list(BRANCHES), "failure": why},
    }
    assert place.merged(JOINT)[0]["failure"] is None
    assert place.merged(SHRUNK)[0]["failure"] == why
    said = capsys.readouterr().out
    for model in (MODEL, SHRUNK):
        assert list(contents(place.paths.model(model))) == ["merge.json"]
        assert f"{model}: not merged, since {why}" in said


def test_a_recipe_says_what_the_card_and_the_record_show(place: Place) -> None:
    models = plan(place.settings).models
    assert merge.recipe(place.settings, models[SHRUNK]) == {
        **{"model": SHRUNK, "method": "joint-shrunk", "seed": 1, "rule": "shrunk"},
        **{"branches": [], "source": JOINT, "match": MODEL, "merge_weights": "tokens"},
        **{"merge_dtype": "base", "origin": {"name": "base", "revision": None}},
    }


# --- what is refused ------------------------------------------------------------------------------

RUN = f"artifacts/synthetic/branches/{MODEL}"
LAST = f"{RUN}/{BRANCHES[1]}"


def change(**values: Any) -> Callable[[Place], Any]:
    return lambda place: rewrite(place.folder(1) / "manifest.json", **values)


def cut(place: Place) -> None:
    path = place.folder(1) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


REFUSED: dict[str, tuple[Callable[[Place], Any], str]] = {
    "cut": (cut, f"{LAST}/model.safetensors: truncated"),
    "no count": (
        change(num_tokens=None),
        f"key `merge_weights`: {MODEL}: every branch needs a positive `num_tokens`, found",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_merge_leaves_the_last_one_untouched(place: Place, kind: str) -> None:
    folder = place.merged(MODEL)[1]
    before = contents(folder)
    break_it, message = REFUSED[kind]
    break_it(place)
    with pytest.raises(MeritError) as caught:
        merge.run("synthetic", MODEL)
    assert str(caught.value).startswith(message)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [MODEL]

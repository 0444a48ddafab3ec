"""The partition stage: what it writes, and what further methods must not touch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from merit.config import load_experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, folder_hash, read_json, write_json
from merit.partition import stage as partition
from tests import synthetic

NUM_TASKS = 12
METHODS: dict[str, dict[str, Any]] = {
    "base": {"partition": "base"},
    "joint-1ep": {"partition": "joint"},
    "random-2": {"partition": "random", "groups": 2},
    "merit-1d": {"partition": "merit", "axes": 1},
}
MORE: dict[str, dict[str, Any]] = {
    "joint-1ep": {"seeds": [1, 2]},
    "merit-1d": {"seeds": [1, 2]},
    "merit-3d": {"partition": "merit", "axes": 3},
    "rawpca-2d": {"partition": "rawpca", "axes": 2},
    "kmeans-4": {"partition": "kmeans", "groups": 4},
    "conflict-2": {"partition": "conflict"},
    "conflict-2-between": {"partition": "conflict", "reading": "between"},
}
BASE_HASH = "f00d"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """What the partition stage reads, in the working folder."""
    monkeypatch.chdir(tmp_path)
    values = synthetic.experiment("tiny").model_dump(mode="json")
    values["methods"] = METHODS
    values["report"] |= {"curves": [], "partition": None}
    Path("experiments").mkdir()
    Path("experiments/tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    more = {"extends": "tiny", "methods": MORE}
    Path("experiments/tiny_full.yaml").write_text(yaml.safe_dump(more), encoding="utf-8")
    Path("artifacts").mkdir()
    Path("artifacts/tiny_full").symlink_to("tiny")  # the same data, gradients and base
    paths = Artifacts("tiny")
    names = [f"task-{i:02d}" for i in range(NUM_TASKS)]
    tasks = [
        {"task": name, "num_samples": 10 + i}
        | {"num_tokens": 131 + 7 * i, "num_loss_tokens": 31 - 2 * i}
        for i, name in enumerate(names)
    ]
    write_json(paths.encoded / "tasks.json", tasks)
    write_json(paths.gradients / "tasks.json", {"tasks": names})
    gradients = np.random.default_rng(3).standard_normal((NUM_TASKS, 40), dtype=np.float32)
    np.save(paths.gradients / "gradients.npy", gradients)
    write_json(paths.base / "base.json", {"base_hash": BASE_HASH})
    return paths


def run(name: str, paths: Artifacts) -> dict[str, bytes]:
    """Run the stage for this experiment; its files by path."""
    partition.run(name)
    files = sorted(path for path in paths.partition.rglob("*") if path.is_file())
    return {str(path.relative_to(paths.partition)): path.read_bytes() for path in files}


def test_further_methods_leave_the_manifests_as_they_are(paths: Artifacts) -> None:
    """Or else adding them would train everything again."""
    default, full = run("tiny", paths), run("tiny_full", paths)
    manifests = {name for name in default if name.startswith("manifests/")}
    assert manifests == {
        f"manifests/{branch}.json"
        for branch in (
            *("joint-1ep-s1", "random-2-s1-g0", "random-2-s1-g1"),
            *("merit-1d-s1-g0", "merit-1d-s1-g1"),
        )
    }
    for name in (*manifests, "similarity.npy"):
        assert full[name] == default[name], name
    small, large = (json.loads(files["partitions.json"]) for files in (default, full))
    assert small == {key: large[key] for key in ("joint", "random-2-s1", "merit-1d")}
    assert list(json.loads(full["splits.json"])) == ["merit-1d", "merit-3d"]


def test_every_partition_covers_the_mixture_once(paths: Artifacts) -> None:
    run("tiny_full", paths)
    tasks = read_json(paths.encoded / "tasks.json")
    planned = plan(load_experiment("tiny_full"))
    assert len(planned.branches) == 2 + 2 + 2 * 2 + 8 + 4 + 4 + 2 + 2
    for model in planned.models.values():
        if not model.branches:
            continue
        manifests = [read_json(paths.manifest(branch)) for branch in model.branches]
        assert [m["group"] for m in manifests] == list(range(len(manifests)))
        assert {m["num_groups"] for m in manifests} == {len(manifests)}
        held = [task for m in manifests for task in m["tasks"]]
        assert sorted(held) == [entry["task"] for entry in tasks]
        for key in ("num_samples", "num_tokens", "num_loss_tokens"):
            assert sum(m[key] for m in manifests) == sum(entry[key] for entry in tasks)
        assert all(m["tasks"] and m["num_tokens"] > m["num_loss_tokens"] > 0 for m in manifests)
    header, first = (paths.partition / "partitions.csv").read_text("utf-8").splitlines()[:2]
    assert header.split(",")[:4] == ["task", "num_samples", "num_tokens", "num_loss_tokens"]
    assert first.split(",")[:4] == ["task-00", "10", "131", "31"]


def test_rawpca_goes_by_length_where_merit_goes_by_direction(paths: Artifacts) -> None:
    """Longer gradients change the raw partition and nothing of the cosine ones."""
    before = run("tiny_full", paths)
    gradients = np.load(paths.gradients / "gradients.npy")
    lengths = 2.0 ** np.arange(-6, 6, dtype=np.float32)  # powers of two leave cosines exact
    np.save(paths.gradients / "gradients.npy", gradients * lengths[:, None])
    after = run("tiny_full", paths)
    old, new = (json.loads(files["partitions.json"]) for files in (before, after))
    assert {key for key in old if old[key] != new[key]} == {"rawpca-2d"}


def test_a_manifest_names_the_base_and_the_mixture_it_is_for(paths: Artifacts) -> None:
    """All that a branch depends on: another base or another encoding changes every manifest."""
    before = run("tiny", paths)
    names = [name for name in before if name.startswith("manifests/")]
    found = [json.loads(before[name]) for name in names]
    encoded = folder_hash(paths.encoded)
    assert {(m["base_hash"], m["encoded_hash"]) for m in found} == {(BASE_HASH, encoded)}
    write_json(paths.base / "base.json", {"base_hash": "another"})
    for name, content in run("tiny", paths).items():
        assert (content == before[name]) == (name not in names), name


def test_gradients_of_other_tasks_are_refused(paths: Artifacts) -> None:
    write_json(paths.gradients / "tasks.json", {"tasks": ["another"]})
    with pytest.raises(MeritError, match=r"gradients: made for other tasks; run the gradients"):
        run("tiny", paths)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_gradient_without_direction_is_refused(paths: Artifacts, bad: float) -> None:
    file = paths.gradients / "gradients.npy"
    gradients = np.load(file)
    gradients[4] = bad
    np.save(file, gradients)
    with pytest.raises(MeritError, match=r"gradients\.npy: the gradient of task 4"):
        run("tiny", paths)
    assert not paths.partition.exists()

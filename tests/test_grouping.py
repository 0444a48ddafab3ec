"""`merit partition --gradients` and `merit extend`: files of one's own, no experiment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from merit.errors import MeritError
from merit.io.artifacts import read_json, write_json
from merit.method.gradients import Sketch
from merit.method.partition import merit_groups
from merit.method.similarity import cosine_matrix, inner_products, pca
from merit.partition.files import extend_files, partition_files
from merit.run.cli import main

NAMES = [f"task-{i}" for i in range(9)]
COUNTS = np.arange(5, 14)


@pytest.fixture
def rows(tmp_path: Path) -> np.ndarray:
    """Nine gradients in files of six, two and one, with their tasks."""
    gradients = np.random.default_rng(0).standard_normal((9, 50)).astype(np.float32)
    for name, part in (("all", slice(9)), ("old", slice(6)), ("new", slice(6, 8)), ("last", [8])):
        np.save(tmp_path / f"{name}.npy", gradients[part])
        entries = zip(np.array(NAMES)[part], COUNTS[part], strict=True)
        tasks = [{"task": str(t), "num_samples": int(n), "more": 1} for t, n in entries]
        write_json(tmp_path / f"{name}.json", tasks)
    return gradients


def partition(folder: Path, name: str, axes: int = 2) -> Path:
    partition_files(folder / f"{name}.npy", folder / f"{name}.json", axes, folder / f"by-{name}")
    return folder / f"by-{name}"


def extend(folder: Path, name: str, more: str, out: str) -> Path:
    extend_files(folder / name, folder / f"{more}.npy", folder / f"{more}.json", folder / out)
    return folder / out


def test_groups_are_those_of_the_method(rows: np.ndarray, tmp_path: Path) -> None:
    out = partition(tmp_path, "all")
    assert np.array_equal(np.load(out / "similarity.npy"), cosine_matrix(rows))
    embedding = pca(cosine_matrix(rows), 2).embedding
    assert np.array_equal(np.load(out / "embedding.npy"), embedding)
    groups, splits = merit_groups(embedding, COUNTS, NAMES, 2)
    stored = read_json(out / "tasks.json")
    assert [task["group"] for task in stored["tasks"]] == groups.tolist()
    assert_allclose([t["norm"] for t in stored["tasks"]], np.linalg.norm(rows, axis=1), rtol=1e-6)
    lines = (out / "groups.csv").read_text().splitlines()
    assert lines[:2] == ["task,num_samples,group", f"task-0,5,{groups[0]}"]
    assert len(read_json(out / "splits.json")) == len(splits) == 3


def test_extending_twice_equals_starting_again(rows: np.ndarray, tmp_path: Path) -> None:
    whole = partition(tmp_path, "all")
    partition(tmp_path, "old")
    extend(tmp_path, "by-old", "new", "more")
    found = extend(tmp_path, "more", "last", "most")
    for name in ("similarity", "embedding"):
        assert_allclose(np.load(found / f"{name}.npy"), np.load(whole / f"{name}.npy"), atol=1e-12)
    assert (found / "groups.csv").read_text() == (whole / "groups.csv").read_text()
    files = read_json(found / "tasks.json")["gradients"]
    assert [(f["file"], f["num_tasks"]) for f in files] == [
        *(("../old.npy", 6), ("../new.npy", 2), ("../last.npy", 1)),
    ]


def test_extending_by_m_takes_products_with_the_new_rows_alone(
    rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition(tmp_path, "old")
    shapes = []

    def counted(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        shapes.append((len(left), len(right)))
        return inner_products(left, right)

    monkeypatch.setattr("merit.method.similarity.inner_products", counted)
    extend(tmp_path, "by-old", "new", "more")
    assert shapes == [(2, 6), (2, 2)]


def test_names_alone_count_alike(rows: np.ndarray, tmp_path: Path) -> None:
    write_json(tmp_path / "all.json", NAMES)
    stored = read_json(partition(tmp_path, "all", 1) / "tasks.json")
    sizes = np.bincount([task["group"] for task in stored["tasks"]])
    assert sizes.tolist() == [4, 5]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({"tasks": []}, "expected a list of tasks, found dict"),
        (["a"], "1 tasks for the 9 rows"),
        (["a", 3], r"entry 2: found 3, expected a name or"),
        ([{"task": "a"}], r"entry 1: found \{'task': 'a'\}"),
        (["a"] * 9, "task 'a' is named twice"),
        ([{"task": n, "num_samples": 0} for n in NAMES], "'task-0' has 0 samples"),
    ],
)
def test_unusable_tasks_are_named(rows: np.ndarray, tmp_path: Path, tasks: Any, words: str) -> None:
    write_json(tmp_path / "all.json", tasks)
    with pytest.raises(MeritError, match=words):
        partition(tmp_path, "all")
    assert not (tmp_path / "by-all").exists()


def test_unusable_gradients_are_named(rows: np.ndarray, tmp_path: Path) -> None:
    for array, words in (
        (np.zeros(9), r"found float64 of shape \(9,\)"),
        (np.zeros((9, 2), dtype=int), "found int64 of shape"),
        (np.eye(9)[:, :5], "all.npy: the gradient of task 5 is zero or not finite"),
        (np.zeros((0, 5)), r"all.npy: found float64 of shape \(0, 5\)"),
        (np.array([["a"], [None]], dtype=object), "all.npy: truncated, or not a .npy array of"),
    ):
        np.save(tmp_path / "all.npy", array)
        with pytest.raises(MeritError, match=words):
            partition(tmp_path, "all")
    with (tmp_path / "all.npy").open("wb") as file:
        np.savez(file, rows)
    with pytest.raises(MeritError, match=r"all\.npy: an archive"):
        partition(tmp_path, "all")
    torch.save(torch.ones(9, 5), tmp_path / "all.npy")
    with pytest.raises(MeritError, match=r"all\.npy: an archive"):
        partition(tmp_path, "all")
    for content in (b"", rows.tobytes(), (tmp_path / "new.npy").read_bytes()[:200]):
        (tmp_path / "all.npy").write_bytes(content)
        with pytest.raises(MeritError, match=r"all\.npy: truncated, or not a .npy array"):
            partition(tmp_path, "all")
    (tmp_path / "all.npy").unlink()
    with pytest.raises(MeritError, match=r"all\.npy: file not found"):
        partition(tmp_path, "all")
    with pytest.raises(MeritError, match="--axes 4: 16 groups cannot be made of 6 tasks"):
        partition(tmp_path, "old", 4)


def test_what_does_not_fit_is_not_extended(rows: np.ndarray, tmp_path: Path) -> None:
    partition(tmp_path, "old")
    with pytest.raises(MeritError, match=r"task 'task-0' is in .*by-old already"):
        extend(tmp_path, "by-old", "old", "more")
    np.save(tmp_path / "new.npy", np.ones((2, 49), np.float32))
    with pytest.raises(MeritError, match=r"new.npy: found entries 49; .* of entries 50"):
        extend(tmp_path, "by-old", "new", "more")
    (tmp_path / "stage").mkdir()
    np.save(tmp_path / "stage/new.npy", np.ones((2, 50), np.float32))
    os.rename(tmp_path / "new.json", tmp_path / "stage/new.json")
    write_json(tmp_path / "stage/tasks.json", {"stride": 5})
    with pytest.raises(MeritError, match=r"found entries 50, stride 5; .* of entries 50:"):
        extend(tmp_path, "by-old", "stage/new", "more")
    write_json(tmp_path / "tasks.json", {"stride": 5, "base_hash": "one"})
    partition_files(tmp_path / "old.npy", tmp_path / "old.json", 2, tmp_path / "of-one")
    write_json(tmp_path / "stage/tasks.json", {"stride": 5, "base_hash": "another"})
    with pytest.raises(MeritError, match=r"found .*, base_hash another; .* of .*, base_hash one, "):
        extend(tmp_path, "of-one", "stage/new", "more")
    (tmp_path / "tasks.json").unlink()
    flipped, longer = rows[:6].copy(), rows[:6].copy()
    flipped[3] *= -1  # of the same length
    longer[3] *= 2
    for changed in (rows[1:7], rows[:5], flipped, longer, rows[:6].ravel()):
        np.save(tmp_path / "old.npy", changed)
        with pytest.raises(MeritError, match=r"old.npy: not the gradients that .*by-old was made"):
            extend(tmp_path, "by-old", "last", "more")
    with pytest.raises(
        MeritError, match=r"all.json: not a folder of `merit partition --gradients`"
    ):
        extend(tmp_path, "all.json", "last", "more")


def test_the_commands(
    rows: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        [
            "partition",
            "--gradients",
            "old.npy",
            "--tasks",
            "old.json",
            "--axes",
            "1",
            "--out",
            "one",
        ]
    )
    main(["extend", "one", "--gradients", "new.npy", "--tasks", "new.json", "--out", "two"])
    assert len(read_json(tmp_path / "two/tasks.json")["tasks"]) == 8
    for arguments, words in {
        "partition --gradients old.npy": "arguments are required: --tasks, --out",
        "extend one --gradients new.npy --tasks new.json --out two": "two: there already",
        "extend none --gradients new.npy --tasks new.json --out x": "none: not a folder of `merit",
    }.items():
        with pytest.raises(SystemExit) as exit_:
            main(arguments.split())
        assert exit_.value.code == 2
        assert words in capsys.readouterr().err


def test_the_page_s_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parent.parent / "docs" / "own-gradients.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, labels: torch.Tensor) -> Any:
            return SimpleNamespace(loss=self.weight[labels[0, 1]] ** 2)

    tasks = [[{"labels": torch.tensor([[0, i]])}] * 2 for i in range(2)]
    exec(code, {"model": Model(), "tasks": tasks})
    rows = np.load(tmp_path / "mine.npy")
    signs = Sketch(65_537).signs(0, 3).numpy()
    assert rows.shape == (2, 65_537)
    assert rows[:, :3].tolist() == [[2 * signs[0], 0, 0], [0, 2 * signs[1], 0]]

"""Checkpoints of one file and of shards: written row by row, read lazily, broken ones refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from merit.errors import MeritError
from merit.io.artifacts import atomic_folder, file_hash
from merit.io.checkpoint_files import INDEX, SINGLE, checkpoint_hash
from merit.io.checkpoint_writer import CheckpointWriter
from merit.io.checkpoints import DTYPES, Checkpoint, TensorInfo, check_same_tensors, save_tensors
from merit.io.rows import create_array
from merit.train.base import check_finite
from merit.train.model import load_model
from tests.conftest import Tiny

Tensors = dict[str, torch.Tensor]
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=6)
layouts = st.dictionaries(
    names.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(DTYPES)), shapes),
    min_size=1,
    max_size=7,
)


def tensors_of(layout: dict[str, tuple[str, tuple[int, ...]]], seed: int = 0) -> Tensors:
    """Random bytes of the given types."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, (dtype, shape) in layout.items():
        info = TensorInfo(DTYPES[dtype], shape)
        top = 2 if dtype == "BOOL" else 256
        raw = torch.randint(top, (info.num_bytes,), generator=generator, dtype=torch.uint8)
        made[name] = raw.view(info.dtype).reshape(shape)
    return made


def write(folder: Path, tensors: Tensors, max_shard_bytes: int = 10**9, rows: int = 2) -> None:
    """The last tensor first, a few rows at a time."""
    folder.mkdir(parents=True)
    layout = {name: TensorInfo(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with CheckpointWriter(folder, layout, max_shard_bytes) as writer:
        for name, tensor in reversed(tensors.items()):
            if tensor.ndim == 0:
                writer.write(name, tensor)
            for start in range(0, len(tensor) if tensor.ndim else 0, rows):
                writer.write(name, tensor[start : start + rows], start)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=60, deadline=None)
@given(layout=layouts)
def test_one_file_is_what_the_library_writes(
    layout: dict[str, tuple[str, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("one")
    tensors = tensors_of(layout)
    write(folder / "ours", tensors)
    save_tensors(tensors, folder / "theirs")
    assert (folder / "ours" / SINGLE).read_bytes() == (folder / "theirs").read_bytes()
    assert [path.name for path in (folder / "ours").iterdir()] == [SINGLE]


@settings(max_examples=60, deadline=None)
@given(layout=layouts, max_shard_bytes=st.integers(1, 300), data=st.data())
def test_shards_come_back(
    layout: dict[str, tuple[str, tuple[int, ...]]],
    max_shard_bytes: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """By our reader, by rows, and by the library; no shard is larger than asked for."""
    folder = tmp_path_factory.mktemp("shards") / "x"
    tensors = tensors_of(layout)
    write(folder, tensors, max_shard_bytes)
    found = Checkpoint(folder)
    assert found.names == sorted(tensors)
    for name, tensor in tensors.items():
        assert found.info(name) == (tensor.dtype, tuple(tensor.shape))
        assert raw(found.read(name)) == raw(tensor)
    for name, tensor in ((n, t) for n, t in tensors.items() if t.ndim):
        start = data.draw(st.integers(0, len(tensor)))
        stop = data.draw(st.integers(start, len(tensor)))
        assert raw(found.read(name, start, stop)) == raw(tensor[start:stop])
    total = sum(tensor.nbytes for tensor in tensors.values())
    files = {path.name for path in folder.glob("*.safetensors")}
    assert (files == {SINGLE}) == (not (folder / INDEX).exists())
    assert files == {SINGLE} or total > max_shard_bytes
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(tensors, SINGLE)}
    if files != {SINGLE}:
        index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == total
    held: Tensors = {}
    for file in sorted(files):
        part = load_file(folder / file)
        assert sum(t.nbytes for t in part.values()) <= max_shard_bytes or len(part) == 1
        assert {name for name, at in index["weight_map"].items() if at == file} == set(part)
        held |= part
    assert {name: raw(t) for name, t in held.items()} == {n: raw(t) for n, t in tensors.items()}


def test_a_tensor_that_is_not_written_whole_is_no_checkpoint(tmp_path: Path) -> None:
    layout = {"a": TensorInfo(torch.float32, (2, 3))}

    def half(rows: torch.Tensor) -> None:
        with atomic_folder(tmp_path / "out") as folder, CheckpointWriter(folder, layout) as writer:
            writer.write("a", rows)

    with pytest.raises(ValueError, match=r"^a: 12 bytes written of 24$"):
        half(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"^a: torch.float64 in place of torch.float32$"):
        half(torch.zeros(2, 3, dtype=torch.float64))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_gets_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first byte; and by safetensors, which has an error of its own."""

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    path = tmp_path / "model.safetensors"
    usage = shutil.disk_usage(tmp_path)._replace(free=7)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MeritError, match="no space left on the disk: the checkpoint takes"):
        write(tmp_path / "out", {"a": torch.zeros(2)})
    monkeypatch.setattr("merit.io.checkpoints.save_file", full)
    with pytest.raises(MeritError, match=rf"^{path}: cannot be .*error 28.*; 0\.00 GB are free"):
        save_tensors({"a": torch.ones(3)}, path)


def test_an_array_of_zeros_is_the_file_that_numpy_saves(tmp_path: Path) -> None:
    array = create_array(tmp_path / "a.npy", np.dtype(np.int32), (2, 3))
    array[1] = 7
    array.flush()
    np.save(tmp_path / "b.npy", np.array([[0, 0, 0], [7, 7, 7]], dtype=np.int32))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert len(create_array(tmp_path / "c.npy", np.dtype(np.int32), (0,))) == 0


# --- what is refused ------------------------------------------------------------------------------

BASE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4), "c": torch.zeros(5)}
SHARD1, SHARD2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """a and b in the first shard, c in the second."""
    write(tmp_path / "model", BASE, max_shard_bytes=40)
    assert set(load_file(tmp_path / "model" / SHARD1)) == {"a", "b"}
    return tmp_path / "model"


def reindex(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Changes the index of a folder."""

    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return apply


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(share * path.stat().st_size))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no shard": (lambda f: (f / SHARD2).unlink(), f"/{SHARD2}: shard not found"),
    "cut": (lambda f: cut(f / SHARD2, 0.99), f"/{SHARD2}: truncated or not a safetensors file"),
    "unlisted shard": (
        reindex(lambda i: i["weight_map"].pop("c")),
        f"/{INDEX}: shard {SHARD2} is there, but the index does not name it",
    ),
    "unlisted tensor": (
        reindex(lambda i: i["weight_map"].pop("b")),
        f"/{SHARD1}: tensor 'b' is not one that {INDEX} says lies there",
    ),
    "no tensor": (
        reindex(lambda i: i["weight_map"].update(d=SHARD2)),
        f"/{SHARD2}: tensor 'd' is missing, {INDEX} says it lies there",
    ),
    "elsewhere": (
        reindex(lambda i: i["weight_map"].update(c="../x.safetensors")),
        f"/{INDEX}: shard '../x.safetensors' does not lie in the folder itself",
    ),
    "no map": (reindex(lambda i: i.pop("weight_map")), "key `weight_map` .* is missing"),
    "no JSON": (lambda f: (f / INDEX).write_text("{"), f"/{INDEX}: not valid JSON"),
    "two": (lambda f: save_tensors(BASE, f / SINGLE), f"holds both {SINGLE} and {INDEX}"),
    "no file": (
        lambda f: [path.unlink() for path in f.iterdir()],
        f"/{SINGLE}: checkpoint not found",
    ),
    "no folder": (shutil.rmtree, "/model: no checkpoint here"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_refused_by_name(sharded: Path, kind: str) -> None:
    assert dict(Checkpoint(sharded).items())["c"].tolist() == [0.0] * 5
    break_it, message = BROKEN[kind]
    break_it(sharded)
    with pytest.raises(MeritError, match=message) as caught:
        Checkpoint(sharded)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_cut_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    save_tensors(BASE, tmp_path / "x.safetensors")
    found = Checkpoint(tmp_path / "x.safetensors")
    os.truncate(tmp_path / "x.safetensors", 260)
    with pytest.raises(MeritError, match=r"x\.safetensors: the file became shorter"):
        dict(found.items())


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        (BASE | {"a": torch.zeros(3, 2)}, r"tensor 'a' has shape \(3, 2\), the base .* \(2, 3\)"),
        (BASE | {"d": torch.zeros(1)}, "tensor 'd' does not exist in the base .*/base"),
        ({"a": BASE["a"]}, r"missing \['b', 'c'\], not expected \[\]"),
        (BASE | {"a": BASE["a"].bfloat16()}, "tensor 'a' is torch.bfloat16, the base .* torch"),
        (BASE | {"a": BASE["a"].int()}, "tensor 'a' is torch.int32, the base .* torch"),
    ],
)
def test_a_foreign_branch_is_refused(tmp_path: Path, branch: Tensors, message: str) -> None:
    base, found = (tmp_path / f"{name}.safetensors" for name in ("base", "branch"))
    save_tensors(BASE, base)
    save_tensors(branch, found)
    with pytest.raises(MeritError, match=rf"/branch\.safetensors: .*{message}"):
        check_same_tensors(Checkpoint(found), Checkpoint(base), set(BASE))


def test_a_wider_type_than_the_base_s_passes(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_tensors({name: tensor.bfloat16() for name, tensor in BASE.items()}, base)
    save_tensors(BASE, tmp_path / "branch.safetensors")
    check_same_tensors(Checkpoint(tmp_path / "branch.safetensors"), Checkpoint(base), set(BASE))


def test_the_hash_of_one_file_is_the_file_s_and_shards_have_one(sharded: Path) -> None:
    one = sharded.parent / "one"
    write(one, BASE)
    assert checkpoint_hash(one) == checkpoint_hash(one / SINGLE) == file_hash(one / SINGLE)
    before = checkpoint_hash(sharded)
    shutil.copytree(sharded, sharded.parent / "copy")
    assert checkpoint_hash(sharded.parent / "copy") == before != checkpoint_hash(one)
    content = bytearray((sharded / SHARD2).read_bytes())
    content[-1] ^= 1
    (sharded / SHARD2).write_bytes(content)
    assert checkpoint_hash(sharded) != before


# --- models ---------------------------------------------------------------------------------------


def test_a_model_whose_file_is_cut_or_lacks_a_tensor_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    path = tmp_path / SINGLE
    found = load_model(tmp_path)
    for name, parameter in tiny.model.named_parameters():
        assert torch.equal(found.get_parameter(name), parameter), name
    tensors = dict(Checkpoint(path).items())
    tensors.popitem()
    save_tensors(tensors, path)
    with pytest.raises(MeritError, match=r"tensors do not match config\.json: missing"):
        load_model(tmp_path)
    cut(path, 0.5)
    with pytest.raises(MeritError, match="the model cannot be read"):
        load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(MeritError, match=r"no model here \(config.json is missing\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_base_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    save_tensors(BASE, tmp_path / SINGLE)
    check_finite(tmp_path, "the base of tiny")
    save_tensors(BASE | {"b": torch.tensor([1.0, bad])}, tmp_path / SINGLE)
    with pytest.raises(MeritError, match=r"^the base of tiny: tensor 'b' is not"):
        check_finite(tmp_path, "the base of tiny")

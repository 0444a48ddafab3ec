"""Whatever happens to a file, its reader gives the right value or one line that names the file."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from public_fixtures import IMAGE
from safetensors.torch import load, save

from merit.config.data import Columns
from merit.config.settings import read_yaml
from merit.data import parquet
from merit.data.examples import read_examples
from merit.data.images import ImageFinder, image_size, load_image
from merit.data.sources.own import source_of
from merit.errors import MeritError
from merit.eval.answering.question_images import Picture
from merit.eval.questions import read_questions
from merit.io.adapters import CONFIG, WEIGHTS, Adapter
from merit.io.artifacts import read_array, read_jsonl
from merit.io.checkpoints import Checkpoint
from merit.partition.files import read_rows

TENSORS = {"m.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([1, 2])}
FACTORS = {f"base_model.model.m.lora_{s}.weight": torch.ones(*d) for s, d in
           (("A", (1, 3)), ("B", (2, 1)))}  # fmt: skip
ADAPTER = {"peft_type": "LORA", "lora_alpha": 2, "alpha_pattern": {"m": 4}}
EXAMPLE = {
    "id": "é",
    "task": "t",
    "messages": [{"role": "user", "content": "q\U0001f600"}, {"role": "assistant", "content": "a"}],
    "images": [],
}
LINES = "".join(json.dumps({**EXAMPLE, "id": str(i)}) + "\n" for i in range(3)).encode()


def picture(kind: str, **more: Any) -> bytes:
    buffer, pixels = io.BytesIO(), np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(pixels).save(buffer, kind, **more)
    return buffer.getvalue()


def jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("JPEG", exif=exif)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.png", picture("PNG"))
    return buffer.getvalue()


def table() -> bytes:
    buffer, images = io.BytesIO(), [{"bytes": picture("PNG"), "path": "é"}] * 2
    columns = {"prompt": ["q", "é"], "completion": ["a", "b"], "image": pa.array(images, IMAGE)}
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(6, dtype=np.float32).reshape(2, 3))
    return buffer.getvalue()


def own(path: Path) -> list[Any]:
    folder, source = source_of(path, Columns())
    images = ImageFinder(folder, folder)
    return [source.convert(r, images) for r in source.records(folder) if not r.problem and r.task]


def adapter(path: Path) -> list[Any]:
    base = path.parent / "base.safetensors"
    base.write_bytes(save(TENSORS))
    for name, content in ((WEIGHTS, save(FACTORS)), (CONFIG, json.dumps(ADAPTER).encode())):
        if name != path.name:
            (path.parent / name).write_bytes(content)
    found = Adapter(path.parent, Checkpoint(base), lambda names: {name: name for name in names})
    return [found.read(name).tolist() for name in found.names]


def gradients(path: Path) -> Any:
    tasks = path.parent / "tasks.json"
    tasks.write_text('["a", "b"]')
    return read_rows(path, tasks).gradients.tolist()


def tensors(path: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in sorted(Checkpoint(path).items())}


def by_library(content: bytes) -> Any:
    return {name: tensor.tolist() for name, tensor in sorted(load(content).items())}


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


CELL = base64.b64encode(picture("PNG")).decode()
SCORES = b'method,seed,benchmark,scores\nbase,,b,"0110"\nm,1,b,"1/3 1 0 0"\n'
# name of the file -> a valid one, its reader, and another reader that must agree
READERS: dict[str, tuple[bytes, Callable[[Path], Any], Callable[[bytes], Any] | None]] = {
    "examples.jsonl": (LINES, read_examples, None),
    "rows.jsonl": (LINES, read_jsonl, lambda b: [json.loads(x) for x in b.splitlines()]),
    "own.jsonl": (LINES, own, None),
    "own.json": (b"[" + LINES.strip().replace(b"\n", b",") + b"]", own, None),
    "own.parquet": (table(), own, None),
    "image.parquet": (table(), lambda p: load_image(p / "1"), None),
    "rows.parquet": (table(), lambda p: list(parquet.rows(p)), None),
    "x.png": (picture("PNG"), load_image, None),
    "x.jpg": (jpeg(), load_image, None),
    "size.jpg": (jpeg(), image_size, None),
    "x.tif": (picture("TIFF"), load_image, None),
    "x.zip": (zipped(), lambda p: load_image(p / "x.png"), None),
    "x.yaml": (b'a: {b: [1, "\xc3\xa9"], c: 2020-01-01}\n', read_yaml, yaml.safe_load),
    "x.safetensors": (save(TENSORS), tensors, by_library),
    WEIGHTS: (save(FACTORS), adapter, None),
    CONFIG: (json.dumps(ADAPTER).encode(), adapter, None),
    "x.npy": (array(), read_array, lambda b: np.load(io.BytesIO(b))),
    "rows.npy": (array(), gradients, None),
    "cells.tsv": (f"index\timage\n7\t{CELL}\n".encode(), lambda p: Picture(p, "7").open(), None),
    "scores.csv": (SCORES, read_questions, None),
}


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes changed, cut out, cut off, doubled or put in."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.sampled_from([0, 1, 2, 8, 10**6])))
        words = [b"", b"\x00", b"\xff", b'"', b"[", b"{}", b"-1", b"null", b"\\ud800", b"9" * 30]
        content = content[:start] + draw(st.sampled_from(words)) + content[stop:]
    return content


@pytest.mark.filterwarnings("ignore")  # Pillow's, of pictures that claim many pixels
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_right_value_or_one_line_that_names_the_file(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    whole, read, reference = READERS[name]
    path = tmp_path / name
    path.write_bytes(whole)
    read(path)
    content = data.draw(damage(whole))
    path.write_bytes(content)
    refusal = ""
    try:
        found = read(path)
    except MeritError as error:
        refusal = str(error)
    if refusal:
        assert len(refusal.splitlines()) == 1
        assert name in refusal or name.startswith("own.")  # a bad record's reader adds it
    elif reference is not None:
        # repr: NaN equals itself there, and YAML's keys may be numbers or dates
        assert repr(plain(found)) == repr(plain(reference(content)))

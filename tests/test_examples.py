"""The canonical example and its images: what is written comes back, what is broken is named."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from public_fixtures import IMAGE, pack, save_table

from merit.data.examples import Example, make_example, read_examples
from merit.data.images import has_image, image_size, load_image
from merit.errors import MeritError
from merit.eval.answering.question_images import Picture
from merit.io.artifacts import write_jsonl
from merit.train.encode import task_examples

GOOD: dict[str, Any] = {
    "id": "a-0",
    "task": "a",
    "messages": [
        {"role": "user", "content": "<image>\nwhat is it ?"},
        {"role": "assistant", "content": "a star ."},
    ],
    "images": ["images/x.png"],
}
USER, ASSISTANT = GOOD["messages"]


def test_an_example_comes_back_as_it_was(tmp_path: Path) -> None:
    turns = [("what is it ?", "a star ."), ("which color ?", "red .")]
    example = make_example("a-0", "a", turns, ("images/x.png", "images/y.png"))
    assert [m["content"] for m in example.messages] == [
        *("<image>\n<image>\nwhat is it ?", "a star .", "which color ?", "red .")
    ]
    write_jsonl(tmp_path / "a.jsonl", [example.to_json(), GOOD])
    found = read_examples(tmp_path / "a.jsonl")
    assert found == [example, Example("a-0", "a", (USER, ASSISTANT), ("images/x.png",))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**GOOD, "image": "x.png"}, "found .*'image', 'images'"),
        ({**GOOD, "messages": []}, "turn"),
        ({**GOOD, "messages": [USER, USER]}, r"messages\[1\].*'assistant'"),
        ({**GOOD, "messages": [USER, {"role": "assistant", "content": 3}]}, r"messages\[1\]"),
        ({**GOOD, "messages": [USER, ASSISTANT, USER]}, "assistant"),
        ({**GOOD, "images": [1]}, "paths"),
        ({**GOOD, "images": ["x", "y"]}, "1 .*2 images"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [GOOD, line, GOOD])
    with pytest.raises(MeritError, match=rf"a\.jsonl, line 2: .*{message}"):
        read_examples(path)


def test_a_file_without_examples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(MeritError, match=r"a\.jsonl: zero examples"):
        read_examples(tmp_path / "a.jsonl")


# --- images -------------------------------------------------------------------------------------


def png() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def seen(kind: str) -> tuple[bytes, list[list[list[int]]]]:
    """A picture of 2 x 1 pixels as a file, and its rows as a viewer shows them."""
    buffer, black, white, red = io.BytesIO(), [0] * 3, [255] * 3, [255, 0, 0]
    match kind:
        case "alpha":
            image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
            image.putpixel((1, 0), (255, 0, 0, 255))
            image.save(buffer, "PNG")
            return buffer.getvalue(), [[white, red]]
        case "half":
            Image.new("LA", (2, 1), (0, 128)).save(buffer, "PNG")
            return buffer.getvalue(), [[[127] * 3] * 2]
        case "palette":
            image = Image.new("P", (2, 1))
            image.putpalette([255, 0, 0, 0, 0, 0])
            image.putpixel((1, 0), 1)
            image.save(buffer, "PNG", transparency=1)
            return buffer.getvalue(), [[red, white]]
        case "one colour":
            image = Image.new("RGB", (2, 1))
            image.putpixel((0, 0), (255, 0, 0))
            image.save(buffer, "PNG", transparency=(0, 0, 0))
            return buffer.getvalue(), [[red, white]]
        case "deep":
            Image.fromarray(np.array([[0x8000, 0xFFFF]], dtype=np.uint16)).save(buffer, "PNG")
            return buffer.getvalue(), [[[128] * 3, white]]
        case "tilted":
            image = Image.new("L", (16, 8), 255)
            image.paste(0, (0, 0, 8, 8))
            exif = Image.Exif()
            exif[0x0112] = 6  # a quarter turn clockwise: left becomes top
            image.save(buffer, "JPEG", exif=exif, quality=100)
            return buffer.getvalue(), [[black] * 8] * 8 + [[white] * 8] * 8
        case _:
            Image.new("1", (2, 1), 1).save(buffer, "PNG")
            return buffer.getvalue(), [[white, white]]


@pytest.mark.parametrize(
    "kind", ["alpha", "half", "palette", "one colour", "deep", "tilted", "bits"]
)
def test_an_image_is_read_as_a_viewer_shows_it(tmp_path: Path, kind: str) -> None:
    """However it is stored: a file, in an archive, in a row of parquet, in a cell of a TSV."""
    content, expected = seen(kind)
    (tmp_path / "x.png").write_bytes(content)
    pack(tmp_path / "x.zip", {"x.png": content})
    rows = [{"bytes": content, "path": None}]
    save_table(tmp_path / "x.parquet", {"image": pa.array(rows, IMAGE)}, 1)
    cell = base64.b64encode(content).decode()
    (tmp_path / "x.tsv").write_text(f"index\timage\n7\t{cell}\n")
    for path in ("x.png", "x.zip/x.png", "x.parquet/0"):
        assert np.asarray(load_image(tmp_path / path)).tolist() == expected
        assert image_size(tmp_path / path) == (len(expected[0]), len(expected))
    for picture in (Picture(tmp_path / "x.tsv", "7"), Picture(tmp_path / "x.png")):
        assert np.asarray(picture.open()).tolist() == expected
        assert picture.size() == (len(expected[0]), len(expected))


def test_a_member_of_an_archive_is_the_same_image_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png())
    Image.new("L", (2, 2), 7).save(tmp_path / "grey.png")
    assert np.asarray(load_image(tmp_path / "grey.png")).tolist() == [[[7, 7, 7]] * 2] * 2
    archive = tmp_path / "images.zip"
    pack(archive, {"x.png": png(), "deeper/y.png": png()})
    expected = np.asarray(load_image(tmp_path / "x.png"))
    for member in ("x.png", "deeper/y.png"):
        assert has_image(archive / member)
        assert np.array_equal(np.asarray(load_image(archive / member)), expected)
    assert not has_image(archive / "z.png")
    assert not has_image(tmp_path / "absent.zip" / "x.png")
    (tmp_path / "folder.zip").mkdir()  # a folder that is called like an archive
    (tmp_path / "folder.zip" / "x.png").write_bytes(png())
    assert load_image(tmp_path / "folder.zip" / "x.png").size == (56, 56)


def test_an_archive_that_is_another_file_is_opened_again(tmp_path: Path) -> None:
    pack(archive := tmp_path / "images.zip", {"x.png": png()})
    load_image(archive / "x.png")
    pack(tmp_path / "new.zip", {"z.png": png()})
    (tmp_path / "new.zip").replace(archive)
    assert load_image(archive / "z.png").size == (56, 56)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "there.zip", {"x.png": png()})
    for path, message in (
        ("x.png", r"x\.png: "),
        ("images.zip/x.png", r"images\.zip: .*'x\.png'"),
        ("there.zip/y.png", r"there\.zip: .*'y\.png'"),
    ):
        with pytest.raises(MeritError, match=message):
            load_image(tmp_path / path)


# --- the mixture as the encode stage reads it ---------------------------------------------------


def test_an_image_that_is_gone_is_named_with_its_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{**GOOD, "task": "a"}] * 2)
    pack(tmp_path / "images.zip", {"x.png": png()})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(png())
    assert [example.task for example in task_examples(tmp_path, "a")] == ["a", "a"]
    write_jsonl(tmp_path / "b.jsonl", [{**GOOD, "task": "b", "images": ["images.zip/y.png"]}])
    with pytest.raises(MeritError, match=r"b\.jsonl, line 1: .*images\.zip/y\.png"):
        list(task_examples(tmp_path, "b"))

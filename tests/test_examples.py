"""The canonical example: what is written comes back, and what is broken is named by its line."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from merit.data.examples import Example, make_example, read_examples
from merit.data.images import has_image, image_size, load_image
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json, write_json, write_jsonl
from merit.train.encode import task_examples, task_names

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
        "<image>\n<image>\nwhat is it ?", "a star .", "which color ?", "red .",
    ]  # fmt: skip
    write_jsonl(tmp_path / "a.jsonl", [example.to_json(), GOOD])
    found = read_examples(tmp_path / "a.jsonl")
    assert found == [example, Example("a-0", "a", (USER, ASSISTANT), ("images/x.png",))]


MALFORMED = {
    "not JSON": ('{"id": "a-0",', "not valid JSON"),
    "an empty line": ("", "not valid JSON"),
    "not an object": ("[1, 2]", "found list"),
    "a key is missing": (
        {k: v for k, v in GOOD.items() if k != "task"},
        r"expected the keys .*'task'.*, found \['id', 'images', 'messages'\]",
    ),
    "a key is unknown": ({**GOOD, "image": "x.png"}, "found .*'image', 'images'"),
    "no messages": ({**GOOD, "messages": []}, "at least one turn"),
    "messages are text": ({**GOOD, "messages": "hello"}, "at least one turn"),
    "roles do not alternate": ({**GOOD, "messages": [USER, USER]}, r"messages\[1\].*'assistant'"),
    "the assistant begins": ({**GOOD, "messages": [ASSISTANT, USER]}, r"messages\[0\].*'user'"),
    "a role is unknown": (
        {**GOOD, "messages": [{"role": "system", "content": "be kind"}, ASSISTANT]},
        r"messages\[0\]",
    ),
    "a message is not an object": ({**GOOD, "messages": ["hi", ASSISTANT]}, r"messages\[0\]"),
    "content is no text": (
        {**GOOD, "messages": [USER, {"role": "assistant", "content": 3}]},
        r"messages\[1\]",
    ),
    "the last answer is missing": ({**GOOD, "messages": [USER, ASSISTANT, USER]}, "assistant's"),
    "images are text": ({**GOOD, "images": "images/x.png"}, "list of paths"),
    "an image is no path": ({**GOOD, "images": [1]}, "list of paths"),
    "more marks than images": ({**GOOD, "images": []}, "1 `<image>` marks but 0 images"),
    "more images than marks": ({**GOOD, "images": ["x", "y"]}, "1 `<image>` marks but 2 images"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_line_is_named(tmp_path: Path, case: str) -> None:
    line, message = MALFORMED[case]
    text = line if isinstance(line, str) else json.dumps(line)
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{text}\n{json.dumps(GOOD)}\n", encoding="utf-8")
    with pytest.raises(MeritError, match=rf"a\.jsonl, line 2: .*{message}"):
        read_examples(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "file not found"), (b"", "zero examples"), (b"\xff\xfe{}", "not UTF-8 text")],
)
def test_a_file_without_examples_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MeritError, match=rf"a\.jsonl: {message}"):
        read_examples(path)


# --- images -------------------------------------------------------------------------------------


def png() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_an_image_is_read_as_rgb(tmp_path: Path) -> None:
    Image.new("L", (2, 2), 7).save(tmp_path / "grey.png")
    assert np.asarray(load_image(tmp_path / "grey.png")).tolist() == [[[7, 7, 7]] * 2] * 2


@pytest.mark.parametrize("kept", [0, 10, 40, 0.5, 0.99])
def test_a_truncated_image_is_refused(tmp_path: Path, kept: float) -> None:
    path, content = tmp_path / "x.png", png()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(MeritError, match=r"x\.png: not a readable image"):
        load_image(path)


@pytest.mark.parametrize("read", [load_image, image_size])
def test_a_header_that_claims_a_billion_pixels_is_refused(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, format="BMP")
    content = bytearray(buffer.getvalue())
    content[18:26] = struct.pack("<ii", 40_000, 40_000)
    (tmp_path / "x.bmp").write_bytes(content)
    with pytest.raises(MeritError, match=r"x\.bmp: not a readable image .*decompression bomb"):
        read(tmp_path / "x.bmp")


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeritError, match=r"x\.png: image not found"):
        load_image(tmp_path / "x.png")


# --- images in archives -------------------------------------------------------------------------


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def test_a_member_of_an_archive_is_the_same_image_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png())
    archive = pack(tmp_path / "images.zip", {"x.png": png(), "deeper/y.png": png()})
    expected = np.asarray(load_image(tmp_path / "x.png"))
    for member in ("x.png", "deeper/y.png"):
        assert has_image(archive / member)
        assert np.array_equal(np.asarray(load_image(archive / member)), expected)
    assert not has_image(archive / "z.png")
    assert not has_image(tmp_path / "absent.zip" / "x.png")


def test_a_folder_that_is_called_like_an_archive_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images.zip").mkdir()
    (tmp_path / "images.zip" / "x.png").write_bytes(png())
    assert has_image(tmp_path / "images.zip" / "x.png")
    assert load_image(tmp_path / "images.zip" / "x.png").size == (56, 56)


def test_an_archive_is_opened_once_and_anew_when_it_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    opener = zipfile.ZipFile

    def spy(path: Path) -> zipfile.ZipFile:
        opened.append(path)
        return opener(path)

    archive = pack(tmp_path / "images.zip", {"x.png": png(), "y.png": png()})
    monkeypatch.setattr(zipfile, "ZipFile", spy)
    for member in ("x.png", "y.png", "x.png"):
        load_image(archive / member)
    assert opened == [archive]
    monkeypatch.undo()
    pack(tmp_path / "new.zip", {"z.png": png()}).replace(archive)
    assert load_image(archive / "z.png").size == (56, 56)


def test_a_missing_archive_is_named_with_the_member(tmp_path: Path) -> None:
    with pytest.raises(MeritError, match=r"images\.zip: archive not found; .*'x\.png'"):
        load_image(tmp_path / "images.zip" / "x.png")


def test_a_missing_member_is_named_with_the_archive(tmp_path: Path) -> None:
    archive = pack(tmp_path / "images.zip", {"x.png": png()})
    with pytest.raises(MeritError, match=r"images\.zip: image 'y\.png' not found in it"):
        load_image(archive / "y.png")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_archive_is_refused(tmp_path: Path, kept: float) -> None:
    archive = pack(tmp_path / "images.zip", {"x.png": png()})
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    for read in (load_image, has_image):
        with pytest.raises(MeritError, match=r"images\.zip: not a readable archive .*'x\.png'"):
            read(archive / "x.png")


def test_a_member_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "images.zip", {"x.png": png()})
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(MeritError, match=r"images\.zip: image 'x\.png' cannot be read.*CRC"):
        load_image(archive / "x.png")


def test_a_member_that_is_no_whole_image_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "images.zip", {"x.png": png()[:2000], "y.png": b"not a picture"})
    for member in ("x.png", "y.png"):
        with pytest.raises(MeritError, match=rf"images\.zip/{member}: not a readable image"):
            load_image(archive / member)


# --- the mixture as the encode stage reads it ---------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> Artifacts:
    paths = Artifacts("tiny", tmp_path)
    write_json(paths.mixture / "tasks.json", [{"task": "a"}, {"task": "b"}])
    for task in ("a", "b"):
        write_jsonl(paths.mixture / f"{task}.jsonl", [{**GOOD, "task": task}] * 2)
    (paths.mixture / "images").mkdir()
    (paths.mixture / "images" / "x.png").write_bytes(png())
    return paths


def read_mixture(mixture: Path) -> tuple[list[str], list[Example]]:
    tasks = task_names(mixture)
    return tasks, [example for task in tasks for example in task_examples(mixture, task)]


def test_the_mixture_is_read_task_by_task(paths: Artifacts) -> None:
    tasks, examples = read_mixture(paths.mixture)
    assert tasks == ["a", "b"]
    assert [example.task for example in examples] == ["a", "a", "b", "b"]


def test_a_missing_image_is_named_with_the_line_that_asks_for_it(paths: Artifacts) -> None:
    rows = [{**GOOD, "task": "b"}, {**GOOD, "task": "b", "images": ["images/y.png"]}]
    write_jsonl(paths.mixture / "b.jsonl", rows)
    with pytest.raises(MeritError, match=r"b\.jsonl, line 2: image .*images/y\.png does not exist"):
        read_mixture(paths.mixture)


def test_a_missing_member_is_named_with_the_line_that_asks_for_it(paths: Artifacts) -> None:
    pack(paths.mixture / "images.zip", {"x.png": png()})
    rows = [{**GOOD, "task": "b", "images": [f"images.zip/{name}.png"]} for name in "xy"]
    write_jsonl(paths.mixture / "b.jsonl", rows)
    message = r"b\.jsonl, line 2: image .*images\.zip/y\.png does not exist"
    with pytest.raises(MeritError, match=message):
        read_mixture(paths.mixture)


def test_another_tasks_example_is_named(paths: Artifacts) -> None:
    write_jsonl(paths.mixture / "b.jsonl", [GOOD])
    with pytest.raises(MeritError, match=r"b\.jsonl, line 1: key `task`: found 'a', expected 'b'"):
        read_mixture(paths.mixture)


def test_a_task_without_examples_is_refused(paths: Artifacts) -> None:
    write_jsonl(paths.mixture / "b.jsonl", [])
    with pytest.raises(MeritError, match=r"b\.jsonl: zero examples"):
        read_mixture(paths.mixture)


def test_a_task_listed_twice_is_refused(paths: Artifacts) -> None:
    path = paths.mixture / "tasks.json"
    write_json(path, [*read_json(path), {"task": "a"}])
    with pytest.raises(MeritError, match=r"tasks\.json: a task is listed twice"):
        read_mixture(paths.mixture)

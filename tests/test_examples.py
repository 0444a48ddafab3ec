"""The canonical example: what is written comes back, and what is broken is named by its line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from merit.data.examples import Example, load_image, make_example, read_examples
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json, write_json, write_jsonl
from merit.stages.encode import read_mixture

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


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeritError, match=r"x\.png: image not found"):
        load_image(tmp_path / "x.png")


# --- the mixture as the encode stage reads it ---------------------------------------------------


@pytest.fixture
def mixture(tmp_path: Path) -> Artifacts:
    paths = Artifacts("tiny", tmp_path)
    write_json(paths.data / "tasks.json", [{"task": "a"}, {"task": "b"}])
    for task in ("a", "b"):
        write_jsonl(paths.data / "mixture" / f"{task}.jsonl", [{**GOOD, "task": task}] * 2)
    (paths.data / "images").mkdir()
    (paths.data / "images" / "x.png").write_bytes(png())
    return paths


def test_the_mixture_is_read_task_by_task(mixture: Artifacts) -> None:
    tasks, examples = read_mixture(mixture.data)
    assert tasks == ["a", "b"]
    assert [example.task for example in examples] == ["a", "a", "b", "b"]


def test_a_missing_image_is_named_with_the_line_that_asks_for_it(mixture: Artifacts) -> None:
    rows = [{**GOOD, "task": "b"}, {**GOOD, "task": "b", "images": ["images/y.png"]}]
    write_jsonl(mixture.data / "mixture" / "b.jsonl", rows)
    with pytest.raises(MeritError, match=r"b\.jsonl, line 2: image .*images/y\.png does not exist"):
        read_mixture(mixture.data)


def test_another_tasks_example_is_named(mixture: Artifacts) -> None:
    write_jsonl(mixture.data / "mixture" / "b.jsonl", [GOOD])
    with pytest.raises(MeritError, match=r"b\.jsonl, line 1: key `task`: found 'a', expected 'b'"):
        read_mixture(mixture.data)


def test_a_task_without_examples_is_refused(mixture: Artifacts) -> None:
    write_jsonl(mixture.data / "mixture" / "b.jsonl", [])
    with pytest.raises(MeritError, match=r"b\.jsonl: zero examples"):
        read_mixture(mixture.data)


def test_a_task_listed_twice_is_refused(mixture: Artifacts) -> None:
    write_json(
        mixture.data / "tasks.json", [*read_json(mixture.data / "tasks.json"), {"task": "a"}]
    )
    with pytest.raises(MeritError, match=r"tasks\.json: a task is listed twice"):
        read_mixture(mixture.data)

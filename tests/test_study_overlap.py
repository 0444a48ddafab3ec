"""Overlap of training data and benchmarks: what counts as the same, and the table of it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from merit.config import Evaluation
from merit.data.examples import make_example
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.eval.studies import Overlap
from merit.eval.studies.overlap.contamination import (
    NEAR,
    difference_hash,
    near,
    normalised,
    pixel_hash,
    question_parts,
)
from merit.eval.studies.overlap.measure import measure, read_questions
from merit.io.artifacts import Artifacts, write_json, write_jsonl
from tests.test_lm_public import repository
from tests.tsv import encoded, write_tsv


def scene(seed: int, side: int = 64) -> Image.Image:
    """A picture of smooth blots, as photographs are and noise is not."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def decoded(image: Image.Image, **options: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded(image, **options))))


# --- what is the same -----------------------------------------------------------------------------


def test_pixels_decide_not_the_file() -> None:
    image = scene(1)
    tiff = decoded(image, format="TIFF")
    assert pixel_hash(tiff) == pixel_hash(image)
    assert pixel_hash(scene(2)) != pixel_hash(image)
    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert wide.tobytes() == high.tobytes()
    assert pixel_hash(wide) != pixel_hash(high)


def test_an_image_compressed_or_resized_is_near_itself_and_no_other() -> None:
    images = [scene(seed) for seed in range(50)]
    rows = np.stack([difference_hash(image) for image in images])
    worse = decoded(images[7], format="JPEG", quality=60)
    assert near(difference_hash(worse), rows).tolist() == [7]
    assert near(difference_hash(images[9].resize((150, 150))), rows).tolist() == [9]
    assert near(difference_hash(scene(99)), rows).tolist() == []
    plain = difference_hash(Image.new("RGB", (30, 30), "white"))
    assert near(plain, plain[None]).tolist() == []  # a plain image is near nothing
    one = np.array([2**64 - 1, 0, 0, 2**40 - 1], dtype=np.uint64)
    rows = np.stack([one, one, one])
    rows[1, 1], rows[2, 1] = 2**NEAR - 1, 2 ** (NEAR + 1) - 1  # bits are counted
    assert near(one, rows).tolist() == [0, 1]


def test_questions_are_compared_by_their_words() -> None:
    assert normalised("<image>\nWhat’s  the ＮＡＭＥ_of it?") == "what s the name of it"
    prompt = "Look closely. Is the sky blue today?\nOptions: (a) yes (b) no\n<image>"
    assert set(question_parts(prompt)) == {
        "look closely is the sky blue today options a yes b no",
        "is the sky blue today",
        "options a yes b no",
    }
    assert list(question_parts("What is this?")) == []


# --- the study ------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> Artifacts:
    """Two tasks: one on pictures 1 and 2, and FLAN's bool_q, with a prefix."""
    paths = Artifacts("x", tmp_path / "artifacts")
    mixture = paths.mixture
    mixture.mkdir(parents=True)
    for seed in (1, 2):
        scene(seed).save(mixture / f"{seed}.png")
    flan = make_example("b", "flan/bool_q", [("Text.\nis ice colder than water?", "yes")], ())
    shown = [
        make_example(f"{i}", "shown", [(f"Tell me: what is number {i} there?", "x")], (f"{i}.png",))
        for i in (1, 2)
    ]
    for task, examples in (("flan/bool_q", [flan]), ("shown", shown)):
        write_jsonl(task_file(mixture, task), [example.to_json() for example in examples])
    write_json(
        mixture / "tasks.json",
        [{"task": "flan/bool_q", "num_examples": 1}, {"task": "shown", "num_examples": 2}],
    )
    return paths


def files_in(folder: Path) -> Overlap:
    """Settings that name every file of questions there."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".tsv", ".jsonl"))
    return Overlap(files={path.stem: str(path) for path in found})


def study(paths: Artifacts, settings: Overlap) -> dict[str, Any]:
    return measure(None, paths, settings)  # type: ignore[arg-type]  # settings of no other stage


def test_questions_and_images_of_a_benchmark_are_found(paths: Artifacts, tmp_path: Path) -> None:
    two = str([encoded(scene(6)), encoded(scene(2))])
    rows = [
        {"index": "0", "image": encoded(scene(1)), "question": "Tell me: what is number 1 there?"},
        {"index": "1", "image": encoded(scene(2), format="JPEG"), "question": "How many are blue?"},
        {"index": "2", "image": encoded(scene(5)), "question": "what is number 2 there"},
        {"index": "3", "image": "0", "question": "Is the first one, shown again, red?"},
        {
            "index": "4",
            "image": two,
            "question": "Both?",
        },
    ]
    write_tsv(tmp_path / "seen.tsv", rows)
    write_jsonl(
        tmp_path / "boolq.jsonl",
        [
            {"question": "Is ice colder than water", "answer": 1},
            {"question": "Is it?", "answer": 0},
        ],
    )
    result = study(paths, files_in(tmp_path))
    boolq, seen = result["tables"]["overlap"]
    assert seen == {
        **{"benchmark": "seen", "num_questions": 5, "num_with_image": 5},
        "same_question": 1,  # of number 0; number 2's is a part of a sentence only
        "same_image": 3,  # of numbers 0, 3 and 4
        "near_image": 4,  # and of number 1, which is compressed
        "same_question_and_image": 1,
        "tasks": "shown (4)",
    }
    assert boolq == {
        **{"benchmark": "boolq", "num_questions": 2, "num_with_image": 0, "same_question": 1},
        **{"same_image": 0, "near_image": 0, "same_question_and_image": 0},
        "tasks": "flan/bool_q (1)",
    }
    assert result["tables"]["overlap_tasks"] == [
        {"task": "flan/bool_q", "benchmark": "boolq", "num_examples": 1}
    ]


def test_what_cannot_be_compared_is_named(paths: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(MeritError, match=r"no\.tsv: file not found; key `studies\.overlap\.files`"):
        study(paths, Overlap(files={"x": "no.tsv"}))
    write_jsonl(tmp_path / "a.jsonl", [{"label": 1}])
    with pytest.raises(MeritError, match=r"a\.jsonl: no column of questions; expected one of"):
        read_questions(tmp_path / "a.jsonl")
    broken = {"index": "0", "image": "x" * 100, "question": "is ice colder than water"}
    write_tsv(tmp_path / "b.tsv", [broken])
    with pytest.raises(MeritError, match="an image of a benchmark: not a readable image"):
        study(paths, Overlap(files={"x": str(tmp_path / "b.tsv")}))


def asking(name: str, **evaluation: Any) -> Any:
    """An experiment of which the study reads only the evaluation."""
    settings = Evaluation.model_validate({"benchmarks": [name], **evaluation})
    return SimpleNamespace(evaluation=settings)


def test_by_default_the_experiments_own_benchmarks_are_compared(
    paths: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VLMEvalKit's files in $LMUData; of lm-eval's tasks the questions that lm-eval loads."""
    monkeypatch.setenv("LMUData", str(tmp_path))
    asked = [
        {"index": "0", "image": encoded(scene(2)), "question": "Tell me: what is number 2 there?"}
    ]
    write_tsv(tmp_path / "SEEDBench_IMG.tsv", asked)
    (seedbench,) = measure(asking("seedbench"), paths, Overlap())["tables"]["overlap"]
    assert (seedbench["benchmark"], seedbench["num_questions"]) == ("seedbench", 1)
    assert (seedbench["same_question"], seedbench["same_image"]) == (1, 1)
    rows = [
        {"passage": "p", "question": "is ice colder than water", "idx": 0, "label": 1},
        {"passage": "p", "question": "is it", "idx": 1, "label": 0},
        {"passage": "p", "question": "is fire", "idx": 2, "label": 0},
    ]
    repository(tmp_path / "hub", "aps/super_glue", {"boolq": {"train": rows, "validation": rows}})
    (boolq,) = measure(asking("boolq", text_data=str(tmp_path / "hub")), paths, Overlap())[
        "tables"
    ]["overlap"]
    assert (boolq["num_questions"], boolq["same_question"]) == (3, 1)
    assert boolq["tasks"] == "flan/bool_q (1)"
    with pytest.raises(MeritError, match="hellaswag: lm-eval's task `hellaswag` finds no data in"):
        measure(asking("hellaswag", text_data=str(tmp_path / "hub")), paths, Overlap())

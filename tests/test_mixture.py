"""Mixtures that are read: tasks chosen, examples drawn, images checked, a manifest of it all."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import public_fixtures
import pytest
from hypothesis import given
from hypothesis import strategies as st
from public_fixtures import flan_record, pack, picture, said, save

from merit.config.data import JsonlData, PublicData, TaskRule
from merit.data import drawing
from merit.data.examples import Example, read_examples
from merit.data.images import load_image
from merit.data.sources import writer
from merit.data.tasks import choose, task_file
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, read_json
from merit.train.encode import task_examples

TARGET = Path("artifacts/x/data")
VISION = {"name": "vision_flan_1k"}
SOURCE = Path("sources/vision_flan_1k")
ZIP, LIST = SOURCE / "image_191-task_1k.zip", SOURCE / "annotation_191-task_1k.json"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout's working directory."""
    monkeypatch.chdir(tmp_path)
    return Path()


def public(*sources: dict[str, Any], **settings: Any) -> PublicData:
    return PublicData.model_validate({"source": "public", "sources": list(sources), **settings})


def write(settings: PublicData | JsonlData) -> dict[str, Any]:
    """Write as the data stage does; the manifest."""
    with atomic_folder(TARGET) as folder:
        writer(settings.source)(settings, folder)
    manifest: dict[str, Any] = read_json(TARGET / "manifest.json")
    return manifest


def read_mixture() -> tuple[list[str], list[Example]]:
    """As the encode stage reads it."""
    folder = Artifacts("x").mixture
    tasks = [entry["task"] for entry in read_json(folder / "tasks.json")]
    return tasks, [example for task in tasks for example in task_examples(folder, task)]


def ids(task: str, split: str = "mixture") -> list[str]:
    return [example.id for example in read_examples(task_file(TARGET / split, task))]


def numbers(task: str) -> list[int]:
    return [int(name.split("@")[0].split("-")[1]) for name in ids(task)]


def records(task: str, count: int, image: str = "COCO_1.jpg") -> list[dict[str, Any]]:
    return [flan_record(f"{task}-{i}", image, task, "<image>\nWhat?", f"{i}") for i in range(count)]


def lay(values: list[dict[str, Any]], **images: bytes) -> None:
    """vision_flan_1k of these records, with further images."""
    save(LIST, values)
    members = {"COCO_1.jpg": picture(1), **{f"{name}.jpg": image for name, image in images.items()}}
    pack(ZIP, {f"images_191task_1k/{name}": content for name, content in members.items()})


# --- what is written ----------------------------------------------------------------------------


def test_a_mixture_is_what_the_next_stage_reads() -> None:
    public_fixtures.lay(Path("sources"), "vision_flan_1k")
    public_fixtures.lay(Path("sources"), "the_cauldron")
    folder = str(Path("sources/vision_flan_1k").absolute())
    cauldron = {"name": "the_cauldron", "tasks": ["nlvr2", "ai2d"], "prefix": "cauldron/"}
    manifest = write(public({**VISION, "folder": folder}, cauldron))
    tasks, examples = read_mixture()
    assert tasks == ["CLEVR_CoGenT+QA", "cauldron/ai2d", "cauldron/nlvr2", "ok_vqa"]
    assert [example.task for example in examples] == [tasks[i] for i in (0, 1, 1, 2, 3, 3)]
    assert read_json(TARGET / "mixture/tasks.json")[1] == {
        **{"task": "cauldron/ai2d", "family": "the_cauldron", "style": "", "num_examples": 2}
    }
    vision, other = manifest["mixture"]
    assert (vision["num_records"], vision["num_records_stated"]) == (3, 186_103)
    assert vision["revision"] == "24ba71985e7424afe1262bfe302b022ae1c76ce8"
    assert other["licence"] == "prompts CC BY 4.0; each sub-dataset's own"
    assert [file["file"] for file in other["files"]] == [
        *(f"ai2d/train-0000{i}-of-00002-{'ab'[i] * 2}.parquet" for i in (0, 1)),
        "nlvr2/train-00000-of-00001-cc.parquet",
    ]
    file = TARGET / "mixture/cauldron%2Fai2d.jsonl"
    assert other["tasks"][0] == {
        **{"task": "cauldron/ai2d", "num_available": 2, "num_examples": 2, "num_held_out": 0},
        **{"num_escaped": 1, "mixture_sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
    }
    # an absolute folder gives absolute references
    zipped = f"{folder}/image_191-task_1k.zip/images_191task_1k/COCO_1.jpg"
    assert examples[-1].images == (zipped,)


GOLDEN = {  # SHA-256, first digits
    "held_out/c%2Fai2d.jsonl": "781f49eceaeb",
    "mixture/CLEVR_CoGenT+QA.jsonl": "5189abcf06e2",
    "mixture/c%2Fai2d.jsonl": "64366c129758",
    "mixture/ok_vqa.jsonl": "fee475d36b3a",
    "pretraining/text.jsonl": "4f2184c51e2e",
}


def test_the_same_files_are_the_same_bytes() -> None:
    for name in ("vision_flan_1k", "the_cauldron", "llava_mix665k", "llava_next"):
        public_fixtures.lay(Path("sources"), name)
    settings = public(
        {**VISION, "max_examples": 1},
        {"name": "the_cauldron", "tasks": ["ai2d"], "max_turns": 1, "prefix": "c/"},
        held_out=0.3,
        pretraining={"text": [{"name": "llava_mix665k"}, {"name": "llava_next"}]},
    )
    manifests = []
    for _ in range(2):
        manifests.append(write(settings))
        found = {
            path.relative_to(TARGET).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in TARGET.rglob("*.jsonl")
        }
        assert {name: digest[:12] for name, digest in found.items()} == GOLDEN
    assert manifests[0] == manifests[1]


# --- which tasks --------------------------------------------------------------------------------


def test_tasks_are_drawn_by_the_seed() -> None:
    counts = {f"t{i}": i for i in range(20)}
    names = sorted(task for task, count in counts.items() if count >= 5)
    rule = TaskRule(minimum=5, draw=6)
    assert choose(counts, rule, 42, "k") == sorted(random.Random(42).sample(names, 6))
    assert choose(counts, rule, 42, "k") != choose(counts, rule, 43, "k")
    assert choose(counts, TaskRule(minimum=18, exclude=["t19"]), 42, "k") == ["t18"]
    lay(records("a", 3) + records("b", 2))
    kept = {"minimum": 3, "draw": None, "exclude": [], "note": "an inference"}
    manifest = write(public({**VISION, "tasks": kept}))
    assert [entry["task"] for entry in read_json(TARGET / "mixture/tasks.json")] == ["a"]
    assert manifest["mixture"][0]["selection"] == {"seed": 42, "num_tasks_found": 2, **kept}
    for refused, message in (
        (TaskRule(minimum=5, draw=16), "`draw`: .*16.*15"),
        (TaskRule(exclude=["t20"]), ".*'t20'.*`t2`"),
        (TaskRule(minimum=50), ".*50"),
    ):
        with pytest.raises(MeritError, match=f"key `k`: {message}"):
            choose(counts, refused, 42, "k")


def test_two_tasks_of_one_name_need_a_prefix() -> None:
    lay(records("ai2d", 1) + records("nlvr2", 1))
    folder = public_fixtures.lay(Path("sources"), "the_cauldron")
    # a config that is not wanted need not be whole
    (folder / "nlvr2/train-00000-of-00001-cc.parquet").write_bytes(b"broken")
    cauldron = {"name": "the_cauldron", "tasks": ["ai2d"]}
    write(public(cauldron, download=False))
    with pytest.raises(MeritError, match=r"'ai2d' of vision_flan_1k .*'ai2d' of the_cauldron"):
        write(public(VISION, cauldron))


@given(st.text(min_size=1, max_size=20))
def test_a_tasks_file_leads_back_to_the_task(task: str) -> None:
    assert task_file(Path(), "CLEVR_CoGenT+QA").name == "CLEVR_CoGenT+QA.jsonl"
    assert task_file(Path(), "../a b").name == "%2E.%2Fa%20b.jsonl"
    try:
        path = task_file(Path("a"), task)
    except MeritError:
        assert len(task.encode()) > 60
        return
    except UnicodeEncodeError:
        return  # half of a surrogate pair: no text
    assert unquote(path.stem) == task
    assert path.parent == Path("a")
    assert not path.name.startswith(".")
    assert path.name.isascii()


# --- which examples -----------------------------------------------------------------------------


def test_a_cap_is_drawn_by_seed_and_task_and_keeps_the_order() -> None:
    lay(records("a", 40) + records("b", 3))
    manifest = write(public({**VISION, "max_examples": 10}))
    drawn = numbers("a")
    assert len(drawn) == 10
    assert drawn == sorted(drawn) != list(range(10))
    assert len(ids("b")) == 3
    assert [task["num_available"] for task in manifest["mixture"][0]["tasks"]] == [40, 3]
    lay(records("b", 3) + records("a", 40))  # other tasks around it leave it as it is
    write(public({**VISION, "max_examples": 10, "tasks": ["a"]}))
    assert numbers("a") == drawn
    write(public({**VISION, "max_examples": 10, "tasks": ["a"]}, seed=1))
    assert numbers("a") != drawn


def test_a_share_is_held_out_of_every_task() -> None:
    lay(records("a", 10) + records("b", 2) + records("c", 1))
    write(public(VISION, held_out=0.3))
    sizes = {task: (len(ids(task)), len(ids(task, "held_out"))) for task in "ab"}
    assert sizes == {"a": (7, 3), "b": (1, 1)}
    assert not set(ids("a")) & set(ids("a", "held_out"))
    assert [entry["task"] for entry in read_json(TARGET / "held_out/tasks.json")] == ["a", "b"]
    assert len(ids("c")) == 1  # one example cannot be divided


def test_turns_can_be_split_with_the_images_before_each_part() -> None:
    folder = public_fixtures.lay(Path("sources"), "lvis_instruct4v").parent
    texts = [text for i in range(5) for text in (f"<image>\nQ{i}" if i == 0 else f"Q{i}", f"A{i}")]
    value = {"id": "1", "image": "coco/val2017/2.jpg", "conversations": said(*texts)}
    save(folder / "lvis_instruct4v/lvis_instruct4v_220k.json", [value])
    write(public({"name": "lvis_instruct4v", "max_turns": 2}))
    found = read_examples(TARGET / "mixture/lvis_instruct4v.jsonl")
    assert [[m["content"] for m in example.messages] for example in found] == [
        ["<image>\nQ0", "A0", "Q1", "A1"],
        ["<image>\nQ2", "A2", "Q3", "A3"],
        ["<image>\nQ4", "A4"],
    ]
    assert [example.id for example in found] == ["1@1-0", "1@1-1", "1@1-2"]
    assert {example.images for example in found} == {
        ("../../../../sources/images/coco/val2017/2.jpg",)
    }


def test_reading_may_end_early() -> None:
    lay(records("a", 40))
    manifest = write(public({**VISION, "max_examples": 5, "max_records": 8}))["mixture"][0]
    assert (manifest["num_records"], manifest["tasks"][0]["num_available"]) == (8, 8)


# --- bad records --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "image", "message"),
    [
        (flan_record("z", "COCO_1.jpg", "a", "<image>", " "), b"", ".*answer"),
        (records("a", 1, "absent.jpg")[0], b"", r".*absent\.jpg"),
        (records("a", 1, "x.jpg")[0], picture()[:-40], r".*x\.jpg"),
        (records("a", 1, "x.jpg")[0], picture(size=(201, 1)), r".*x\.jpg: 201 x 1"),
    ],
)
def test_a_bad_record_is_an_error_or_is_listed(
    record: dict[str, Any], image: bytes, message: str
) -> None:
    lay([*records("a", 2), record], x=image)
    where = rf"annotation_191-task_1k\.json, record 3 \(id '{record['id']}'\): "
    with pytest.raises(MeritError, match=f"(?s){where}{message}"):
        write(public(VISION))
    assert not TARGET.exists()
    [entry] = write(public(VISION, on_bad_record="skip"))["mixture"][0]["bad_records"]
    assert ids("a") == ["a-0@1", "a-1@2"]
    assert entry["where"].startswith("annotation_191-task_1k.json, record 3")


def test_the_place_of_a_broken_example_goes_to_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing, "AT_A_TIME", 3)
    lay([*records("a", 20, "x.jpg"), *records("a", 6)], x=b"broken")
    manifest = write(public({**VISION, "max_examples": 5}, on_bad_record="skip"))
    assert len(ids("a")) == 5
    assert {int(name.split("@")[1]) for name in ids("a")} <= set(range(21, 27))
    assert manifest["mixture"][0]["bad_records"]


def test_of_tasks_that_are_not_taken_only_a_record_without_a_task_is_bad() -> None:
    lay([*records("a", 2), *records("b", 1, "absent.jpg")])
    write(public({**VISION, "tasks": ["a"]}))
    assert ids("a") == ["a-0@1", "a-1@2"]
    value = records("a", 1)[0]
    del value["task_name"]
    lay([*records("a", 1), value])
    with pytest.raises(MeritError, match=r"record 2 \(id 'a-0'\): .*task"):
        write(public({**VISION, "tasks": ["a"]}))


def test_a_task_or_a_source_without_one_good_record_is_an_error() -> None:
    lay([*records("a", 2, "x.jpg"), *records("b", 1)], x=b"broken")
    with pytest.raises(MeritError, match=r"task 'a': .*2 records"):
        write(public(VISION, on_bad_record="skip"))
    lay(records("a", 3, "absent.jpg"))
    with pytest.raises(MeritError, match=r"3 record.*absent\.jpg"):
        write(public(VISION, on_bad_record="skip"))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda: save(ZIP, ZIP.read_bytes()[:-30]), r"task_1k\.zip: "),
        (lambda: save(LIST, '[{"id": '), r"task_1k\.json, record 1: "),
        (ZIP.unlink, r"vision_flan_1k: missing image_191-task_1k\.zip\|images_191task_1k"),
    ],
)
def test_a_broken_file_is_an_error_even_if_records_may_be_skipped(
    break_it: Callable[[], Any], message: str
) -> None:
    lay(records("a", 2))
    break_it()
    with pytest.raises(MeritError, match=message):
        write(public(VISION, on_bad_record="skip", download=False))
    assert not TARGET.exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**VISION, "tasks": ["ok_vqe"]}, r"`data\.sources\[0\]\.tasks`: .*'ok_vqe'"),
        ({"name": "the_cauldron", "tasks": ["aid2"]}, r"`data\.sources\[0\]\.tasks`: .*`ai2d`"),
        ({"name": "flan", "images": "x"}, r"`data\.sources\[0\]\.images`: flan"),
        ({"name": "lrv_instruction", "revision": "1"}, r"`data\.sources\[0\]\.revision`: lrv"),
        ({"name": "lvis_instruct4v"}, r"sources/images: .*lvis_instruct4v"),
    ],
)
def test_settings_that_cannot_be_met(entry: dict[str, Any], message: str) -> None:
    public_fixtures.lay(Path("sources"), "vision_flan_1k")
    with pytest.raises(MeritError, match=message):
        write(public(entry))


# --- one's own folder ---------------------------------------------------------------------------


def own(folder: str = "mine", **settings: Any) -> JsonlData:
    return JsonlData.model_validate({"source": "jsonl", "folder": folder, **settings})


def chat(*texts: str, **rest: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)], **rest}


def lines(task: str, *values: dict[str, Any] | str) -> None:
    rows = [value if isinstance(value, str) else json.dumps(value) for value in values]
    save(task_file(Path("mine"), task), "\n".join(rows) + "\n")


def test_a_folder_of_ones_own_is_a_mixture() -> None:
    lines("sums", chat("1 + 1?", "2"), chat("<tag>?", "say <image>", id="seven", task="sums"))
    lines("my pictures", chat("<image>\nWhat?", "a dot", images=["img/x.png"]))
    save(Path("mine/img/x.png"), picture(3))
    manifest = write(own(held_out=0.0))
    tasks, examples = read_mixture()
    assert tasks == ["my pictures", "sums"]
    assert [example.id for example in examples] == ["my pictures-1", "sums-1", "seven"]
    assert examples[2].messages[1]["content"] == "say < image>"
    assert examples[0].images == ("../../../../mine/img/x.png",)
    assert load_image(Artifacts("x").mixture / examples[0].images[0]).getpixel((0, 0)) == (3, 3, 3)
    files = [file["file"] for file in manifest["mixture"][0]["files"]]
    assert files == ["my%20pictures.jsonl", "sums.jsonl"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "JSON"),
        (chat("<image>", "b", images=["no.png"]), "'no.png'"),
        (chat("<image>", "b", images=["../x.png"]), "'../x.png'"),
        (chat("a", "b", task="other"), "`task` .*'other'"),
        (chat("a", "\ud800"), "half of a character"),
    ],
)
def test_a_bad_line_is_an_error_or_is_listed(line: Any, reason: str) -> None:
    lines("a", chat("q", "a"), line)
    with pytest.raises(MeritError, match=rf"(?s)task 'a'.*a\.jsonl, line 2: .*{reason}"):
        write(own())
    manifest = write(own(on_bad_record="skip"))
    assert ids("a") == ["a-1"]
    assert len(manifest["mixture"][0]["bad_records"]) == 1

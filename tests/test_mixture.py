"""Mixtures that are read: tasks chosen, examples drawn, images checked, a manifest of it all."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from merit.data.sources.public import CAULDRON
from merit.data.tasks import choose, task_file, task_of_file
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, read_json
from merit.train.encode import task_examples, task_names

ROOT = Path(__file__).parent.parent
TARGET = Path("artifacts/x/data")


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
    tasks = task_names(folder)
    return tasks, [example for task in tasks for example in task_examples(folder, task)]


def ids(task: str, split: str = "mixture") -> list[str]:
    return [example.id for example in read_examples(task_file(TARGET / split, task))]


def records(task: str, count: int, image: str = "COCO_1.jpg") -> list[dict[str, Any]]:
    return [flan_record(f"{task}-{i}", image, task, "<image>\nWhat?", f"{i}") for i in range(count)]


def lay(values: list[dict[str, Any]], **images: bytes) -> None:
    """vision_flan_1k of these records, with further images."""
    folder = Path("sources/vision_flan_1k")
    save(folder / "annotation_191-task_1k.json", values)
    members = {"COCO_1.jpg": picture(1), **{f"{name}.jpg": image for name, image in images.items()}}
    pack(
        folder / "image_191-task_1k.zip",
        {f"images_191task_1k/{name}": content for name, content in members.items()},
    )


VISION = {"name": "vision_flan_1k"}


# --- what is written ----------------------------------------------------------------------------


def test_a_mixture_is_what_the_next_stage_reads() -> None:
    public_fixtures.lay(Path("sources"), "vision_flan_1k")
    public_fixtures.lay(Path("sources"), "the_cauldron")
    cauldron = {"name": "the_cauldron", "tasks": ["nlvr2", "ai2d"], "prefix": "cauldron/"}
    manifest = write(public(VISION, cauldron))
    tasks, examples = read_mixture()
    assert tasks == ["CLEVR_CoGenT+QA", "cauldron/ai2d", "cauldron/nlvr2", "ok_vqa"]
    assert [example.task for example in examples] == [tasks[i] for i in (0, 1, 1, 2, 3, 3)]
    assert read_json(TARGET / "mixture/tasks.json")[1] == {
        **{"task": "cauldron/ai2d", "family": "the_cauldron", "style": "", "num_examples": 2}
    }
    for example in examples:
        for image in example.images:
            assert load_image(Artifacts("x").mixture / image).size == (4, 3)
    assert sorted(path.name for path in TARGET.iterdir()) == [
        *("benchmarks", "manifest.json", "mixture", "pretraining")
    ]
    vision, other = manifest["mixture"]
    assert (vision["num_records"], vision["num_records_stated"]) == (3, 186_103)
    assert (other["num_records"], other["num_records_stated"]) == (3, None)
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
    assert str(Path.cwd()) not in (TARGET / "manifest.json").read_text()


def test_the_same_files_are_the_same_bytes() -> None:
    lay(records("a", 30) + records("b", 30))
    settings = public({**VISION, "max_examples": 5}, held_out=0.2)
    write(settings)
    first = {path: path.read_bytes() for path in TARGET.rglob("*") if path.is_file()}
    write(settings)
    assert {path: path.read_bytes() for path in TARGET.rglob("*") if path.is_file()} == first


def test_absolute_folders_give_absolute_references() -> None:
    public_fixtures.lay(Path("elsewhere"), "vision_flan_1k")
    folder = Path("elsewhere/vision_flan_1k").absolute()
    write(public({**VISION, "folder": str(folder)}))
    [example, _] = read_examples(TARGET / "mixture/ok_vqa.jsonl")
    assert example.images == (f"{folder}/image_191-task_1k.zip/images_191task_1k/COCO_1.jpg",)


def test_what_a_base_phase_reads_is_one_file() -> None:
    public_fixtures.lay(Path("sources"), "vision_flan_1k")
    public_fixtures.lay(Path("sources"), "llava_pretrain")
    public_fixtures.lay(Path("sources"), "llava_mix665k")
    manifest = write(
        public(
            VISION,
            held_out=0.5,
            pretraining={
                "captions": [{"name": "llava_pretrain"}],
                "conversations": [{"name": "llava_mix665k", "tasks": ["coco", "text"]}],
            },
        )
    )
    captions = read_examples(TARGET / "pretraining/captions.jsonl")
    assert [example.messages[1]["content"] for example in captions] == [
        *("a mattress topper", "two boats")
    ]
    conversations = read_examples(TARGET / "pretraining/conversations.jsonl")
    assert [example.task for example in conversations] == ["coco", "text"]
    assert [task["num_held_out"] for task in manifest["pretraining"]["captions"][0]["tasks"]] == [0]


# --- which tasks --------------------------------------------------------------------------------


def test_tasks_with_too_few_examples_are_left_out() -> None:
    lay(records("a", 3) + records("b", 2) + records("c", 5))
    manifest = write(public({**VISION, "tasks": {"minimum": 3, "note": "an inference"}}))
    assert [entry["task"] for entry in read_json(TARGET / "mixture/tasks.json")] == ["a", "c"]
    assert manifest["mixture"][0]["selection"] == {
        **{
            "seed": 42,
            "num_tasks_found": 3,
            "minimum": 3,
            "draw": None,
            "exclude": [],
            "note": "an inference",
        }
    }


def test_tasks_are_drawn_by_the_seed() -> None:
    counts = {f"t{i}": i for i in range(20)}
    names = sorted(task for task, count in counts.items() if count >= 5)
    rule = TaskRule(minimum=5, draw=6)
    assert choose(counts, rule, 42, "k") == sorted(random.Random(42).sample(names, 6))
    assert choose(counts, rule, 42, "k") != choose(counts, rule, 43, "k")
    with pytest.raises(MeritError, match="key `k`: `draw`: found 16, but 15 of 20 tasks have 5 ex"):
        choose(counts, TaskRule(minimum=5, draw=16), 42, "k")
    without = TaskRule(minimum=18, exclude=["t19"])
    assert choose(counts, without, 42, "k") == ["t18"]
    with pytest.raises(MeritError, match=r"key `k`: no task is called 't20'. Did you mean `t2`\?"):
        choose(counts, TaskRule(exclude=["t20"]), 42, "k")
    with pytest.raises(MeritError, match="key `k`: no task has 50 examples or more"):
        choose(counts, TaskRule(minimum=50), 42, "k")


def test_a_config_that_is_not_wanted_need_not_be_there() -> None:
    folder = public_fixtures.lay(Path("sources"), "the_cauldron")
    (folder / "nlvr2/train-00000-of-00001-cc.parquet").write_bytes(b"broken")
    write(public({"name": "the_cauldron", "tasks": ["ai2d"]}, download=False))
    assert ids("ai2d") == [f"ai2d/train-0000{i}-of-00002-{'ab'[i] * 2}.parquet/0" for i in (0, 1)]
    others = [task for task in CAULDRON if task != "ai2d"]
    write(public({"name": "the_cauldron", "tasks": {"exclude": others}}, download=False))
    assert len(ids("ai2d")) == 2
    drawn = public({"name": "the_cauldron", "tasks": {"draw": 1}}, seed=1, download=False)
    with pytest.raises(MeritError, match=r"the_cauldron: missing \w+/train-\*\.parquet; lay the"):
        write(drawn)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "vision_flan_1k", "tasks": ["ok_vqe"]}, r"no task is called 'ok_vqe'. Did you m"),
        ({"name": "the_cauldron", "tasks": ["aid2"]}, r"'aid2'. Did you mean `ai2d`\?"),
    ],
)
def test_a_misspelled_task_is_named_with_the_nearest(entry: dict[str, Any], message: str) -> None:
    public_fixtures.lay(Path("sources"), "vision_flan_1k")
    with pytest.raises(MeritError, match=rf"key `data\.sources\[0\]\.tasks`: .*{message}"):
        write(public(entry))
    assert not TARGET.exists()


def test_two_tasks_of_one_name_need_a_prefix() -> None:
    lay(records("ai2d", 1) + records("nlvr2", 1))
    public_fixtures.lay(Path("sources"), "the_cauldron")
    cauldron = {"name": "the_cauldron", "tasks": ["ai2d"]}
    with pytest.raises(MeritError, match="tasks 'ai2d' of vision_flan_1k and 'ai2d' of the_c"):
        write(public(VISION, cauldron))
    lay(records("AI2D", 1) + records("ai2d", 1))
    with pytest.raises(MeritError, match="tasks 'AI2D' of vision_flan_1k and 'ai2d' of vision_f"):
        write(public(VISION))


@given(st.text(min_size=1, max_size=20))
def test_a_tasks_file_is_the_tasks_alone(task: str) -> None:
    try:
        path = task_file(Path("a"), task)
    except MeritError:
        assert len(task.encode()) > 60
        return
    except UnicodeEncodeError:
        return  # half of a surrogate pair: no text
    assert task_of_file(path) == task
    assert path.parent == Path("a")
    assert not path.name.startswith(".")
    assert path.name.isascii()


def test_names_of_tasks_as_files() -> None:
    assert task_file(Path(), "CLEVR_CoGenT+Question_Answering").name == (
        "CLEVR_CoGenT+Question_Answering.jsonl"
    )
    assert task_file(Path(), "a/b c").name == "a%2Fb%20c.jsonl"
    assert task_file(Path(), "../x").name == "%2E.%2Fx.jsonl"
    for name in ("", "é" * 41):
        with pytest.raises(MeritError, match="a task's name has 1 to 240 bytes"):
            task_file(Path(), name)


# --- which examples -----------------------------------------------------------------------------


def test_a_cap_is_drawn_by_seed_and_task_and_keeps_the_order() -> None:
    lay(records("a", 40) + records("b", 3))
    manifest = write(public({**VISION, "max_examples": 10}))
    drawn = ids("a")
    numbers = [int(name.split("@")[0].split("-")[1]) for name in drawn]
    assert len(drawn) == 10
    assert numbers == sorted(numbers)
    assert numbers != list(range(10))
    assert len(ids("b")) == 3
    assert [task["num_available"] for task in manifest["mixture"][0]["tasks"]] == [40, 3]
    lay(records("b", 3) + records("a", 40))  # other tasks around it leave it as it is
    write(public({**VISION, "max_examples": 10, "tasks": ["a"]}))
    assert [name.split("@")[0] for name in ids("a")] == [name.split("@")[0] for name in drawn]
    write(public({**VISION, "max_examples": 10, "tasks": ["a"]}, seed=1))
    assert [name.split("@")[0] for name in ids("a")] != [name.split("@")[0] for name in drawn]


def test_a_share_is_held_out_of_every_task() -> None:
    lay(records("a", 10) + records("b", 2) + records("c", 1))
    write(public(VISION, held_out=0.3))
    assert {task: (len(ids(task)), len(ids(task, "held_out"))) for task in "ab"} == {
        **{"a": (7, 3), "b": (1, 1)}
    }
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


# --- bad records --------------------------------------------------------------------------------


def wide() -> bytes:
    return picture(size=(201, 1))


BROKEN = {
    "no answer": (
        lambda: lay([*records("a", 2), flan_record("z", "COCO_1.jpg", "a", "<image>", " ")]),
        r"record 3 \(id 'z'\): without an answer: found ' '",
    ),
    "two images": (
        lambda: lay([*records("a", 2), flan_record("z", "COCO_1.jpg", "a", "<image><image>", "b")]),
        r"record 3 \(id 'z'\): 2 `<image>` in the prompts, but 1 image",
    ),
    "missing image": (
        lambda: lay([*records("a", 2), *records("a", 1, "absent.jpg")]),
        r"record 3 \(id 'a-0'\): image 'absent\.jpg' not found in image_191-task_1k\.zip",
    ),
    "truncated image": (
        lambda: lay([*records("a", 2), *records("a", 1, "x.jpg")], x=picture()[:-40]),
        r"record 3 \(id 'a-0'\): .*x\.jpg: not a readable image",
    ),
    "aspect ratio": (
        lambda: lay([*records("a", 2), *records("a", 1, "x.jpg")], x=wide()),
        r"record 3 \(id 'a-0'\): .*x\.jpg: 201 x 1 pixels, an aspect ratio above 200",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_record_is_an_error_or_is_listed(case: str) -> None:
    prepare, message = BROKEN[case]
    prepare()
    with pytest.raises(
        MeritError, match=rf"(?s)1 bad record.*annotation_191-task_1k\.json, {message}"
    ):
        write(public(VISION))
    assert not TARGET.exists()
    manifest = write(public(VISION, on_bad_record="skip"))
    assert ids("a") == ["a-0@1", "a-1@2"]
    [entry] = manifest["mixture"][0]["bad_records"]
    assert entry["task"] == "a"
    assert entry["where"].startswith("annotation_191-task_1k.json, record 3")


def test_an_aspect_ratio_of_200_is_taken() -> None:
    lay(records("a", 1, "x.jpg"), x=picture(size=(200, 1)))
    write(public(VISION))
    assert len(ids("a")) == 1


def test_images_are_left_unopened_where_that_is_asked_for() -> None:
    lay(records("a", 1, "x.jpg"), x=wide())
    write(public(VISION, check_images="exists"))
    assert len(ids("a")) == 1


def test_images_are_checked_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "AT_A_TIME", 3)
    lay([*records("a", 7), *records("a", 1, "x.jpg"), *records("a", 2)], x=b"broken")
    write(public(VISION, on_bad_record="skip"))
    assert ids("a") == [f"a-{i}@{i + 1}" for i in range(7)] + ["a-0@9", "a-1@10"]


def test_the_place_of_a_broken_example_goes_to_the_next_one() -> None:
    lay([*records("a", 20, "x.jpg"), *records("a", 6)], x=b"broken")
    manifest = write(public({**VISION, "max_examples": 5}, on_bad_record="skip"))
    assert len(ids("a")) == 5
    assert manifest["mixture"][0]["tasks"][0]["num_examples"] == 5
    assert manifest["mixture"][0]["bad_records"]


def test_bad_records_of_tasks_that_are_not_taken_do_not_matter() -> None:
    lay([*records("a", 2), *records("b", 1, "absent.jpg")])
    write(public({**VISION, "tasks": ["a"]}))
    assert ids("a") == ["a-0@1", "a-1@2"]
    write(public({**VISION, "tasks": {"minimum": 2}}))
    assert ids("a") == ["a-0@1", "a-1@2"]


def test_a_record_without_a_task_is_bad_whatever_is_taken() -> None:
    value = records("a", 1)[0]
    lay([*records("a", 1), {key: value[key] for key in value if key != "task_name"}])
    with pytest.raises(MeritError, match=r"record 2 \(id 'a-0'\): it does not say its task"):
        write(public({**VISION, "tasks": ["a"]}))
    manifest = write(public({**VISION, "tasks": ["a"]}, on_bad_record="skip"))
    assert [entry["task"] for entry in manifest["mixture"][0]["bad_records"]] == [""]


def test_a_task_or_a_source_without_one_good_record_is_an_error() -> None:
    lay([*records("a", 2, "x.jpg"), *records("b", 1)], x=b"broken")
    with pytest.raises(MeritError, match="task 'a': no example is left of 2 records"):
        write(public(VISION, on_bad_record="skip"))
    lay(records("a", 3, "absent.jpg"))
    with pytest.raises(
        MeritError, match=r"not one example in 3 record.*; the first: .*absent\.jpg"
    ):
        write(public(VISION, on_bad_record="skip"))


def test_many_bad_records_are_counted_and_the_first_ones_shown() -> None:
    lay([*records("a", 1), *records("a", 7, "absent.jpg")])
    with pytest.raises(MeritError, match="task 'a': 7 bad record") as raised:
        write(public(VISION))
    assert str(raised.value).count("absent.jpg") == 5
    assert str(raised.value).endswith("and 2 more")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda: save(
                Path("sources/vision_flan_1k/image_191-task_1k.zip"),
                Path("sources/vision_flan_1k/image_191-task_1k.zip").read_bytes()[:-30],
            ),
            r"image_191-task_1k\.zip: not a readable archive",
        ),
        (
            lambda: save(Path("sources/vision_flan_1k/annotation_191-task_1k.json"), '[{"id": '),
            r"annotation_191-task_1k\.json, record 1: truncated or not valid JSON",
        ),
        (
            lambda: Path("sources/vision_flan_1k/image_191-task_1k.zip").unlink(),
            r"vision_flan_1k: missing image_191-task_1k\.zip\|images_191task_1k; lay",
        ),
    ],
)
def test_a_broken_file_is_an_error_even_where_records_may_be_skipped(
    break_it: Callable[[], Any], message: str
) -> None:
    lay(records("a", 2))
    break_it()
    with pytest.raises(MeritError, match=message):
        write(public(VISION, on_bad_record="skip", download=False))
    assert not TARGET.exists()


def test_a_missing_folder_of_shared_images_is_named() -> None:
    public_fixtures.lay(Path("sources"), "lvis_instruct4v")
    entry = {"name": "lvis_instruct4v", "images": "pictures"}
    with pytest.raises(MeritError, match="pictures: image folder missing; lvis_instruct4v names"):
        write(public(entry))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "flan", "images": "x"}, r"key `data\.sources\[0\]\.images`: flan has no images"),
        ({"name": "lrv_instruction", "revision": "1"}, r"\.revision`: lrv_instruction is not read"),
    ],
)
def test_keys_that_a_source_has_no_use_for(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(MeritError, match=message):
        write(public(entry))


def test_a_rehearsal_is_the_same_sources_cut_down() -> None:
    settings = public(
        {**VISION, "tasks": {"minimum": 50, "draw": 136}, "max_examples": 1000},
        {"name": "the_cauldron", "tasks": ["ai2d", "nlvr2"]},
        pretraining={"captions": [{"name": "llava_pretrain"}]},
    )
    small = settings.cut_down(2, 50)
    assert [entry.tasks for entry in small.sources] == [TaskRule(minimum=50, draw=1), ["ai2d"]]
    assert [entry.max_examples for entry in small.sources] == [50, 50]
    assert small.pretraining["captions"][0].max_examples == 50
    assert small.pretraining["captions"][0].max_records == 1000
    assert [entry.max_records for entry in small.sources] == [None, None]
    listed = public(VISION, pretraining={"captions": [{"name": "the_cauldron", "tasks": ["ai2d"]}]})
    assert listed.cut_down(2, 50).pretraining["captions"][0].max_records is None


def test_reading_ends_early_where_it_is_told_to() -> None:
    lay(records("a", 40))
    manifest = write(public({**VISION, "max_examples": 5, "max_records": 8}))["mixture"][0]
    assert (manifest["num_records"], manifest["tasks"][0]["num_available"]) == (8, 8)
    assert len(ids("a")) == 5
    assert {int(name.split("@")[0].split("-")[1]) for name in ids("a")} <= set(range(8))


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
    assert [file["file"] for file in manifest["mixture"][0]["files"]] == [
        *("my%20pictures.jsonl", "sums.jsonl")
    ]


def test_tasks_of_ones_own_are_chosen_and_capped_like_any() -> None:
    lines("a", *[chat("q", str(i)) for i in range(9)])
    lines("b", chat("q", "a"))
    write(own(tasks=["a"], max_examples=4, held_out=0.25))
    assert (len(ids("a")), len(ids("a", "held_out"))) == (3, 1)
    with pytest.raises(MeritError, match=r"key `data\.tasks`: no task is called 'c'"):
        write(own(tasks=["c"]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", r"line 2: not valid JSON"),
        ("[1]", r"line 2: expected an object, found \[1\]"),
        (chat("a"), "line 2: the last message must be the assistant's answer"),
        (chat("a", ""), "line 2: without an answer"),
        (chat("<image>", "b"), "line 2: 1 `<image>` marks but 0 images"),
        (chat("<image>", "b", images=["no.png"]), "line 2: image 'no.png' not found below mine/"),
        (chat("<image>", "b", images=["../x.png"]), "line 2: `image` must be a path within"),
        (chat("a", "b", task="other"), "line 2: `task` is 'other', but the file is 'a''s"),
        (chat("a", "b", image="x.png"), "line 2: expected the keys"),
        ({"prompt": "a"}, "line 2: expected the keys"),
        (
            {"messages": [{"role": "system", "content": "a"}]},
            r"line 2: messages\[0\] must have role",
        ),
    ],
)
def test_a_bad_line_is_an_error_or_is_listed(line: Any, reason: str) -> None:
    lines("a", chat("q", "a"), line)
    with pytest.raises(MeritError, match=rf"(?s)mine: task 'a': 1 bad record.*a\.jsonl, {reason}"):
        write(own())
    manifest = write(own(on_bad_record="skip"))
    assert ids("a") == ["a-1"]
    assert len(manifest["mixture"][0]["bad_records"]) == 1


def test_a_folder_that_is_not_there_or_empty_is_named() -> None:
    with pytest.raises(MeritError, match=r"key `data\.folder`: mine: no such folder"):
        write(own())
    Path("mine").mkdir()
    with pytest.raises(MeritError, match=r"mine: no \.jsonl file; one for each task"):
        write(own())

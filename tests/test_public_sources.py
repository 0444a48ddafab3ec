"""Each public source: its records as canonical examples, worked out by hand, quirk by quirk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import public_fixtures
import pytest
from public_fixtures import said

from merit.check.estimate import known
from merit.config.data import SourceName
from merit.data.examples import BadRecord, Example
from merit.data.images import ImageFinder, load_image
from merit.data.sources.public import PUBLIC
from merit.errors import MeritError

MIXTURE = Path("artifacts/x/data/mixture")
UP = "../../../.."  # from there to the working directory


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, so that references are what they are in a checkout."""
    monkeypatch.chdir(tmp_path)
    return Path()


def read(name: str, tasks: list[str] | None = None) -> tuple[list[Example], list[tuple[str, str]]]:
    """The examples of a laid-out source, and (where, why) of its bad records."""
    source, folder = PUBLIC[name], Path(name)
    images = ImageFinder(Path("images") if source.images == "shared" else folder, MIXTURE)
    examples, bad = [], []
    for record in source.records(folder, tasks):
        try:
            examples.append(source.convert(record, images))
        except BadRecord as problem:
            bad.append((record.where, str(problem)))
    return examples, bad


ZIP = "vision_flan_1k/image_191-task_1k.zip/images_191task_1k"
ROWS = "data/train-00000-of-00001.parquet"
KNOWN = {"the_cauldron": ["ai2d", "clevr_math", "nlvr2"], "flan": ["bool_q", "hellaswag"]}
# (task, prompts and answers in turn, images)
EXPECTED: dict[str, list[tuple[str, list[str], list[str]]]] = {
    "vision_flan_1k": [
        ("ok_vqa", ["What is it?\n<image>", "a boat"], [f"{ZIP}/COCO_1.jpg"]),
        ("CLEVR_CoGenT+QA", ["<image>\nHow many?", "(b) two"], [f"{ZIP}/CLEVR+#U00e9 'x'.png"]),
        ("ok_vqa", ["<image>\nWhy?", "Since < image> is a tag"], [f"{ZIP}/COCO_1.jpg"]),
    ],
    "vision_flan": [
        (
            *("ok_vqa", ["What?\n<image>", "a boat"]),
            ["vision_flan/shard_01/raw_dataset/coco.zip/coco/COCO_1.jpg"],
        ),
        (  # of two files of the name, the one in the task's own archive
            *("wikihow_steps", ["<image>\nWhich?", "the sixth"]),
            ["vision_flan/shard_09/raw_dataset/wikihow_steps.zip/x/method_1_step_6.jpg"],
        ),
    ],
    "the_cauldron": [
        (
            *("ai2d", ["<image>\nQ1?", "Answer: B", "Q2?", "C"]),
            ["the_cauldron/ai2d/train-00000-of-00002-aa.parquet/0000000/0"],
        ),
        (
            *("ai2d", ["<image>\n< image>?", "D"]),
            ["the_cauldron/ai2d/train-00001-of-00002-bb.parquet/0000000/0"],
        ),
        (
            *("clevr_math", ["<image>\n1?", "1"]),
            ["the_cauldron/clevr_math/train-00000-of-00001-dd.parquet/0000000/0"],
        ),
        (
            *("nlvr2", ["<image>\n<image>\nBoth?", "No"]),
            [f"the_cauldron/nlvr2/train-00000-of-00001-cc.parquet/0000000/{i}" for i in (0, 1)],
        ),
    ],
    "lvis_instruct4v": [
        (
            *("lvis_instruct4v", ["<image>\nA?", "a", "B?", "b"]),
            ["images/coco/train2017.zip/train2017/1.jpg"],
        ),
        ("lvis_instruct4v", ["A?\n<image>", "c"], ["images/coco/val2017/2.jpg"]),
        ("lvis_instruct4v", ["No picture?", "none"], []),
    ],
    "llava_preference": [
        (
            *("llava_preference", ["<image>\nA?", "a", "B?", "answer 2"]),
            ["images/coco/train2017/1.jpg"],
        ),
        ("llava_preference", ["<image>\nA?", "answer 1"], ["images/coco/train2014/2.jpg"]),
    ],
    "lrv_instruction": [
        ("lrv_instruction", ["<image>\nIs there a cat?", "There is none."], [f"images/vg/{image}"])
        for image in ("VG_100K/17.jpg", "VG_100K_2.zip/VG_100K_2/18.jpg")
    ],
    "laion_gpt4v": [
        (
            *("laion_gpt4v", ["<image>\nDescribe the image in detail.", "A grey square."]),
            ["laion_gpt4v/fetched/a.png"],
        )
    ],
    "vlguard": [
        (
            *(
                "vlguard",
                ["<image>\nWhat is shown?", "A street.", "Who lives here?", "I cannot say."],
            ),
            ["vlguard/train.zip/train/privacyAlert/p.png"],
        ),
        ("vlguard", ["<image>\nShare this.", "I will not."], ["vlguard/train.zip/bad_ads/q.png"]),
    ],
    "llava_pretrain": [
        ("llava_pretrain", ["<image>", text], [f"llava_pretrain/images.zip/00453/{i}.jpg"])
        for i, text in ((1, "a mattress topper"), (2, "two boats"))
    ],
    "llava_mix665k": [
        ("coco", ["<image>\nA?", "a"], ["images/coco/train2017/1.jpg"]),
        ("ocr_vqa", ["<image>\nB?", "b"], ["images/ocr_vqa/images/2.jpg"]),
        ("text", ["An < image> tag?", "HTML"], []),
    ],
    "llava_next": [
        ("chartqa", ["<image>\nA?", "a"], [f"llava_next/{ROWS}/0000000"]),
        ("sharegpt", ["Text?", "only", "< image>?", "a tag"], []),
        ("chartqa", ["<image>\nC?", "c"], [f"llava_next/{ROWS}/0000002"]),
    ],
    "llava_recap_cc3m": [
        (
            *("llava_recap_cc3m", ["<image>\nDescribe it.", "A long one."]),
            [f"llava_recap_cc3m/{ROWS}/0000000"],
        )
    ],
    "flan": [
        ("bool_q", ["Is ice cold?\nOPTIONS:\n- no\n- yes", "yes"], []),
        ("bool_q", ["Is < image> a tag?", "yes"], []),
        ("hellaswag", ["A man sits. Then", "he stands up."], []),
    ],
}
SHADES = {"the_cauldron": [1, 2, 5, 3, 4], "vision_flan_1k": [1, 2, 1], "vision_flan": [1, 3]}
BAD = {
    "the_cauldron": [
        ("clevr_math/train-00000-of-00001-dd.parquet, row 1", "no image in the row"),
    ],
    "llava_preference": [
        (
            "llava_7b_v1_preference.json, record 3 (id 'x')",
            "`preference` must be 1 or 2, found 3",
        )
    ],
    "laion_gpt4v": [
        (
            "data/train-00000-of-00001-ee.parquet, row 1",
            "link 'https://example.org/dead.png' was not fetched",
        ),
        ("data/train-00000-of-00001-ee.parquet, row 2", "fetched/b.png: SHA-256 is "),
    ],
}


def test_every_source_is_known_to_the_settings_and_to_the_check() -> None:
    assert tuple(PUBLIC) == tuple(EXPECTED) == get_args(SourceName)
    assert PUBLIC.keys() <= known()["sources"].keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_records_become_examples(name: str) -> None:
    public_fixtures.lay(Path(), name)
    examples, bad = read(name, KNOWN.get(name))
    found, shades = [], []
    for example in examples:
        roles = [message["role"] for message in example.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        texts = [message["content"] for message in example.messages]
        found.append((example.task, texts, [i.removeprefix(f"{UP}/") for i in example.images]))
        for image in example.images:
            assert image.startswith(UP)
            picture = load_image(MIXTURE / image)
            assert picture.size == (4, 3)
            shades.append(picture.getpixel((0, 0)))
    assert found == EXPECTED[name]
    if name in SHADES:  # references lead to the right pictures
        assert shades == [(shade,) * 3 for shade in SHADES[name]]
    assert len({example.id for example in examples}) == len(examples)  # the sources' own are not
    for (where, reason), (expected, start) in zip(bad, BAD.get(name, []), strict=True):
        assert where == expected
        assert reason.startswith(start)


def test_an_unpacked_archive_serves_as_well() -> None:
    folder = public_fixtures.lay(Path(), "vision_flan_1k")
    (folder / "image_191-task_1k.zip").unlink()
    with pytest.raises(MeritError, match=r"image_191-task_1k\.zip"):
        read("vision_flan_1k")
    public_fixtures.save(folder / "images_191task_1k/COCO_1.jpg", public_fixtures.picture(9))
    examples, bad = read("vision_flan_1k")
    assert examples[0].images == (f"{UP}/vision_flan_1k/images_191task_1k/COCO_1.jpg",)
    assert len(bad) == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"conversations": said("<image>\nWhy?", "  ")}, "answer.*'  '"),
    ({"conversations": said("<image>\nWhy?")}, "answer"),
    ({"conversations": "hello"}, "`conversations` .*'hello'"),
    ({"conversations": said("a") * 2}, "turn 2 is from user"),
    ({"conversations": said("<image> <image>", "b")}, "2 .*1 image"),
    ({"image": "absent.jpg"}, "'absent.jpg' .*image_191-task_1k.zip"),
    ({"image": "../../secret.jpg"}, "`image` .*secret"),
    ({"image": "/etc/secret.jpg"}, "`image` .*secret"),
    ({"image": "x" * 300}, "`image` .*xxx"),
    ({"image": "a\0.png"}, "`image` .*'a"),
    ({"image": None}, "`image` .*None"),
    ({"id": None, "image": ...}, "`image` .*'conversations', 'id'"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED)
def test_a_record_that_is_no_example_says_why(changes: dict[str, Any], reason: str) -> None:
    value = public_fixtures.VISION_FLAN[0] | {"id": "a"} | changes
    value = {key: found for key, found in value.items() if found is not ...}
    public_fixtures.vision_flan_1k(Path("vision_flan_1k"), [value])
    examples, [(where, found)] = read("vision_flan_1k")
    assert examples == []
    named = " (id 'a')" if value["id"] else ""
    assert where == f"annotation_191-task_1k.json, record 1{named}"
    assert re.search(reason, found)


def test_an_ambiguous_name_is_refused() -> None:
    folder = public_fixtures.lay(Path(), "vision_flan")
    public_fixtures.pack(
        folder / "shard_03/raw_dataset/again.zip", {"COCO_1.jpg": public_fixtures.picture(7)}
    )
    [(_, reason)] = read("vision_flan")[1]
    assert re.search("'COCO_1.jpg' .*2 files", reason)


def test_another_tasks_line_in_a_tasks_file_is_refused() -> None:
    name = "train/wic_10templates_train.jsonl"
    line = '{"inputs": "a", "targets": "b", "task": "wsc_10templates"}\n'
    public_fixtures.save(Path("flan", name), line)
    _, bad = read("flan", ["wic"])
    assert [where for where, _ in bad] == [f"{name}, line 1"]


def test_links_without_a_list_of_what_was_fetched_are_refused() -> None:
    folder = public_fixtures.lay(Path(), "laion_gpt4v")
    (folder / "fetched.jsonl").unlink()
    with pytest.raises(MeritError, match=r"fetched\.jsonl: missing"):
        read("laion_gpt4v")


@pytest.mark.parametrize("entries", [None, [{"response": "x"}], [{"instruction": "a"}] * 3])
def test_vlguard_takes_one_or_two_instructions(entries: Any) -> None:
    folder = public_fixtures.lay(Path(), "vlguard")
    value = {"id": "p", "image": "bad_ads/q.png", "instr-resp": entries}
    public_fixtures.save(folder / "train.json", [value])
    examples, bad = read("vlguard")
    assert (examples, len(bad)) == ([], 1)

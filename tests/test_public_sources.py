"""Each public source: its records as canonical examples, worked out by hand, quirk by quirk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import public_fixtures
import pytest
from public_fixtures import said

from merit.config.data import PublicSource, SourceName
from merit.data.examples import BadRecord, Example
from merit.data.images import ImageFinder, load_image
from merit.data.records import Source
from merit.data.sources.public import PUBLIC
from merit.errors import MeritError

Turns = list[tuple[str, str]]


def read(
    root: Path, name: str, tasks: list[str] | None = None
) -> tuple[list[Example], list[tuple[str, str]]]:
    """The examples of a laid-out source, and (where, why) of its bad records."""
    source, folder = PUBLIC[name], root / name
    images = root / "images" if source.images == "shared" else folder
    pictures, examples, bad = ImageFinder(images, root / "artifacts/x/data/mixture"), [], []
    for record in source.records(folder, tasks):
        try:
            examples.append(source.convert(record, pictures))
        except BadRecord as problem:
            bad.append((record.where, str(problem)))
    return examples, bad


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, so that references are what they are in a checkout."""
    monkeypatch.chdir(tmp_path)
    return Path()


def shape(example: Example) -> tuple[str, Turns, tuple[str, ...]]:
    contents = [message["content"] for message in example.messages]
    roles = [message["role"] for message in example.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    return example.task, list(zip(contents[::2], contents[1::2], strict=True)), example.images


UP = "../../../.."  # from artifacts/x/data/mixture to the working directory

EXPECTED: dict[str, list[tuple[str, Turns, tuple[str, ...]]]] = {
    "vision_flan_1k": [
        (
            "ok_vqa",
            [("What is it?\n<image>", "a boat")],
            (f"{UP}/vision_flan_1k/image_191-task_1k.zip/images_191task_1k/COCO_1.jpg",),
        ),
        (
            "CLEVR_CoGenT+QA",
            [("<image>\nHow many?", "(b) two")],
            (f"{UP}/vision_flan_1k/image_191-task_1k.zip/images_191task_1k/CLEVR+#U00e9 'x'.png",),
        ),
        (
            "ok_vqa",
            [("<image>\nWhy?", "Since < image> is a tag")],
            (f"{UP}/vision_flan_1k/image_191-task_1k.zip/images_191task_1k/COCO_1.jpg",),
        ),
    ],
    "vision_flan": [
        (
            "ok_vqa",
            [("What?\n<image>", "a boat")],
            (f"{UP}/vision_flan/shard_01/raw_dataset/coco.zip/coco/COCO_1.jpg",),
        ),
        (  # of two files of the name, the one in the task's own archive
            "wikihow_steps",
            [("<image>\nWhich?", "the sixth")],
            (f"{UP}/vision_flan/shard_09/raw_dataset/wikihow_steps.zip/x/method_1_step_6.jpg",),
        ),
    ],
    "the_cauldron": [
        (
            "ai2d",
            [("<image>\nQ1?", "Answer: B"), ("Q2?", "C")],
            (f"{UP}/the_cauldron/ai2d/train-00000-of-00002-aa.parquet/0000000/0",),
        ),
        (
            "ai2d",
            [("<image>\n< image>?", "D")],
            (f"{UP}/the_cauldron/ai2d/train-00001-of-00002-bb.parquet/0000000/0",),
        ),
        (
            "clevr_math",
            [("<image>\n1?", "1")],
            (f"{UP}/the_cauldron/clevr_math/train-00000-of-00001-dd.parquet/0000000/0",),
        ),
        (
            "nlvr2",
            [("<image>\n<image>\nBoth?", "No")],
            tuple(
                f"{UP}/the_cauldron/nlvr2/train-00000-of-00001-cc.parquet/0000000/{i}"
                for i in (0, 1)
            ),
        ),
    ],
    "lvis_instruct4v": [
        (
            "lvis_instruct4v",
            [("<image>\nA?", "a"), ("B?", "b")],
            (f"{UP}/images/coco/train2017.zip/train2017/1.jpg",),
        ),
        ("lvis_instruct4v", [("A?\n<image>", "c")], (f"{UP}/images/coco/val2017/2.jpg",)),
        ("lvis_instruct4v", [("No picture?", "none")], ()),
    ],
    "llava_preference": [
        (
            "llava_preference",
            [("<image>\nA?", "a"), ("B?", "answer 2")],
            (f"{UP}/images/coco/train2017/1.jpg",),
        ),
        ("llava_preference", [("<image>\nA?", "answer 1")], (f"{UP}/images/coco/train2014/2.jpg",)),
    ],
    "lrv_instruction": [
        ("lrv_instruction", [("<image>\nIs there a cat?", "There is none.")], (image,))
        for image in (
            f"{UP}/images/vg/VG_100K/17.jpg",
            f"{UP}/images/vg/VG_100K_2.zip/VG_100K_2/18.jpg",
        )
    ],
    "laion_gpt4v": [
        (
            "laion_gpt4v",
            [("<image>\nDescribe the image in detail.", "A grey square.")],
            (f"{UP}/laion_gpt4v/fetched/a.png",),
        )
    ],
    "vlguard": [
        (
            "vlguard",
            [("<image>\nWhat is shown?", "A street."), ("Who lives here?", "I cannot say.")],
            (f"{UP}/vlguard/train.zip/train/privacyAlert/p.png",),
        ),
        (
            "vlguard",
            [("<image>\nShare this.", "I will not.")],
            (f"{UP}/vlguard/train.zip/bad_ads/q.png",),
        ),
    ],
    "llava_pretrain": [
        (
            "llava_pretrain",
            [("<image>", caption)],
            (f"{UP}/llava_pretrain/images.zip/00453/{i}.jpg",),
        )
        for i, caption in ((1, "a mattress topper"), (2, "two boats"))
    ],
    "llava_mix665k": [
        ("coco", [("<image>\nA?", "a")], (f"{UP}/images/coco/train2017/1.jpg",)),
        ("ocr_vqa", [("<image>\nB?", "b")], (f"{UP}/images/ocr_vqa/images/2.jpg",)),
        ("text", [("An < image> tag?", "HTML")], ()),
    ],
    "llava_next": [
        (
            "chartqa",
            [("<image>\nA?", "a")],
            (f"{UP}/llava_next/data/train-00000-of-00001.parquet/0000000",),
        ),
        ("sharegpt", [("Text?", "only"), ("< image>?", "a tag")], ()),
        (
            "chartqa",
            [("<image>\nC?", "c")],
            (f"{UP}/llava_next/data/train-00000-of-00001.parquet/0000002",),
        ),
    ],
    "llava_recap_cc3m": [
        (
            "llava_recap_cc3m",
            [("<image>\nDescribe it.", "A long one.")],
            (f"{UP}/llava_recap_cc3m/data/train-00000-of-00001.parquet/0000000",),
        )
    ],
    "flan": [
        ("bool_q", [("Is ice cold?\nOPTIONS:\n- no\n- yes", "yes")], ()),
        ("bool_q", [("Is < image> a tag?", "yes")], ()),
        ("hellaswag", [("A man sits. Then", "he stands up.")], ()),
    ],
}
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
KNOWN = {"the_cauldron": ["ai2d", "clevr_math", "nlvr2"], "flan": ["bool_q", "hellaswag"]}


@pytest.mark.parametrize("name", PUBLIC)
def test_records_become_examples(root: Path, name: str) -> None:
    public_fixtures.lay(root, name)
    examples, bad = read(root, name, KNOWN.get(name))
    assert [shape(example) for example in examples] == EXPECTED[name]
    assert [where for where, _ in bad] == [where for where, _ in BAD.get(name, [])]
    for (_, found), (_, reason) in zip(bad, BAD.get(name, []), strict=True):
        assert found.startswith(reason)
    assert len({example.id for example in examples}) == len(examples)  # the sources' own are not
    folder = root / "artifacts/x/data/mixture"
    for example in examples:
        for image in example.images:
            assert load_image(folder / image).size == (4, 3)


def test_every_source_says_what_it_is_and_where_it_is_from() -> None:
    for name in PUBLIC:
        source = PUBLIC[name]
        assert isinstance(source, Source)
        assert PublicSource.model_validate({"name": name}).name == name
        assert source.licence
        assert source.repository or source.hint
    assert tuple(PUBLIC) == get_args(SourceName)


def test_two_images_in_a_row_are_two_pictures(root: Path) -> None:
    public_fixtures.lay(root, "the_cauldron")
    examples, _ = read(root, "the_cauldron", ["nlvr2"])
    folder = root / "artifacts/x/data/mixture"
    shades = [load_image(folder / image).getpixel((0, 0)) for image in examples[0].images]
    assert shades == [(3, 3, 3), (4, 4, 4)]


def test_archives_are_found_by_their_tables_whatever_the_name_needs(root: Path) -> None:
    public_fixtures.lay(root, "vision_flan_1k")
    examples, _ = read(root, "vision_flan_1k")
    image = load_image(root / "artifacts/x/data/mixture" / examples[1].images[0])
    assert image.getpixel((0, 0)) == (2, 2, 2)


def test_an_unpacked_archive_serves_as_well(root: Path) -> None:
    folder = public_fixtures.lay(root, "vision_flan_1k")
    (folder / "image_191-task_1k.zip").unlink()
    public_fixtures.save(folder / "images_191task_1k/COCO_1.jpg", public_fixtures.picture(9))
    examples, bad = read(root, "vision_flan_1k")
    assert examples[0].images == (f"{UP}/vision_flan_1k/images_191task_1k/COCO_1.jpg",)
    assert [reason for _, reason in bad] == [
        "image \"CLEVR+é 'x'.png\" not found in image_191-task_1k.zip"
    ]


def test_without_archive_and_folder_nothing_is_read(root: Path) -> None:
    folder = public_fixtures.lay(root, "vision_flan_1k")
    (folder / "image_191-task_1k.zip").unlink()
    with pytest.raises(MeritError, match=r"image folder missing: neither image_191-task_1k\.zip"):
        read(root, "vision_flan_1k")


LISTED = "`conversations` must be a list of turns, found 'hello'"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"conversations": said("<image>\nWhy?", "  ")}, "without an answer: found '  '"),
    ({"conversations": said("<image>\nWhy?")}, "without an answer: the last turn is a prompt"),
    ({"conversations": []}, "without an answer: the last turn is a prompt"),
    ({"conversations": [*said("<image>"), {"from": "gpt"}]}, "without an answer: found None"),
    ({"conversations": "hello"}, LISTED),
    ({"conversations": said("a") * 2}, "turn 2 is from 'human', expected 'gpt'"),
    ({"conversations": said("<image> <image>", "b")}, "2 `<image>` in the prompts, but 1 image(s)"),
    ({"conversations": said("Why?", "no mark")}, "0 `<image>` in the prompts, but 1 image(s)"),
    ({"image": "absent.jpg"}, "image 'absent.jpg' not found in image_191-task_1k.zip"),
    ({"image": "../../secret.jpg"}, "`image` must be a path within the images' folder"),
    ({"image": "/etc/secret.jpg"}, "`image` must be a path within the images' folder"),
    ({"image": "x" * 300}, "`image` must be a path within the images' folder, found 'xxx"),
    ({"image": "a\0.png"}, "`image` must be a path within the images' folder, found 'a"),
    ({"image": None}, "`image` must be a path within the images' folder, found None"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED)
def test_a_record_that_is_no_example_says_why(
    root: Path, changes: dict[str, Any], reason: str
) -> None:
    value = public_fixtures.VISION_FLAN[0] | changes
    public_fixtures.vision_flan_1k(root / "vision_flan_1k", [value])
    examples, [(where, found)] = read(root, "vision_flan_1k")
    assert examples == []
    assert where == f"annotation_191-task_1k.json, record 1 (id {value['id']!r})"
    assert found.startswith(reason)


def test_a_record_without_a_key_names_it(root: Path) -> None:
    value = {"id": "1", "task_name": "a", "image": "COCO_1.jpg"}
    public_fixtures.vision_flan_1k(root / "vision_flan_1k", [value])
    _, [(_, reason)] = read(root, "vision_flan_1k")
    assert reason == "key `conversations` is missing; found ['id', 'image', 'task_name']"


def test_an_ambiguous_name_is_refused(root: Path) -> None:
    folder = public_fixtures.lay(root, "vision_flan")
    public_fixtures.pack(
        folder / "shard_03/raw_dataset/again.zip", {"COCO_1.jpg": public_fixtures.picture(7)}
    )
    _, bad = read(root, "vision_flan")
    assert bad == [
        (
            "vision_flan.json, record 1 (id 'a')",
            "image 'COCO_1.jpg' ambiguous, 2 files are called so, below vision_flan/",
        )
    ]


def test_another_tasks_line_in_a_tasks_file_is_refused(root: Path) -> None:
    public_fixtures.save(
        root / "flan/train/wic_10templates_train.jsonl",
        '{"inputs": "a", "targets": "b", "task": "wsc_10templates"}\n',
    )
    _, bad = read(root, "flan", ["wic"])
    assert bad == [
        (
            "train/wic_10templates_train.jsonl, line 1",
            "`task` is 'wsc_10templates', expected 'wic_10templates'",
        )
    ]


def test_links_without_a_list_of_what_was_fetched_are_refused(root: Path) -> None:
    folder = public_fixtures.lay(root, "laion_gpt4v")
    (folder / "fetched.jsonl").unlink()
    with pytest.raises(MeritError, match=r"fetched\.jsonl: missing; this source holds links"):
        read(root, "laion_gpt4v")


@pytest.mark.parametrize("entries", [None, [], [{"response": "x"}], [{"instruction": "a"}] * 3])
def test_vlguard_takes_one_or_two_instructions(root: Path, entries: Any) -> None:
    folder = public_fixtures.lay(root, "vlguard")
    public_fixtures.save(
        folder / "train.json", [{"id": "p", "image": "bad_ads/q.png", "instr-resp": entries}]
    )
    examples, bad = read(root, "vlguard")
    assert examples == []
    assert len(bad) == 1

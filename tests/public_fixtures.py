"""Tiny folders laid out like the public sources' hub repositories, in their exact formats.

Every text and picture is made here; nothing is copied from the sources.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from merit.io.artifacts import file_hash

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT = pa.struct([(key, pa.string()) for key in ("user", "assistant", "source")])
TURN = pa.struct([("from", pa.string()), ("value", pa.string())])


def picture(shade: int = 0, size: tuple[int, int] = (4, 3), mode: str = "RGB") -> bytes:
    """A PNG whose first pixel is `shade`."""
    image = Image.new("L", size, 128)
    image.putpixel((0, 0), shade)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, format="PNG" if mode != "CMYK" else "TIFF")
    return buffer.getvalue()


def pack(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def save(path: Path, content: bytes | str | list[Any]) -> None:
    """Bytes, text, or a list as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def save_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    save(path, "".join(json.dumps(row) + "\n" for row in rows))


def save_table(path: Path, columns: dict[str, Any], group: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)


def said(*texts: str) -> list[dict[str, str]]:
    """LLaVA's turns, the human first."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def record(identifier: str, image: str, *texts: str, **rest: Any) -> dict[str, Any]:
    return {"id": identifier, "image": image, "conversations": said(*texts), **rest}


def flan_record(identifier: str, image: str, task: str, *texts: str) -> dict[str, Any]:
    return record(identifier, image, *texts, task_name=task)


VISION_FLAN = [
    flan_record("multiinstruct_a_1", "COCO_1.jpg", "ok_vqa", "What is it?\n<image>", "a boat"),
    # the same id again, another task, the token in front, a name beyond ASCII
    flan_record(
        "multiinstruct_a_1", "CLEVR+é 'x'.png", "CLEVR_CoGenT+QA", "<image>\nHow many?", "(b) two"
    ),
    flan_record("vision-flan_b", "COCO_1.jpg", "ok_vqa", "<image>\nWhy?", "Since <image> is a tag"),
]


# Each of these lays one source: its own folder is `folder`, shared images are beside it.


def vision_flan_1k(folder: Path, records: list[dict[str, Any]] | None = None) -> None:
    save(folder / "annotation_191-task_1k.json", VISION_FLAN if records is None else records)
    members = {"": b"", "COCO_1.jpg": picture(1), "CLEVR+#U00e9 'x'.png": picture(2)}
    pack(
        folder / "image_191-task_1k.zip",
        {f"images_191task_1k/{name}": content for name, content in members.items()},
    )


def vision_flan(folder: Path) -> None:
    records = [
        flan_record("a", "COCO_1.jpg", "ok_vqa", "What?\n<image>", "a boat"),
        flan_record("b", "method_1_step_6.jpg", "wikihow_steps", "<image>\nWhich?", "the sixth"),
    ]
    save(folder / "vision_flan.json", records)
    pack(folder / "shard_01/raw_dataset/coco.zip", {"coco/COCO_1.jpg": picture(1)})
    pack(folder / "shard_02/raw_dataset/other.zip", {"method_1_step_6.jpg": picture(2)})
    pack(folder / "shard_09/raw_dataset/wikihow_steps.zip", {"x/method_1_step_6.jpg": picture(3)})


def the_cauldron(folder: Path) -> None:
    def rows(name: str, *found: tuple[list[bytes], list[tuple[str, str]]]) -> None:
        images = [[{"bytes": b, "path": None} for b in row] for row, _ in found]
        texts = [[{"user": u, "assistant": a, "source": "S"} for u, a in row] for _, row in found]
        columns = {
            "images": pa.array(images, pa.list_(IMAGE)),
            "texts": pa.array(texts, pa.list_(TEXT)),
        }
        save_table(folder / f"{name}.parquet", columns, 1)

    grey = picture(2, mode="CMYK")
    rows(
        "ai2d/train-00000-of-00002-aa",
        ([picture(1)], [("Q1?", "Answer: B"), ("Q2?", "C")]),
    )
    rows("ai2d/train-00001-of-00002-bb", ([grey], [("<image>?", "D")]))
    rows("nlvr2/train-00000-of-00001-cc", ([picture(3), picture(4)], [("Both?", "No")]))
    rows(
        "clevr_math/train-00000-of-00001-dd",
        ([picture(5)], [("1?", "1")]),
        ([], [("2?", "2")]),
    )


def lvis_instruct4v(folder: Path) -> None:
    records = [
        record("1", "coco/train2017/1.jpg", "<image>\nA?", "a", "B?", "b"),
        record("2", "coco/val2017/2.jpg", "A?\n<image>", "c"),
        {"id": "3", "conversations": said("No picture?", "none")},
    ]
    save(folder / "lvis_instruct4v_220k.json", records)
    pack(folder.parent / "images/coco/train2017.zip", {"train2017/1.jpg": picture(1)})
    save(folder.parent / "images/coco/val2017/2.jpg", picture(2))


def llava_preference(folder: Path) -> None:
    def compared(image: str, preference: int, *texts: str) -> dict[str, Any]:
        outputs = {f"output_{i}": {"from": "llava", "value": f"answer {i}"} for i in (1, 2)}
        return record("x", image, *texts, hallucination=False, preference=preference, **outputs)

    records = [
        compared("1.jpg", 2, "<image>\nA?", "a", "B?"),
        compared("2.jpg", 1, "<image>\nA?", "to be replaced"),
        compared("1.jpg", 3, "<image>\nA?"),
    ]
    save(folder / "llava_7b_v1_preference.json", records)
    save(folder.parent / "images/coco/train2017/1.jpg", picture(1))
    save(folder.parent / "images/coco/train2014/2.jpg", picture(2))


def lrv_instruction(folder: Path) -> None:
    rest = {"question": "Is there a cat?", "answer": "There is none.", "task": "negative"}
    save(folder / "filter_cap.json", [{"image_id": "17", **rest}, {"image_id": 18, **rest}])
    save(folder.parent / "images/vg/VG_100K/17.jpg", picture(1))
    pack(folder.parent / "images/vg/VG_100K_2.zip", {"VG_100K_2/18.jpg": picture(2)})


def laion_gpt4v(folder: Path) -> None:
    links = [f"https://example.org/{name}.png" for name in ("a", "dead", "b")]
    columns = {
        "link": links,
        "caption": ["A grey square.", "Gone.", "Another."],
        "message_id": ["1", "2", "3"],
        "timestamp": ["t", "t", "t"],
        "image": pa.nulls(3),
    }
    save_table(folder / "data/train-00000-of-00001-ee.parquet", columns, 3)
    save(folder / "fetched/a.png", picture(1))
    save(folder / "fetched/b.png", picture(2))
    found = {
        "link": links[0],
        "file": "fetched/a.png",
        "sha256": file_hash(folder / "fetched/a.png"),
    }
    changed = {"link": links[2], "file": "fetched/b.png", "sha256": "0" * 64}
    save_lines(folder / "fetched.jsonl", [found, changed])


def vlguard(folder: Path) -> None:
    safe = [
        {"safe_instruction": "What is shown?", "response": "A street."},
        {"unsafe_instruction": "Who lives here?", "response": "I cannot say."},
    ]
    unsafe = [{"instruction": "Share this.", "response": "I will not."}]
    harm = {"harmful_category": "risky", "harmful_subcategory": "political"}
    records = [
        {"id": "p", "image": "privacyAlert/p.png", "safe": True, "instr-resp": safe},
        {"id": "q", "image": "bad_ads/q.png", "safe": False, **harm, "instr-resp": unsafe},
    ]
    save(folder / "train.json", records)
    members = {"train/privacyAlert/p.png": picture(1), "bad_ads/q.png": picture(2)}
    pack(folder / "train.zip", members)


def llava_pretrain(folder: Path) -> None:
    records = [
        record(
            "1", "00453/1.jpg", "Render a clear summary of the photo.\n<image>", "a mattress topper"
        ),
        record("2", "00453/2.jpg", "<image>\nWrite a terse caption.", "two boats"),
    ]
    save(folder / "blip_laion_cc_sbu_558k.json", records)
    pack(folder / "images.zip", {f"00453/{i}.jpg": picture(i) for i in (1, 2)})


def llava_mix665k(folder: Path) -> None:
    shared = [{"from": "gpt", "value": "lost"}, *said("An <image> tag?", "HTML")]
    records = [
        record("1", "coco/train2017/1.jpg", "<image>\nA?", "a"),
        record("2", "ocr_vqa/images/2.jpg", "<image>\nB?", "b"),
        {"id": "3", "model": "", "conversations": shared},
    ]
    save(folder / "llava_v1_5_mix665k.json", records)
    save(folder.parent / "images/coco/train2017/1.jpg", picture(1))
    save(folder.parent / "images/ocr_vqa/images/2.jpg", picture(2, mode="P"))  # a PNG, in truth


def _llava_table(folder: Path, *rows: tuple[str, list[dict[str, str]], str, bytes | None]) -> None:
    columns = {
        "id": [row[0] for row in rows],
        "conversations": pa.array([row[1] for row in rows], pa.list_(TURN)),
        "data_source": [row[2] for row in rows],
        "image": pa.array([r[3] and {"bytes": r[3], "path": "x.jpg"} for r in rows], IMAGE),
    }
    save_table(folder / "data/train-00000-of-00001.parquet", columns, 2)


def llava_next(folder: Path) -> None:
    _llava_table(
        folder,
        ("a", said("<image>\nA?", "a"), "chartqa", picture(1)),
        ("b", said("Text?", "only", "<image>?", "a tag"), "sharegpt", None),
        ("c", said("<image>\nC?", "c"), "chartqa", picture(3)),
    )


def llava_recap_cc3m(folder: Path) -> None:
    _llava_table(folder, ("a", said("<image>\nDescribe it.", "A long one."), "cc3m", picture(1)))


def flan(folder: Path) -> None:
    for task, lines in {
        "bool_q": [("Is ice cold?\nOPTIONS:\n- no\n- yes", "yes"), ("Is <image> a tag?", "yes")],
        "hellaswag": [("A man sits. Then", "he stands up.")],
    }.items():
        rows = [{"inputs": i, "targets": t, "task": f"{task}_10templates"} for i, t in lines]
        save_lines(folder / f"train/{task}_10templates_train.jsonl", rows)


def lay(root: Path, name: str) -> Path:
    """The source's files below `root`, as `data.folder`; the source's own folder."""
    globals()[name](root / name)
    return root / name

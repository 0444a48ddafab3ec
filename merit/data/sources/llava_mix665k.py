"""LLaVA-1.5's instruction mix: hub `liuhaotian/LLaVA-Instruct-150K`.

`llava_v1_5_mix665k.json`, CC BY 4.0, 665,298 records: coco 364,100, vg 86,417, gqa 72,140, ocr_vqa
80,000, textvqa 21,953 and 40,688 of text alone (ShareGPT: no `image`, a `model` besides). Revision
9d451dc. Images are not in the repository; below `data.folder`/images, unpacked or as zips:
`coco/train2017/`, `gqa/images/`, `ocr_vqa/images/`, `textvqa/train_images/`, `vg/VG_100K/`,
`vg/VG_100K_2/`.

Tasks are the images' first folders and `text`. Quirks: several turns; 355 OCR-VQA images can no
longer be downloaded (mirror: hub `ej2/llava-ocr-vqa`), 1437717772.jpg is corrupt: bad records. GIF
and PNG files named .jpg are read as what they are. A ShareGPT conversation that begins with an
answer loses it, as in LLaVA.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from merit.data.examples import Example, from_llava
from merit.data.images import ImageFinder
from merit.data.records import json_records
from merit.data.source import Record, Source, numbered, only

ANNOTATIONS = "llava_v1_5_mix665k.json"
TASKS = ("coco", "gqa", "ocr_vqa", "text", "textvqa", "vg")


def task_of(value: dict[str, Any]) -> str:
    """The first folder of the image, `text` without one."""
    return str(value["image"]).split("/")[0] if value.get("image") else "text"


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every record, in its order."""
    return numbered(ANNOTATIONS, json_records(folder / ANNOTATIONS), task_of)


def convert(record: Record, pictures: ImageFinder) -> Example:
    """One image, or text alone, where no `<image>` is a mark. Raises BadRecord."""
    turns = record.get("conversations")
    if record.task == "text":
        return from_llava(record.id, record.task, turns, (), marked=False)
    return from_llava(record.id, record.task, turns, (pictures.find(record.value["image"]),))


SOURCE = Source(
    repository="liuhaotian/LLaVA-Instruct-150K",
    revision="9d451dc7629cfe0469f6ae4432b765cd603d5fcb",
    licence="CC BY 4.0; images: each dataset's own",
    files=only(ANNOTATIONS),
    records=records,
    convert=convert,
    tasks=TASKS,
    images="shared",
    gigabytes=1.0,
    num_records=665_298,
)

"""LLaVA-Pretrain, stage 1 of a LLaVA-style base: hub `liuhaotian/LLaVA-Pretrain`.

Revision 70f9d1e. `blip_laion_cc_sbu_558k.json` (181 MB, 558,128 records) and `images.zip` (27.4
GB), read as it is or unpacked; licence "other" (images: LAION's, CC's and SBU's terms). One turn:
an instruction with `<image>` first or last, and a caption.

Quirk: LLaVA drops the instruction in stage 1 and trains image -> caption, and so does this: the
prompt is `<image>` alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import IMAGE_TOKEN, Example, from_llava
from merit.data.images import ImageFinder
from merit.data.records import json_records
from merit.data.source import Record, Source, numbered, only

ANNOTATIONS, IMAGES = "blip_laion_cc_sbu_558k.json", "images.zip"
TASK = "llava_pretrain"


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every record, in its order."""
    return numbered(ANNOTATIONS, json_records(folder / ANNOTATIONS), lambda value: TASK)


def convert(record: Record, pictures: ImageFinder) -> Example:
    """The image, then the caption. Raises BadRecord."""
    image = pictures.member(IMAGES, record.get("image"))
    example = from_llava(record.id, record.task, record.get("conversations"), (image,))
    plain = {"role": "user", "content": IMAGE_TOKEN}
    return Example(example.id, example.task, (plain, example.messages[1]), example.images)


SOURCE = Source(
    repository="liuhaotian/LLaVA-Pretrain",
    revision="70f9d1e5e1a697fe35830875cfc7de1dd590d727",
    licence="other: LAION's, CC's and SBU's terms",
    files=only(ANNOTATIONS),
    records=records,
    convert=convert,
    archives=(f"{IMAGES}|00000",),
    tasks=(TASK,),
    gigabytes=27.6,
    num_records=558_128,
)

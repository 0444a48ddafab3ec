"""LVIS-Instruct4V: hub `X2FD/LVIS-Instruct4V`.

Revision 49b7d3f. One file, `lvis_instruct4v_220k.json` (359 MB, 222 or 223 thousand records; counts
differ between its name and the hub's viewer), LLaVA's format, several turns. GitHub repository MIT;
the hub states no licence. Images are COCO's and not in the repository: `coco/train2017/` and
`coco/val2017/`, both of which occur, unpacked or as `coco/train2017.zip` below
`data.folder`/images.

Quirk: a record may have no `image`; it is a text-only conversation then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import Example, from_llava
from merit.data.images import ImageFinder
from merit.data.records import json_records
from merit.data.source import Record, Source, numbered, only

ANNOTATIONS = "lvis_instruct4v_220k.json"
TASK = "lvis_instruct4v"


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every record, in its order."""
    return numbered(ANNOTATIONS, json_records(folder / ANNOTATIONS), lambda value: TASK)


def convert(record: Record, pictures: ImageFinder) -> Example:
    """One image or none. Raises BadRecord."""
    name = record.value.get("image")
    images = () if name is None else (pictures.find(name),)
    return from_llava(record.id, record.task, record.get("conversations"), images)


SOURCE = Source(
    repository="X2FD/LVIS-Instruct4V",
    revision="49b7d3f2462c675aa6da3b4ed59bc5b93a241e6e",
    licence="MIT (GitHub); images: COCO's",
    files=only(ANNOTATIONS),
    records=records,
    convert=convert,
    tasks=(TASK,),
    images="shared",
    gigabytes=0.4,
)

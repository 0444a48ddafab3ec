"""LRV-Instruction: from local files alone.

The paper names hub `VictorSanh/LrvInstruction`, which holds a loading script and no data, and
scripts are not run by datasets 4 and later. The data, 120 to 300 thousand records, are on Google
Drive only, by way of GitHub `FuxiaoLiu/LRV-Instruction` (0a5ab53, BSD-3): `filter_cap.json`,
`filter_cap1.json`. Lay them into the source's folder. Images are Visual Genome's: `vg/VG_100K/` and
`vg/VG_100K_2/` (both are tried) below `data.folder`/images, unpacked or as zips.

Records are `{image_id, question, answer, task}`, `image_id` a string in some copies and a number in
others. `task` (16 of them, "negative" among them) is a kind of question; the source is one task
here, as in the paper's count of 176.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import BadRecord, Example, from_turns
from merit.data.hub import files
from merit.data.images import ImageFinder
from merit.data.records import json_records
from merit.data.source import Record, Source, numbered, only

PATTERN = "filter_cap*.json"
TASK = "lrv_instruction"


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every record of every file."""
    for file in files(folder, [PATTERN]):
        yield from numbered(file.name, json_records(file), lambda value: TASK)


def convert(record: Record, pictures: ImageFinder) -> Example:
    """The image, then the question. Raises BadRecord."""
    number = record.get("image_id")
    if isinstance(number, bool) or not isinstance(number, (str, int)):
        raise BadRecord(f"`image_id` must be a number, found {number!r:.80}")
    try:
        image = pictures.find(f"vg/VG_100K/{number}.jpg")
    except BadRecord:
        image = pictures.find(f"vg/VG_100K_2/{number}.jpg")
    turn = (record.get("question"), record.get("answer"))
    return from_turns(record.id, record.task, [turn], (image,))


SOURCE = Source(
    repository=None,
    revision=None,
    licence="BSD-3; images: Visual Genome's",
    files=only(PATTERN),
    records=records,
    convert=convert,
    tasks=(TASK,),
    images="shared",
    hint="it is on Google Drive only and cannot be fetched: take the links of download.txt in "
    "https://github.com/FuxiaoLiu/LRV-Instruction and lay the files there",
)

"""VLGuard: hub `ys-zong/VLGuard`, gated: its conditions must be accepted there.

Revision b0be37a (as others pin it; the gated repository itself was not readable).
`train.json` (2,000 records, 977 safe and 1,023 unsafe) and `train.zip`. A safe record has two
instructions on its image, a safe and an unsafe one, an unsafe record one: 2,977 pairs. The licence
of the annotations is stated on the hub behind the gate; images keep their own.

Quirks: as in the authors' converter, a record is one conversation of one or two turns, the image
before the first. The authors shuffle (seed 0) and write no newline after `<image>`; here the order
is the file's and the newline stands. One id and image occur twice. Members of the zip are looked
for with and without `train/`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from merit.data.examples import BadRecord, Example, from_turns
from merit.data.images import ImageFinder
from merit.data.records import json_records
from merit.data.source import Record, Source, numbered, only

ANNOTATIONS, IMAGES = "train.json", "train.zip"
INSTRUCTIONS = ("safe_instruction", "unsafe_instruction", "instruction")
TASK = "vlguard"


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every record, in its order."""
    return numbered(ANNOTATIONS, json_records(folder / ANNOTATIONS), lambda value: TASK)


def convert(record: Record, pictures: ImageFinder) -> Example:
    """One conversation of one or two turns. Raises BadRecord."""
    entries = record.get("instr-resp")
    if not isinstance(entries, list) or not 1 <= len(entries) <= 2:
        raise BadRecord(f"`instr-resp` must be one or two turns, found {entries!r:.80}")
    turns = [_turn(entry) for entry in entries]
    return from_turns(record.id, record.task, turns, (_image(record.get("image"), pictures),))


def _turn(entry: Any) -> tuple[Any, Any]:
    keys = [key for key in INSTRUCTIONS if isinstance(entry, dict) and key in entry]
    if len(keys) != 1:
        raise BadRecord(f"expected one of {', '.join(INSTRUCTIONS)} in {entry!r:.80}")
    return entry[keys[0]], entry.get("response")


def _image(name: object, pictures: ImageFinder) -> str:
    try:
        return pictures.member(IMAGES, name)
    except BadRecord:
        return pictures.member(IMAGES, name, "train")


SOURCE = Source(
    repository="ys-zong/VLGuard",
    revision="b0be37a1ab7accb14e10d6a0ec3ce62cfaff2d46",
    licence="stated behind the gate; images: each its own",
    files=only(ANNOTATIONS),
    records=records,
    convert=convert,
    archives=(f"{IMAGES}|train",),
    tasks=(TASK,),
    gated=True,
    num_records=2_000,
)

"""LLaVA-Human-Preference-10K: hub `zhiqings/LLaVA-Human-Preference-10K`.

Revision e60c9e5. `llava_7b_v1_preference.json` (32.3 MB), Apache-2.0: `id`, `image`,
`conversations`, `output_1` and `output_2` (`{from, value}`), `preference`, `hallucination`. Images
are COCO's, named without a folder: looked for in `coco/train2017/`, then `coco/train2014/` below
`data.folder`/images (readers differ), as 000000123456.jpg.

Quirks: it is preference data, and the paper trains on it without saying how. Here the answer to the
last question is `output_{preference}`; an answer of `conversations` to it is replaced (whether
there is one is not documented, so both are read). A preference other than 1 or 2 is a bad record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import BadRecord, Example, from_llava
from merit.data.images import ImageFinder
from merit.data.records import json_records
from merit.data.source import Record, Source, numbered, only

ANNOTATIONS = "llava_7b_v1_preference.json"
TASK = "llava_preference"


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every record, in its order."""
    return numbered(ANNOTATIONS, json_records(folder / ANNOTATIONS), lambda value: TASK)


def convert(record: Record, pictures: ImageFinder) -> Example:
    """The conversation with the preferred answer at its end. Raises BadRecord."""
    preference, conversations = record.get("preference"), record.get("conversations")
    if isinstance(preference, bool) or preference not in (1, 2):
        raise BadRecord(f"`preference` must be 1 or 2, found {preference!r}")
    output = record.get(f"output_{preference}")
    if not isinstance(output, dict) or not isinstance(conversations, list) or not conversations:
        raise BadRecord(f"`output_{preference}` must be a turn after `conversations`")
    last = conversations[-1]
    if isinstance(last, dict) and last.get("from") == "gpt":
        conversations = conversations[:-1]
    turns = [*conversations, {"from": "gpt", "value": output.get("value")}]
    return from_llava(record.id, record.task, turns, (_image(record.get("image"), pictures),))


def _image(name: object, pictures: ImageFinder) -> str:
    try:
        return pictures.find(f"coco/train2017/{name}")
    except BadRecord:
        return pictures.find(f"coco/train2014/{name}")


SOURCE = Source(
    repository="zhiqings/LLaVA-Human-Preference-10K",
    revision="e60c9e520dde0c331f1b833ec991789ed238554c",
    licence="Apache-2.0; images: COCO's",
    files=only(ANNOTATIONS),
    records=records,
    convert=convert,
    tasks=(TASK,),
    images="shared",
    gigabytes=0.03,
)

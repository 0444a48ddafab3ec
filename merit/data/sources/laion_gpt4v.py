"""LAION GPT-4V: hub `laion/gpt4v-dataset`; optional, since its images are only links.

Revision 99a9caf, CC0-1.0: `data/train-*.parquet`, 12,356 rows, with `link`, `caption`,
`message_id`, `timestamp`. Images are fetched by the user, not here: many links are dead and none is
pinned, so the result cannot be reproduced byte by byte. `fetched.jsonl` in the source's folder says
what was fetched, a line an image: `{"link", "file", "sha256"}`, `file` relative to the folder. A
row whose link is not in it, or whose file has another hash, is a bad record, so `on_bad_record:
skip` belongs to it.

There is no prompt; "Describe the image in detail." is ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import BadRecord, Example, from_turns
from merit.data.hub import files
from merit.data.images import ImageFinder
from merit.data.records import jsonl_records
from merit.data.source import Record, Source, parquet_records
from merit.errors import MeritError
from merit.io.artifacts import file_hash

PATTERN, FETCHED = "data/train-*.parquet", "fetched.jsonl"
TASK, PROMPT = "laion_gpt4v", "Describe the image in detail."
TO_DO = (
    'this source holds links, no images. Fetch them and list {"link", "file", "sha256"} a line, or '
    "leave the source out"
)


def patterns(tasks: Collection[str] | None) -> list[str]:
    """The rows alone: what was fetched is not on the hub."""
    return [PATTERN]


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every row, with what was fetched of its link. Raises MeritError without `fetched.jsonl`."""
    if not (folder / FETCHED).is_file():
        raise MeritError(f"{folder / FETCHED}: missing; {TO_DO}")
    fetched = {str(line.get("link")): line for line in jsonl_records(folder / FETCHED)}
    for file in files(folder, [PATTERN]):
        for record in parquet_records(folder, file, ["link", "caption"], lambda value: TASK):
            record.value["fetched"] = fetched.get(str(record.value["link"]))
            yield record


def convert(record: Record, pictures: ImageFinder) -> Example:
    """The caption as answer to a prompt of ours. Raises BadRecord."""
    fetched = record.value["fetched"]
    if fetched is None:
        raise BadRecord(f"link {record.value['link']!r} was not fetched")
    image = pictures.find(fetched.get("file"))
    found = file_hash(pictures.root / fetched["file"])
    if found != fetched.get("sha256"):
        raise BadRecord(f"{fetched['file']}: SHA-256 is {found}, {FETCHED} says otherwise")
    return from_turns(record.id, record.task, [(PROMPT, record.value["caption"])], (image,))


SOURCE = Source(
    repository="laion/gpt4v-dataset",
    revision="99a9caf",
    licence="CC0-1.0; images: their owners'",
    files=patterns,
    records=records,
    convert=convert,
    tasks=(TASK,),
    gigabytes=0.01,
    num_records=12_356,
)

"""LLaVA-NeXT's instruction data: hub `lmms-lab/LLaVA-NeXT-Data`.

Revision c8aef39, Apache-2.0 (card): 250 parquet files, 92 GB, 779,289 rows with `id`,
`conversations` (`{from, value}`), `data_source`, `image` (may be null). The repository holds the
same as raw archives, which are not fetched. A `data_source` is a task.

Quirk: a row without an image is a conversation of text alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import Example, from_llava
from merit.data.hub import files
from merit.data.images import ImageFinder
from merit.data.source import Record, Source, only, parquet_records

PATTERN = "data/train-*.parquet"
COLUMNS = ["id", "conversations", "data_source", "image.path"]


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every row of every file."""
    for file in files(folder, [PATTERN]):
        yield from parquet_records(
            folder, file, COLUMNS, lambda value: str(value["data_source"] or "")
        )


def convert(record: Record, pictures: ImageFinder) -> Example:
    """One image or none. Raises BadRecord."""
    file, row = record.value["file"], record.value["row"]
    turns = record.value["conversations"]
    if record.value["image"] is None:
        return from_llava(record.id, record.task, turns, (), marked=False)
    return from_llava(record.id, record.task, turns, (f"{pictures.reference(file)}/{row:07d}",))


SOURCE = Source(
    repository="lmms-lab/LLaVA-NeXT-Data",
    revision="c8aef391ce214167c4ebc7f06bc05a50dee2e75f",
    licence="Apache-2.0 (card); each underlying dataset's own",
    files=only(PATTERN),
    records=records,
    convert=convert,
    images="rows",
    gigabytes=92.0,
    num_records=779_289,
)

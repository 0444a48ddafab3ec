"""LLaVA-ReCap-CC3M, stage 1.5 of the scaled base: hub `lmms-lab/LLaVA-ReCap-CC3M`.

Revision 9ffc2b0: 281 parquet files, 138.5 GB, 2,857,560 rows with `id`, `image`, `conversations`,
`data_source`; long captions of CC3M's images. Licence: Conceptual Captions' terms apply to the
images; none was recorded for the captions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import BadRecord, Example, from_llava
from merit.data.hub import files
from merit.data.images import ImageFinder
from merit.data.source import Record, Source, only, parquet_records

PATTERN = "data/train-*.parquet"
TASK = "llava_recap_cc3m"


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every row of every file."""
    for file in files(folder, [PATTERN]):
        yield from parquet_records(
            folder, file, ["id", "conversations", "image.path"], lambda value: TASK
        )


def convert(record: Record, pictures: ImageFinder) -> Example:
    """The image and its caption. Raises BadRecord."""
    if record.value["image"] is None:
        raise BadRecord("no image in the row")
    reference = f"{pictures.reference(record.value['file'])}/{record.value['row']:07d}"
    return from_llava(record.id, record.task, record.value["conversations"], (reference,))


SOURCE = Source(
    repository="lmms-lab/LLaVA-ReCap-CC3M",
    revision="9ffc2b0",
    licence="not recorded; images: Conceptual Captions'",
    files=only(PATTERN),
    records=records,
    convert=convert,
    images="rows",
    tasks=(TASK,),
    gigabytes=138.5,
    num_records=2_857_560,
)

"""Vision-FLAN, the full release: hub `Vision-Flan/vision-flan`.

Revision e8c6f09. `vision_flan.json` (983 MB), a JSON list of 1,664,261 records with `id`, `image`,
`conversations`, `task_name`; 187 tasks; images as zips in `shard_01/raw_dataset/` to `shard_09/`.
No licence on the hub; each underlying dataset's own.

Quirks: `load_dataset` takes the repository for an image folder without text, so the JSON is read
here. How the images lie in the zips, and after the release's `unzip.sh`, is not documented: they
are found by file name, in zips or unpacked, and where several files bear one name
(`method_1_step_6.jpg` does), in the folder or archive that bears the task's name; what stays
ambiguous is a bad record. As in the 1k release, `id` is not unique and `<image>` stands first or
last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import Example, from_llava
from merit.data.images import ImageFinder
from merit.data.records import json_records
from merit.data.source import Record, Source, numbered, only

ANNOTATIONS = "vision_flan.json"


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every record of the annotations, in their order."""
    values = json_records(folder / ANNOTATIONS)
    return numbered(ANNOTATIONS, values, lambda value: str(value.get("task_name") or ""))


def convert(record: Record, pictures: ImageFinder) -> Example:
    """One image, one turn or more. Raises BadRecord."""
    image = pictures.by_file_name(record.get("image"), record.task)
    return from_llava(record.id, record.task, record.get("conversations"), (image,))


SOURCE = Source(
    repository="Vision-Flan/vision-flan",
    revision="e8c6f09736277ef63b33dea5e9bbe94392dba76c",
    licence="none stated; each underlying dataset's own",
    files=only(ANNOTATIONS),
    records=records,
    convert=convert,
    archives=("shard_*/**/*",),
    num_records=1_664_261,
)

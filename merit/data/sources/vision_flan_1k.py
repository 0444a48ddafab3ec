"""Vision-FLAN, about 1,000 examples a task: hub `Vision-Flan/vision-flan_191-task_1k`.

Revision 24ba719. `annotation_191-task_1k.json` (110 MB), a JSON list of 186,103 records with `id`,
`image`, `conversations`, `task_name`; 191 tasks; `image_191-task_1k.zip` (36.3 GB, 181,394 images
in `images_191task_1k/`), which is read as it is or unpacked. Licence: none on the hub; those of 101
underlying datasets apply, several of them non-commercial or research-only.

Quirks: `id` is not unique and its prefix is not the task (several tasks share one), so tasks are
told by `task_name` and records by their number. Names beyond ASCII are stored in the zip as
`#U00e9`. `<image>` stands first or last in the prompt and stays there. One answer is empty. Which
187 of the 191 tasks the Vision-FLAN paper counts, and which 136 the MERIT paper uses, is not
published.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import Example, from_llava
from merit.data.images import ImageFinder
from merit.data.records import json_records
from merit.data.source import Record, Source, numbered, only

ANNOTATIONS = "annotation_191-task_1k.json"
IMAGES, FOLDER = "image_191-task_1k.zip", "images_191task_1k"


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every record of the annotations, in their order."""
    values = json_records(folder / ANNOTATIONS)
    return numbered(ANNOTATIONS, values, lambda value: str(value.get("task_name") or ""))


def convert(record: Record, pictures: ImageFinder) -> Example:
    """One image, one turn or more. Raises BadRecord."""
    image = pictures.member(IMAGES, record.get("image"), FOLDER)
    return from_llava(record.id, record.task, record.get("conversations"), (image,))


SOURCE = Source(
    repository="Vision-Flan/vision-flan_191-task_1k",
    revision="24ba71985e7424afe1262bfe302b022ae1c76ce8",
    licence="none stated; each underlying dataset's own",
    files=only(ANNOTATIONS),
    records=records,
    convert=convert,
    archives=(f"{IMAGES}|{FOLDER}",),
    gigabytes=36.4,
    num_records=186_103,
)

"""The Cauldron: hub `HuggingFaceM4/the_cauldron`.

Revision 847a98a. 50 configs, each a task, split `train`:
`<config>/train-00000-of-00022-<hash>.parquet` with `images: list<struct<bytes, path>>` and `texts:
list<struct<user, assistant, source>>`; 1.88M rows, about 170 GB. Licence: prompts CC BY 4.0, each
sub-dataset its own (chartqa GPL-3.0, hateful_memes research only, scienceqa CC BY-NC-SA, tqa CC
BY-NC, ...).

Quirks: a row holds several questions about its images (about 5 in vqav2, dozens in clevr), which
become one conversation, unless `max_turns` splits it; several images in nlvr2, spot_the_diff and
mimic_cgd; no `<image>` anywhere: the images stand before the first question; image modes P, L, RGBA
and CMYK, read as RGB. clevr_math and okvqa are left out by other loaders for images that cannot be
used: a row without an image is a bad record. "Answer: B" and the prompts' suffixes are part of the
text and stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from merit.data.examples import BadRecord, Example, from_turns
from merit.data.hub import files
from merit.data.images import ImageFinder
from merit.data.source import Record, Source, parquet_records

TASKS = (
    *("ai2d", "aokvqa", "chart2text", "chartqa", "clevr", "clevr_math", "cocoqa", "datikz"),
    *("diagram_image_to_text", "docvqa", "dvqa", "figureqa", "finqa", "geomverse"),
    *("hateful_memes", "hitab", "iam", "iconqa", "infographic_vqa", "intergps"),
    *("localized_narratives", "mapqa", "mimic_cgd", "multihiertt", "nlvr2", "ocrvqa", "okvqa"),
    *("plotqa", "raven", "rendered_text", "robut_sqa", "robut_wikisql", "robut_wtq", "scienceqa"),
    *("screen2words", "spot_the_diff", "st_vqa", "tabmwp", "tallyqa", "tat_qa", "textcaps"),
    *("textvqa", "tqa", "vistext", "visual7w", "visualmrc", "vqarad", "vqav2", "vsr", "websight"),
)


def patterns(tasks: Collection[str] | None) -> list[str]:
    """A config's files."""
    return [f"{task}/train-*.parquet" for task in TASKS if tasks is None or task in tasks]


def records(folder: Path, tasks: Collection[str] | None) -> Iterator[Record]:
    """Every row of the configs that are wanted, config by config."""
    for file in files(folder, patterns(tasks)):
        yield from parquet_records(
            folder, file, ["images.path", "texts"], lambda value: value["file"].split("/")[0]
        )


def convert(record: Record, pictures: ImageFinder) -> Example:
    """All images of the row, then its questions as turns. Raises BadRecord."""
    file, row, images = (record.value[key] for key in ("file", "row", "images"))
    if not images:
        raise BadRecord("no image in the row")
    references = tuple(f"{pictures.reference(file)}/{row:07d}/{i}" for i in range(len(images)))
    turns = [(text["user"], text["assistant"]) for text in record.value["texts"] or []]
    return from_turns(record.id, record.task, turns, references)


SOURCE = Source(
    repository="HuggingFaceM4/the_cauldron",
    revision="847a98a779b1652d65111daf20c972dfcd333605",
    licence="prompts CC BY 4.0; each sub-dataset's own",
    files=patterns,
    records=records,
    convert=convert,
    images="rows",
    tasks=TASKS,
    gigabytes=170.0,
)

"""From a public source's record to an example: two shapes of conversations, and what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from merit.data.examples import IMAGE_TOKEN, BadRecord, Example, from_llava, from_turns
from merit.data.images import ImageFinder
from merit.data.records import Record, TaskOf, parquet_rows
from merit.errors import MeritError
from merit.io.artifacts import file_hash
from merit.io.texts import jsonl_records

INSTRUCTIONS = ("safe_instruction", "unsafe_instruction", "instruction")  # VLGuard's keys
FETCHED = "fetched.jsonl"
FETCH_LINKS = (
    'this source holds links, no images. Fetch them and list {"link", "file", "sha256"} a line, or '
    "leave the source out"
)

# The references of a record's images. None: it has none, and `<image>` in it is text.
Images = Callable[[Record, ImageFinder], tuple[str, ...] | None]


def llava(images_of: Images) -> Callable[[Record, ImageFinder], Example]:
    """A conversion of records in LLaVA's format."""

    def convert(record: Record, images: ImageFinder) -> Example:
        found = images_of(record, images)
        turns, marked = record.get("conversations"), found is not None
        return from_llava(record.id, record.task, turns, found or (), marked)

    return convert


def row_image(record: Record, images: ImageFinder) -> tuple[str, ...] | None:
    """The image of a parquet row, if any."""
    if record.value["image"] is None:
        return None
    return (f"{images.reference(record.value['file'])}/{record.value['row']:07d}",)


def needed_row_image(record: Record, images: ImageFinder) -> tuple[str, ...]:
    """The image of a parquet row. Raises BadRecord if it has none."""
    found = row_image(record, images)
    if found is None:
        raise BadRecord("no image in the row")
    return found


def image_if_named(record: Record, images: ImageFinder) -> tuple[str, ...]:
    """The image that is named, or none; a mark without an image is refused."""
    name = record.value.get("image")
    return () if name is None else (images.find(name),)


def image_or_text(record: Record, images: ImageFinder) -> tuple[str, ...] | None:
    """The image, except in the task `text`."""
    return None if record.task == "text" else (images.find(record.value["image"]),)


def first_folder(value: dict[str, object]) -> str:
    """The task of a record by the first folder of its image; `text` without one."""
    return str(value["image"]).split("/")[0] if value.get("image") else "text"


def caption(record: Record, images: ImageFinder) -> Example:
    """The caption as answer to only the image: LLaVA drops the instruction in its stage 1."""
    image = images.member("images.zip", record.get("image"))
    found = from_llava(record.id, record.task, record.get("conversations"), (image,))
    plain = {"role": "user", "content": IMAGE_TOKEN}
    return Example(found.id, found.task, (plain, found.messages[1]), found.images)


def preferred(record: Record, images: ImageFinder) -> Example:
    """The conversation with the preferred answer at its end, in place of the one that is there."""
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
    name = record.get("image")
    image = images.find(f"coco/train2017/{name}", f"coco/train2014/{name}")
    return from_llava(record.id, record.task, turns, (image,))


def genome_question(record: Record, images: ImageFinder) -> Example:
    """A question about an image of Visual Genome; some copies state its number as a string."""
    number = record.get("image_id")
    if isinstance(number, bool) or not isinstance(number, (str, int)):
        raise BadRecord(f"`image_id` must be a number, found {number!r:.80}")
    image = images.find(f"vg/VG_100K/{number}.jpg", f"vg/VG_100K_2/{number}.jpg")
    turn = (record.get("question"), record.get("answer"))
    return from_turns(record.id, record.task, [turn], (image,))


def safety_turns(record: Record, images: ImageFinder) -> Example:
    """VLGuard: one conversation of one or two instructions, as in the authors' converter."""
    entries = record.get("instr-resp")
    if not isinstance(entries, list) or not 1 <= len(entries) <= 2:
        raise BadRecord(f"`instr-resp` must be one or two turns, found {entries!r:.80}")
    turns = []
    for entry in entries:
        keys = [key for key in INSTRUCTIONS if isinstance(entry, dict) and key in entry]
        if len(keys) != 1:
            raise BadRecord(f"expected one of {', '.join(INSTRUCTIONS)} in {entry!r:.80}")
        turns.append((entry[keys[0]], entry.get("response")))
    image = images.member("train.zip", record.get("image"), "", "train")
    return from_turns(record.id, record.task, turns, (image,))


def row_questions(record: Record, images: ImageFinder) -> Example:
    """The Cauldron: all images of the row, then its questions as turns."""
    if not record.value["images"]:
        raise BadRecord("no image in the row")
    row = f"{images.reference(record.value['file'])}/{record.value['row']:07d}"
    references = tuple(f"{row}/{i}" for i in range(len(record.value["images"])))
    turns = [(text["user"], text["assistant"]) for text in record.value["texts"] or []]
    return from_turns(record.id, record.task, turns, references)


def template(record: Record, images: ImageFinder) -> Example:
    """FLAN: the template as prompt, the target as answer."""
    found = record.get("task")
    if str(found).removesuffix("_10templates") != record.task:
        raise BadRecord(f"`task` is {found!r}, expected '{record.task}_10templates'")
    turn = (record.get("inputs"), record.get("targets"))
    return from_turns(record.id, record.task, [turn], ())


def fetched_rows(folder: Path, name: str, task_of: TaskOf) -> Iterator[Record]:
    """LAION GPT-4V: rows of links, each with what `fetched.jsonl` says was fetched of it."""
    if not (folder / FETCHED).is_file():
        raise MeritError(f"{folder / FETCHED}: missing; {FETCH_LINKS}")
    fetched = {str(line.get("link")): line for line in jsonl_records(folder / FETCHED)}
    for record in parquet_rows("link", "caption")(folder, name, task_of):
        record.value["fetched"] = fetched.get(str(record.value["link"]))
        yield record


def fetched_image(record: Record, images: ImageFinder) -> Example:
    """LAION GPT-4V: the caption as answer to a prompt of ours."""
    fetched = record.value["fetched"]
    if fetched is None:
        raise BadRecord(f"link {record.value['link']!r} was not fetched")
    image = images.find(fetched.get("file"))
    found = file_hash(images.root / fetched["file"])
    if found != fetched.get("sha256"):
        raise BadRecord(f"{fetched['file']}: SHA-256 is {found}, {FETCHED} says otherwise")
    turn = ("Describe the image in detail.", record.value["caption"])
    return from_turns(record.id, record.task, [turn], (image,))

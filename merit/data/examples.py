"""The canonical example: what every source is converted to, and what training reads.

One JSON object a line: `id`, `task`, `messages` (turns of `role` and `content`; `<image>` marks
where an image stands) and `images` (paths relative to the data's folder: files, or members of an
archive such as `images.zip/x.png`).
"""

from __future__ import annotations

import io
import json
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from merit.data import parquet
from merit.errors import MeritError

IMAGE_TOKEN = "<image>"
TEXT_ROLE = "text"  # the one message of a plain document, which a base is pre-trained on
KEYS = {"id", "task", "messages", "images"}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Example:
    """One conversation about zero or more images."""

    id: str
    task: str
    messages: tuple[dict[str, str], ...]
    images: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "task": self.task,
            "messages": list(self.messages),
            "images": list(self.images),
        }


def make_example(
    identifier: str, task: str, turns: list[tuple[str, str]], images: tuple[str, ...]
) -> Example:
    """An example from (prompt, answer) turns; the images stand before the first prompt."""
    messages = []
    for i, (prompt, answer) in enumerate(turns):
        content = (IMAGE_TOKEN + "\n") * len(images) + prompt if i == 0 else prompt
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
    return Example(identifier, task, tuple(messages), images)


def make_document(identifier: str, text: str) -> Example:
    """A plain document: all of it bears the loss, and no turn marks stand around it."""
    return Example(identifier, "corpus", ({"role": TEXT_ROLE, "content": text},), ())


def read_examples(path: Path) -> list[Example]:
    """Every example of a JSONL file; for what it raises see `iter_examples`."""
    return list(iter_examples(path))


def iter_examples(path: Path) -> Iterator[Example]:
    """The examples of a JSONL file, one line in memory at a time.

    Raises MeritError that names file and line: not JSON, keys missing or unknown, roles that do
    not alternate, image marks that do not match the images, an empty file.
    """
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield _parse(line, f"{path}, line {number}")
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found; the data stage writes it") from None
    except UnicodeDecodeError as error:
        raise MeritError(
            f"{path}: not UTF-8 text (after line {number}: byte {error.start}); write it anew"
        ) from None
    if not number:
        raise MeritError(f"{path}: zero examples; remove the task or give it at least one example")


def _parse(line: str, where: str) -> Example:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise MeritError(f"{where}: not valid JSON ({error.msg}, column {error.colno})") from None
    return example_from(value, where)


def example_from(value: Any, where: str) -> Example:
    """The example of one JSON value. Raises MeritError that begins with `where`."""
    if not isinstance(value, dict) or set(value) != KEYS:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise MeritError(f"{where}: expected the keys {sorted(KEYS)}, found {found}")
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise MeritError(f"{where}: `messages` must be a list with at least one turn")
    plain = len(messages) == 1 and TEXT_ROLE in _roles(messages)
    for i, message in enumerate(messages):
        role = TEXT_ROLE if plain else "user" if i % 2 == 0 else "assistant"
        if (
            not isinstance(message, dict)
            or message.get("role") != role
            or not isinstance(message.get("content"), str)
        ):
            raise MeritError(
                f"{where}: messages[{i}] must have role {role!r} and text, found {message!r}"
            )
    if len(messages) % 2 and not plain:
        raise MeritError(f"{where}: the last message must be the assistant's answer")
    images = value["images"]
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise MeritError(f"{where}: `images` must be a list of paths, found {images!r}")
    marks = sum(message["content"].count(IMAGE_TOKEN) for message in messages)
    if marks != len(images):
        raise MeritError(f"{where}: {marks} `{IMAGE_TOKEN}` marks but {len(images)} images")
    return Example(str(value["id"]), str(value["task"]), tuple(messages), tuple(images))


def _roles(messages: list[Any]) -> list[Any]:
    return [message.get("role") for message in messages if isinstance(message, dict)]


# --- images -------------------------------------------------------------------------------------

# what zipfile raises where an archive or a member is broken
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError),
)


def load_image(path: Path) -> Image.Image:
    """An RGB image, fully decoded; `path` is a file or leads into an archive or a parquet file.

    `images.zip/x.png` is a member, `x.parquet/12/0` an image of a row (merit.data.parquet). Raises
    MeritError where the image or its archive is missing, truncated or corrupt.
    """
    return _opened(path, lambda image: image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels, from the image's header; `path` and errors as `load_image`."""
    return _opened(path, lambda image: image.size)


def _opened(path: Path, use: Callable[[Image.Image], Result]) -> Result:
    path = _without_dots(path)
    place = _place_in_archive(path)
    try:
        with Image.open(path if place is None else io.BytesIO(_read_member(*place))) as image:
            return use(image)
    except FileNotFoundError:
        raise MeritError(f"{path}: image not found; an example refers to it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MeritError(
            f"{path}: not a readable image ({error}); fetch or write it anew"
        ) from None


def has_image(path: Path) -> bool:
    """Whether there is an image at `path`, as `load_image` takes it; the image is not opened.

    Raises MeritError where its archive is there and cannot be read.
    """
    path = _without_dots(path)
    place = _place_in_archive(path)
    if place is None:
        return path.is_file()
    archive, member = place
    if archive.suffix == ".parquet":
        return archive.is_file() and parquet.has_image(archive, member)
    return archive.is_file() and member in _open_archive(archive, member).NameToInfo


def _place_in_archive(path: Path) -> tuple[Path, str] | None:
    """(archive, member) of a path that leads into a .zip or .parquet file, else None."""
    for folder in path.parents:
        if folder.suffix in (".zip", ".parquet") and not folder.is_dir():
            return folder, path.relative_to(folder).as_posix()
    return None


def archive_table(archive: Path) -> list[tuple[str, int, int]]:
    """(name, size, CRC-32) of every member. Raises MeritError where the archive cannot be read."""
    members = _open_archive(archive, "images").infolist()
    return [(member.filename, member.file_size, member.CRC) for member in members]


def _without_dots(path: Path) -> Path:
    """`a/b/../c` as `a/c`, by name alone: `artifacts` may be a link to another disk."""
    return Path(os.path.normpath(path))


def _read_member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".parquet":
        return parquet.read_image(archive, member)
    try:
        return _open_archive(archive, member).read(member)
    except KeyError:
        raise MeritError(
            f"{archive}: image {member!r} not found in it; an example refers to it"
        ) from None
    except UNREADABLE as error:
        raise MeritError(
            f"{archive}: image {member!r} cannot be read from it ({error}); fetch or write the "
            "archive anew"
        ) from None


def _open_archive(archive: Path, member: str) -> zipfile.ZipFile:
    """The archive, for the sake of `member`; opened once a process while it stays the same file."""
    try:
        state = archive.stat()
        # a forked process that shared the handle would share the position in the file, too
        return _handle(archive, os.getpid(), state.st_ino, state.st_mtime_ns, state.st_size)
    except FileNotFoundError:
        raise MeritError(
            f"{archive}: archive not found; an example refers to {member!r} in it"
        ) from None
    except UNREADABLE as error:
        raise MeritError(
            f"{archive}: not a readable archive ({error}), and an example refers to {member!r} in "
            "it; fetch or write it anew"
        ) from None


@lru_cache(maxsize=32)
def _handle(archive: Path, *state: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)

"""Images by their paths: files, members of zip archives, images in rows of parquet files."""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from merit.data import parquet
from merit.data.examples import BadRecord
from merit.errors import MeritError
from merit.io.disk import check_file

LONGEST_NAME = 255  # bytes of a file name, on any file system in use
LARGEST_FILE = 2**29  # bytes of an image that is read from an archive
# what zipfile raises for a broken archive or member
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError),
)
# what Pillow's decoders raise for a broken image
BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(EOFError, struct.error, zlib.error, MemoryError, Image.DecompressionBombError),
)
ORIENTED = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # keys of Image.info
ORIENTATION = 0x0112  # in EXIF; from 5 on, height and width change places


def load_image(path: Path) -> Image.Image:
    """An RGB image, fully decoded; `path` is a file or leads into an archive or a parquet file.

    `images.zip/x.png` is a member, `x.parquet/12/0` an image of a row (merit.data.parquet). Raises
    MeritError if the image or its archive is missing, truncated or corrupt.
    """
    with _opened(path) as image:
        return as_seen(image)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of `as_seen`, from the image's header; `path` and errors as `load_image`."""
    with _opened(path) as image:
        return seen_size(image)


@contextlib.contextmanager
def open_image(content: Path | io.BytesIO, where: str) -> Iterator[Image.Image]:
    """The image, not decoded yet. Raises MeritError that begins with `where` if it is broken."""
    if isinstance(content, Path):
        check_file(content)
    try:
        with Image.open(content) as image:
            if image.format == "EPS":  # Pillow would have Ghostscript run it
                raise ValueError("PostScript, which is a program")
            yield image
    except FileNotFoundError:
        raise MeritError(f"{where}: image not found; an example refers to it") from None
    except BROKEN as error:
        why = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise MeritError(f"{where}: not a readable image ({why}); write it again") from None


def as_seen(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it, as RGB: upright, transparent parts white, 16 bits as 8."""
    if _orientation(image) > 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey in 16 bits; convert() would cut them off at 255
        grey = np.asarray(image).clip(0, 2**16 - 1) // 2**8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown; 8 or 16 bits are read")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def seen_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of `as_seen`, from the image's header."""
    width, height = image.size
    return (height, width) if _orientation(image) > 4 else (width, height)


def _orientation(image: Image.Image) -> int:
    """As the header says; a PNG is not decoded to look for a note behind its pixels."""
    if image.format != "TIFF" and not ORIENTED & image.info.keys():
        return 1
    with contextlib.suppress(*BROKEN):  # as viewers do
        found = image.getexif().get(ORIENTATION, 1)
        return found if found in range(1, 9) else 1
    return 1


def has_image(path: Path) -> bool:
    """Whether an image is at `path`, as `load_image` takes it; the image is not opened.

    Raises MeritError if its archive exists and cannot be read.
    """
    path, archive, member = _locate(path)
    if archive is None:
        return path.is_file()
    if not archive.is_file():
        return False
    if archive.suffix == ".parquet":
        return parquet.has_image(archive, member)
    return member in _open_archive(archive, member).NameToInfo


def archive_table(archive: Path) -> list[tuple[str, int, int]]:
    """(name, size, CRC-32) of every member. Raises MeritError if the archive cannot be read."""
    members = _open_archive(archive, "images").infolist()
    return [(member.filename, member.file_size, member.CRC) for member in members]


def _opened(path: Path) -> contextlib.AbstractContextManager[Image.Image]:
    path, archive, member = _locate(path)
    content = path if archive is None else io.BytesIO(_read_member(archive, member))
    return open_image(content, str(path))


def _locate(path: Path) -> tuple[Path, Path | None, str]:
    """(path, archive, member); the archive is None for a file of its own.

    `a/b/../c` becomes `a/c` by name: `artifacts` may be a link to another disk.
    """
    path = Path(os.path.normpath(path))
    for folder in path.parents:
        if folder.suffix in (".zip", ".parquet") and not folder.is_dir():
            return path, folder, path.relative_to(folder).as_posix()
    return path, None, ""


def _read_member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".parquet":
        return parquet.read_image(archive, member)
    try:
        opened = _open_archive(archive, member)
        if opened.getinfo(member).file_size > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE} bytes")
        return opened.read(member)
    except KeyError:
        raise MeritError(
            f"{archive}: image {member!r} not found in it; an example refers to it"
        ) from None
    except UNREADABLE as error:
        raise MeritError(
            f"{archive}: image {member!r} cannot be read from it ({error}); fetch or write the "
            "archive again"
        ) from None


def _open_archive(archive: Path, member: str) -> zipfile.ZipFile:
    """The archive that holds `member`; opened once per process while it stays the same file."""
    check_file(archive)
    try:
        state = archive.stat()
        # the process id: a forked process would share the handle's position in the file
        return _handle(archive, os.getpid(), state.st_ino, state.st_mtime_ns, state.st_size)
    except FileNotFoundError:
        raise MeritError(
            f"{archive}: archive not found; an example refers to {member!r} in it"
        ) from None
    except UNREADABLE as error:
        raise MeritError(
            f"{archive}: not a readable archive ({error}), and an example refers to {member!r} in "
            "it; fetch or write it again"
        ) from None


@lru_cache(maxsize=32)
def _handle(archive: Path, *state: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


class ImageFinder:
    """Finds images by the names that a source's records give them; never copies one.

    A name `a/b/x.jpg` is the file `a/b/x.jpg` below `root`, or a member `b/x.jpg` or `x.jpg` of
    the archive `a/b.zip` there, or leads into an archive as `load_image` takes it. Every method
    returns a reference: the path from the folder `referring` to the image, which holds on any
    machine if `root` is relative to the working directory. An absolute `root` gives absolute ones.
    """

    def __init__(self, root: Path, referring: Path) -> None:
        self.root, self.referring = root, referring
        self._prefix = str(root) if root.is_absolute() else os.path.relpath(root, referring)
        self._members: dict[Path, dict[str, str]] = {}

    def reference(self, path: str) -> str:
        """The reference of the file at `path`, relative to `root`."""
        return f"{self._prefix}/{path}"

    def find(self, *names: object) -> str:
        """The reference of the first of these images that exists. Raises BadRecord if none does."""
        for name in names:
            path = PurePosixPath(_checked(name))
            if has_image(self.root / path):
                return self.reference(path.as_posix())
            for parent in path.parents[:-1]:
                members = self.members(self.root / f"{parent}.zip")
                for inside in (path.relative_to(parent.parent), path.relative_to(parent)):
                    if member := members.get(inside.as_posix()):
                        return self.reference(f"{parent}.zip/{member}")
        raise BadRecord(f"image {str(names[-1])!r} not found below {self.root.name}/")

    def member(self, archive: str, name: object, *folders: str) -> str:
        """The reference of an image in an archive below `root`, or unpacked there.

        `folders` are where in the archive it may be (default: at its top). Raises BadRecord if it
        is nowhere, MeritError if neither archive nor folder exists.
        """
        members = self.members(self.root / archive)
        for folder in folders or ("",):
            path = f"{folder}/{_checked(name)}" if folder else _checked(name)
            if path in members:
                return self.reference(f"{archive}/{members[path]}")
            if (self.root / path).is_file():
                return self.reference(path)
        if not members and not (self.root / folder).is_dir():
            raise MeritError(f"{self.root}: image folder missing: neither {archive} nor {folder}/")
        raise BadRecord(f"image {str(name)!r} not found in {archive}")

    def by_file_name(self, name: object, task: str) -> str:
        """The reference of the only image with this file name, in any folder or archive.

        Of several, the one whose folder or archive bears the task's name. Raises BadRecord if none
        or more than one is left.
        """
        found = self._by_file_name.get(PurePosixPath(_checked(name)).name, [])
        if len(found) > 1:
            found = [path for path in found if task in path] or found
        if len(found) != 1:
            problem = "not found" if not found else f"ambiguous, {len(found)} files are called so,"
            raise BadRecord(f"image {str(name)!r} {problem} below {self.root.name}/")
        return self.reference(found[0])

    @cached_property
    def _by_file_name(self) -> dict[str, list[str]]:
        """The paths of all images below `root`, also in its archives, per file name."""
        index: dict[str, list[str]] = {}
        for folder, names, files in os.walk(self.root):
            names[:] = sorted(name for name in names if not name.startswith("."))
            for file in sorted(files):
                path = Path(folder, file)
                inside = path.relative_to(self.root).as_posix()
                index.setdefault(file, []).append(inside)
                if path.suffix == ".zip":
                    for name, member in self.members(path).items():
                        index.setdefault(PurePosixPath(name).name, []).append(f"{inside}/{member}")
        return index

    def members(self, archive: Path) -> dict[str, str]:
        """The archive's stored names by their real ones; empty if there is no such file."""
        if archive not in self._members:
            names = [name for name, *_ in archive_table(archive)] if archive.is_file() else []
            self._members[archive] = {unescape(name): name for name in names if name[-1:] != "/"}
        return self._members[archive]


def unescape(name: str) -> str:
    """A member's real name: Info-ZIP stores `é` as `#U00e9`."""
    code = r"#U([0-9A-Fa-f]{4})|#L([0-9A-Fa-f]{8})"
    return re.sub(code, lambda match: chr(int(match[1] or match[2], 16)), name)


def _checked(name: object) -> str:
    """The name, if it is a path within the images' folder. Raises BadRecord if not."""
    if isinstance(name, str) and name.strip("./ ") and name[0] != "/" and "\0" not in name:
        parts = name.split("/")
        if ".." not in parts and max(len(part.encode()) for part in parts) <= LONGEST_NAME:
            return name.removeprefix("./")
    raise BadRecord(f"`image` must be a path within the images' folder, found {name!r:.200}")

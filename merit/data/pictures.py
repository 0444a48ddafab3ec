"""Where a source's images lie, in a folder or in zip archives there: found, never copied."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path, PurePosixPath

from merit.data.conversations import BadRecord
from merit.data.examples import archive_table, has_image
from merit.errors import MeritError

LONGEST_NAME = 255  # bytes, of a file on any file system in use
# what Info-ZIP writes for characters beyond ASCII
_ESCAPE = re.compile(r"#U([0-9A-Fa-f]{4})|#L([0-9A-Fa-f]{8})")


class Pictures:
    """Images by the names that a source's records give them, as references from `referring`.

    A name `a/b/x.jpg` is the file `a/b/x.jpg` below `root` (or leads into an archive itself, as
    `load_image` takes it), or a member `b/x.jpg` or `x.jpg` of the
    archive `a/b.zip` there, so that an archive need not be unpacked.
    """

    def __init__(self, root: Path, referring: Path) -> None:
        self.root, self.referring = root, referring
        self._prefix = str(root) if root.is_absolute() else os.path.relpath(root, referring)
        self._members: dict[Path, dict[str, str]] = {}

    def reference(self, path: str) -> str:
        """How an example in the folder `referring` calls the file at `path`, relative to `root`.

        Relative, so that it holds on any machine where `root` is given relative to the working
        directory; an absolute `root` gives an absolute reference.
        """
        return f"{self._prefix}/{path}"

    def find(self, name: object) -> str:
        """The reference of an image. Raises BadRecord where there is none of this name."""
        path = PurePosixPath(_inside(name))
        if has_image(self.root / path):
            return self.reference(path.as_posix())
        for parent in path.parents[:-1]:
            archive = self.root / f"{parent}.zip"
            rest = path.relative_to(parent.parent)
            for member in (rest, path.relative_to(parent)):
                found = self.members(archive).get(member.as_posix())
                if found is not None:
                    return self.reference(f"{parent}.zip/{found}")
        raise BadRecord(f"image {str(name)!r} not found below {self.root.name}/")

    def member(self, archive: str, name: object, folder: str = "") -> str:
        """The reference of an image in an archive below `root`, or in its unpacked `folder`.

        Raises BadRecord where it is in neither, MeritError where neither is there.
        """
        path = f"{folder}/{_inside(name)}" if folder else _inside(name)
        members = self.members(self.root / archive)
        if path in members:
            return self.reference(f"{archive}/{members[path]}")
        if (self.root / path).is_file():
            return self.reference(path)
        if not members and not (self.root / folder).is_dir():
            raise MeritError(f"{self.root}: image folder missing: neither {archive} nor {folder}/")
        raise BadRecord(f"image {str(name)!r} not found in {archive}")

    def by_name(self, name: object, task: str) -> str:
        """The reference of the one image called so, whatever folder or archive it lies in.

        Of several the one whose folder or archive bears the task's name. Raises BadRecord where
        there is none, or more than one.
        """
        last = _inside(name).rpartition("/")[2]
        found = self._by_last_name.get(last, [])
        if len(found) > 1:
            found = [reference for reference in found if task in reference] or found
        if len(found) != 1:
            problem = "not found" if not found else f"ambiguous, {len(found)} files are called so,"
            raise BadRecord(f"image {str(name)!r} {problem} below {self.root.name}/")
        return self.reference(found[0])

    @cached_property
    def _by_last_name(self) -> dict[str, list[str]]:
        """Paths of all images below `root`, also in its archives, by the name they end in."""
        index: dict[str, list[str]] = {}
        for folder, names, files in os.walk(self.root):
            names[:] = sorted(n for n in names if not n.startswith("."))
            for file in sorted(files):
                path = Path(folder, file)
                inside = path.relative_to(self.root).as_posix()
                index.setdefault(file, []).append(inside)
                if path.suffix == ".zip":
                    for name, member in self.members(path).items():
                        index.setdefault(PurePosixPath(name).name, []).append(f"{inside}/{member}")
        return index

    def members(self, archive: Path) -> dict[str, str]:
        """The archive's members by their real names; {} where there is no such file."""
        if archive not in self._members:
            names = [n for n, *_ in archive_table(archive)] if archive.is_file() else []
            self._members[archive] = {unescape(name): name for name in names if name[-1:] != "/"}
        return self._members[archive]


def unescape(name: str) -> str:
    """A member's real name: Info-ZIP stores `é` as `#U00e9`."""
    return _ESCAPE.sub(lambda match: chr(int(match[1] or match[2], 16)), name)


def _inside(name: object) -> str:
    """The name, if it is a path within the images' folder; raises BadRecord if not."""
    if isinstance(name, str) and name.strip("./ ") and name[0] != "/" and "\0" not in name:
        parts = name.split("/")
        if ".." not in parts and max(len(part.encode()) for part in parts) <= LONGEST_NAME:
            return name.removeprefix("./")
    raise BadRecord(f"`image` must be a path within the images' folder, found {name!r:.200}")

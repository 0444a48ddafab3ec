"""Reading text that people wrote: UTF-8, and JSON that can be written again.

Records are read without holding more than a chunk of their file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from merit.errors import MeritError
from merit.io.disk import check_file

SURROGATE = re.compile(r"\\u[dD][89abAB]")  # in JSON; half of a pair is no character
DEEP = "nested too deeply"
CHUNK = 2**20  # characters of a file in memory
LONGEST = 2**26  # characters that a record may take; what is longer is malformed, not unfinished
POINTER = "version https://git-lfs.github.com/spec/"


def read_text(path: Path) -> str:
    """The file's text. Raises MeritError that names the file if it is missing or not UTF-8."""
    check_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found") from None
    except UnicodeDecodeError as error:
        raise MeritError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises MeritError that begins with `where`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise MeritError(
            f"{where}: not valid JSON ({error.msg}{line}, column {error.colno})"
        ) from None
    except (RecursionError, ValueError) as error:  # a number of thousands of digits
        why = DEEP if isinstance(error, RecursionError) else error
        raise MeritError(f"{where}: not valid JSON ({why})") from None
    try:
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise MeritError(
            f"{where}: {error.object[error.start]!r} is half of a character; write the whole pair"
        ) from None
    return value


def is_object(value: Any, where: str) -> dict[str, Any]:
    """The value, if it is a JSON object. Raises MeritError that begins with `where`."""
    if not isinstance(value, dict):
        raise MeritError(f"{where}: expected an object, found {value!r:.80}")
    return value


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in the text. Raises MeritError that begins with `where`."""
    return is_object(parse_json(text, where), where)


# --- record by record ---------------------------------------------------------------------------


def json_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, `[{...}, {...}]`, or of one object after the other.

    Raises MeritError that names the file and the record if it is truncated or malformed.
    """
    decoder, number = json.JSONDecoder(), 0
    with _open(path) as file:
        text, position, ended = _read(file, path), 0, False
        _refuse_pointer(path, text)
        while True:
            while position < len(text) and text[position] in " \t\r\n,[]\ufeff":
                position += 1
            if position < len(text):
                where = f"{path}, record {number + 1}"
                try:
                    value, position = decoder.raw_decode(text, position)
                except RecursionError:
                    raise MeritError(f"{where}: not valid JSON ({DEEP})") from None
                except ValueError as error:
                    why = getattr(error, "msg", str(error))
                    if ended or len(text) - position > LONGEST:
                        raise MeritError(
                            f"{where}: truncated or not valid JSON ({why}); write the file again"
                        ) from None
                else:
                    number += 1
                    yield is_object(value, where)
                    continue
            if ended:
                return
            more = _read(file, path)
            text, position, ended = text[position:] + more, 0, not more


def jsonl_records(path: Path) -> Iterator[dict[str, Any]]:
    """The object of every line. Raises MeritError that names the file and the line."""
    for number, line in enumerate(text_lines(path), start=1):
        yield parse_object(line, f"{path}, line {number}")


def text_lines(path: Path) -> Iterator[str]:
    """Every line, unparsed. Raises MeritError if the file is missing or no UTF-8 text."""
    with _open(path) as file:
        line = _read(file, path, line=True)
        _refuse_pointer(path, line)
        while line:
            yield line
            line = _read(file, path, line=True)


def _open(path: Path) -> TextIO:
    check_file(path)
    try:
        return path.open(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found") from None


def _read(file: TextIO, path: Path, line: bool = False) -> str:
    try:
        text = file.readline(LONGEST) if line else file.read(CHUNK)
    except UnicodeDecodeError as error:
        raise MeritError(f"{path}: not UTF-8 text ({error.reason})") from None
    if len(text) == LONGEST:
        raise MeritError(f"{path}: a line of {LONGEST} characters or more; write a record a line")
    return text


def _refuse_pointer(path: Path, text: str) -> None:
    if text.startswith(POINTER):
        raise MeritError(
            f"{path}: a Git LFS pointer in place of the file; fetch the file itself "
            "(`git lfs pull`, or let merit fetch it)"
        )

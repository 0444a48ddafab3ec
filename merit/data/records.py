"""Streaming readers of what public sources are stored in: long JSON lists, JSONL.

Nothing here holds more than a chunk of a file: Vision-FLAN's annotations are 983 MB in one list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from merit.errors import MeritError

CHUNK = 2**20  # characters
LONGEST = 2**26  # what does not decode within so many characters is malformed, not unfinished
POINTER = "version https://git-lfs.github.com/spec/"


def json_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, `[{...}, {...}]`, or of one object after the other.

    Raises MeritError that names the file and the record where it is truncated or malformed.
    """
    decoder, number = json.JSONDecoder(), 0
    with _opened(path) as file:
        text, position, ended = file.read(CHUNK), 0, False
        _check_start(path, text)
        while True:
            while position < len(text) and text[position] in " \t\r\n,[]\ufeff":
                position += 1
            if position < len(text):
                try:
                    value, position = decoder.raw_decode(text, position)
                except json.JSONDecodeError as error:
                    if ended or len(text) - position > LONGEST:
                        raise MeritError(
                            f"{path}, record {number + 1}: truncated or not valid JSON "
                            f"({error.msg}); fetch or write the file anew"
                        ) from None
                else:
                    number += 1
                    if not isinstance(value, dict):
                        raise MeritError(
                            f"{path}, record {number}: expected an object, found {value!r:.80}"
                        )
                    yield value
                    continue
            if ended:
                return
            more = _read(file, path)
            text, position, ended = text[position:] + more, 0, not more


def jsonl_records(path: Path) -> Iterator[dict[str, Any]]:
    """The object of every line. Raises MeritError that names the file and the line."""
    for number, line in enumerate(text_lines(path), start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise MeritError(f"{path}, line {number}: not valid JSON ({error.msg})") from None
        if not isinstance(value, dict):
            raise MeritError(f"{path}, line {number}: expected an object, found {value!r:.80}")
        yield value


def text_lines(path: Path) -> Iterator[str]:
    """Every line, unparsed. Raises MeritError where the file is no UTF-8 text."""
    with _opened(path) as file:
        number = 0
        while line := _read(file, path, line=True):
            number += 1
            if number == 1:
                _check_start(path, line)
            yield line


def _opened(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8")
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found") from None


def _read(file: TextIO, path: Path, line: bool = False) -> str:
    try:
        return file.readline() if line else file.read(CHUNK)
    except UnicodeDecodeError as error:
        raise MeritError(f"{path}: not UTF-8 text ({error.reason})") from None


def _check_start(path: Path, text: str) -> None:
    if text.startswith(POINTER):
        raise MeritError(
            f"{path}: a Git LFS pointer in place of the file; fetch the file itself "
            "(`git lfs pull`, or let merit fetch it)"
        )

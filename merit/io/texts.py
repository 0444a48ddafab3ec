"""Reading text that people wrote: UTF-8, and JSON that can be written again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from merit.errors import MeritError
from merit.io.disk import check_file

SURROGATE = re.compile(r"\\u[dD][89abAB]")  # in JSON; half of a pair is no character
DEEP = "nested too deeply"


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

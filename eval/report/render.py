"""Pages from the Jinja templates beside this module; numbers come in as plain values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from merit.eval.measuring.scores import interval, rate_label, verdict

TEMPLATES = [Path(__file__).parent / "templates", Path(__file__).parents[1] / "studies"]


def points(value: float, low: float, high: float) -> str:
    """A difference in points and its interval: "+1.2 [+0.3, +2.0]"."""
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def with_verdict(
    rows: Iterable[Mapping[str, Any]], wanted: str, key: str
) -> list[Mapping[str, Any]]:
    """The rows whose column `key`, a difference, is "ahead", "behind" or "undecided".

    Rows without a difference are none of these.
    """
    return [r for r in rows if r[key] is not None and verdict(interval(r, key)) == wanted]


def numbers(values: Iterable[float | None], form: str) -> str:
    """Values in a row, each in this format: "0.2, undefined, 0.3"."""
    return ", ".join("undefined" if value is None else format(value, form) for value in values)


def render(template: str, /, **values: Any) -> str:
    """The template of this name, filled in.

    It ends in one newline and has at most one blank line between its blocks, whatever was left out.
    Raises jinja2.UndefinedError where a template speaks of a value that is not given.
    """
    text = _ENVIRONMENT.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
# {{ share | fmt(".1%") }}, {{ rows | with_verdict("ahead", "gain") }}, {{ x | numbers(".2f") }}
_ENVIRONMENT.filters |= {
    "fmt": format, "with_verdict": with_verdict, "numbers": numbers, "rate_label": rate_label,
}  # fmt: skip
_ENVIRONMENT.globals["points"] = points

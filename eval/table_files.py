"""Tables as files: frames as CSV; rows of strings, the first one the header, as Markdown and as
LaTeX.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from merit.io.artifacts import atomic_write


def write_csv(path: Path, frame: pd.DataFrame, float_format: str | None = None) -> None:
    text = frame.to_csv(index=False, lineterminator="\n", float_format=float_format)
    atomic_write(path, text)


def markdown_table(rows: list[list[str]]) -> str:
    """A GitHub table; the first column is text, the others align right."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    sides = ("left", *["right"] * (len(rows[0]) - 1))
    text = _frame(escaped).to_markdown(index=False, disable_numparse=True, colalign=sides)
    return re.sub(" {2,}", " ", text) + "\n"  # unpadded: one changed cell is one changed line


_LATEX = str.maketrans(
    {
        **{character: rf"\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "–": "--",
    }
)


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is written."""
    return text.translate(_LATEX)


def latex_table(rows: list[list[str]], title: str, label: str) -> str:
    """A booktabs table (needs \\usepackage{booktabs, graphicx}) scaled to the text's width."""
    frame = _frame([[latex_escape(cell) for cell in row] for row in rows])
    text = frame.style.hide(axis="index").to_latex(
        hrules=True,
        column_format="l" + "r" * (len(rows[0]) - 1),
        caption=latex_escape(title.replace("**", "")),
        label=label,
        position_float="centering",
    )
    tabular = r"\begin{tabular}", r"\end{tabular}"
    scaled = "\\resizebox{\\textwidth}{!}{%\n" + tabular[0], tabular[1] + "}"
    return text.replace(tabular[0], scaled[0]).replace(tabular[1], scaled[1])


def _frame(rows: list[list[str]]) -> pd.DataFrame:
    return pd.DataFrame(rows[1:], columns=rows[0])

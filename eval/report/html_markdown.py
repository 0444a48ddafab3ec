"""The Markdown that the report writes, as HTML: one source for both pages.

Known are headings, paragraphs, lists, tables, pictures, **bold**, *emphasis*, `code` and links;
everything else is text. Links and pictures are relative to the file they were read from and go
through the caller's functions.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

Rewrite = Callable[[str], str]
Picture = Callable[[str], tuple[str, int]]  # file -> data URI, width at which it reads well

_INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>.+?)\*\*|\*(?P<italic>[^*]+)\*"
    r"|\[(?P<text>[^\]]+)\]\((?P<link>[^)]+)\)"
)
_IMAGE = re.compile(r"^!\[(?P<caption>[^\]]*)\]\((?P<file>[^)]+)\)$")
_CELL = re.compile(r"(?<!\\)\|")


def inline(text: str, link: Rewrite) -> str:
    """One line of text; marks may nest in bold."""
    parts, position = [], 0
    for match in _INLINE.finditer(text):
        parts.append(html.escape(text[position : match.start()]))
        position = match.end()
        if match["code"]:
            parts.append(f"<code>{html.escape(match['code'])}</code>")
        elif match["bold"]:
            parts.append(f"<strong>{inline(match['bold'], link)}</strong>")
        elif match["italic"]:
            parts.append(f"<em>{inline(match['italic'], link)}</em>")
        else:
            target = html.escape(link(match["link"]), quote=True)
            parts.append(f'<a href="{target}">{inline(match["text"], link)}</a>')
    return "".join([*parts, html.escape(text[position:])])


def table(rows: Sequence[Sequence[str]], link: Rewrite = str, numeric: bool = True) -> str:
    """A table that scrolls in its own box; the first row and the first column are headers.

    Columns whose heading begins with "paper" are marked as published ones.
    """
    published = [heading.startswith("paper") for heading in rows[0]]

    def cells(row: Sequence[str], tag: str) -> str:
        out = []
        for column, cell in enumerate(row):
            kind = "th" if column == 0 else tag
            scope = ' scope="row"' if tag == "td" else ' scope="col"'
            marks = ' class="published"' if published[column] else ""
            scope = scope if kind == "th" else ""
            out.append(f"<{kind}{scope}{marks}>{inline(cell, link)}</{kind}>")
        return f"<tr>{''.join(out)}</tr>"

    body = "\n".join(cells(row, "td") for row in rows[1:])
    kind = "numbers" if numeric else "words"
    return (
        f'<div class="scroll" role="region" aria-label="table" tabindex="0"><table class="{kind}">'
        f"<thead>{cells(rows[0], 'th')}</thead>\n<tbody>{body}</tbody></table></div>"
    )


def split_row(line: str) -> list[str]:
    """The cells of a table's line."""
    cells = _CELL.split(line.strip().strip("|"))
    return [cell.strip().replace(r"\|", "|") for cell in cells]


def blocks(text: str, link: Rewrite = str, image: Picture | None = None) -> str:
    """Whole Markdown; without `image`, pictures are left out."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.strip().splitlines()
        while lines:
            first = lines[0]
            marks = len(first) - len(first.lstrip("#"))
            if marks:
                out.append(f"<h{marks}>{inline(first[marks:].strip(), link)}</h{marks}>")
                del lines[0]
            elif match := _IMAGE.match(first.strip()):
                if image is not None:
                    out.append(figure(*image(match["file"]), match["caption"], link))
                del lines[0]
            elif first.startswith("|"):
                taken = _take(lines, "|")
                numeric = "---:" in taken[1]
                rows = [split_row(line) for i, line in enumerate(taken) if i != 1]
                out.append(table(rows, link, numeric))
            elif first.startswith("- "):
                items = [f"<li>{inline(line[2:], link)}</li>" for line in _take(lines, "- ")]
                out.append(f"<ul>{''.join(items)}</ul>")
            else:
                out.append(f"<p>{inline(' '.join(lines), link)}</p>")
                lines = []
    return "\n".join(out)


def figure(source: str, width: int, caption: str, link: Rewrite = str) -> str:
    """A picture, never wider than `width`, with its caption: its text alternative as well."""
    plain = html.escape(re.sub(r"`|\[[^\]]*\]\([^)]*\)", "", caption).strip(), quote=True)
    return (
        f'<figure style="max-width:{width}px"><img src="{source}" alt="{plain}">'
        f"<figcaption>{inline(caption, link)}</figcaption></figure>"
    )


def _take(lines: list[str], start: str) -> list[str]:
    """The leading lines that begin with `start`, removed from `lines`."""
    count = next((i for i, line in enumerate(lines) if not line.startswith(start)), len(lines))
    taken = lines[:count]
    del lines[:count]
    return taken

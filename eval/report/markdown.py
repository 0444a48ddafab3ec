"""The report's Markdown as HTML: links and pictures found from the page, tables that can scroll."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markupsafe import Markup
from PIL import Image

from merit.errors import MeritError

PIXELS = 1.3  # of a picture for one of CSS: 150 dpi drawn for print, 8-point letters stay readable
SCROLL = '<div class="scroll" role="region" aria-label="table" tabindex="0">'


def to_html(text: str, folder: Path) -> Markup:
    """Markdown that was written for `folder`, on a page beside it.

    A picture is put in; the paragraph after it is its caption. Raises MeritError where there is no
    such picture.
    """
    return Markup(_MARKDOWN.render(text, {"folder": folder}))


def line_to_html(text: str, folder: Path) -> Markup:
    """The same for words without blocks."""
    return Markup(_MARKDOWN.renderInline(text, {"folder": folder}))


def picture(path: Path) -> tuple[str, int]:
    """(data URI, width in CSS pixels); as lossless WebP where that is smaller than the PNG.

    Raises MeritError where there is no such file.
    """
    try:
        content, kind = path.read_bytes(), "png"
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found; build the report again") from None
    packed, opened = io.BytesIO(), Image.open(io.BytesIO(content))
    opened.convert("RGB").save(packed, "webp", lossless=True, method=4)
    if len(packed.getvalue()) < len(content):
        content, kind = packed.getvalue(), "webp"
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return uri, round(opened.width / PIXELS)


# --- markdown-it's rules ------------------------------------------------------------------------


def _links(state: StateCore) -> None:
    """Links lead from the page, which lies beside the folder."""
    for token in (child for block in state.tokens for child in block.children or ()):
        if token.type == "link_open" and "://" not in str(token.attrs["href"]):
            token.attrs["href"] = f"{state.env['folder'].name}/{token.attrs['href']}"


def _figures(state: StateCore) -> None:
    """A picture that is a paragraph: with the one after it, its caption, it is a figure."""
    tokens = state.tokens
    for i in reversed(range(len(tokens))):
        start, content, end, *caption = (*tokens[i : i + 6], *[Token("", "", 0)] * 3)
        children = content.children or []
        if start.type != "paragraph_open" or [child.type for child in children] != ["image"]:
            continue
        uri, width = picture(state.env["folder"] / str(children[0].attrs["src"]))
        children[0].attrs["src"] = uri
        start.attrs["style"] = f"max-width:{width}px"
        start.tag = end.tag = "figure"
        if caption[0].type == "paragraph_open":
            caption[0].tag = caption[2].tag = "figcaption"
            tokens[i : i + 6] = [start, content, *caption[:3], end]


def _tables(state: StateCore) -> None:
    """The first column heads its rows; columns whose heading begins with "paper" are published.

    A table with columns that align right is one of numbers, others are of words.
    """
    table, column, published = Token("", "", 0), 0, set[int]()
    for token, content in pairwise(state.tokens):
        if token.type == "table_open":
            table, published = token, set()
            table.attrs["class"] = "words"
        elif token.type == "tr_open":
            column = -1
        elif token.type in ("th_open", "td_open"):
            column += 1
            if "style" in token.attrs:
                table.attrs["class"] = "numbers"
            if token.tag == "th" and content.content.startswith("paper"):
                published.add(column)
            token.attrs = {"scope": "col"} if token.tag == "th" else {}
            if token.tag == "td" and column == 0:
                token.attrs, token.tag = {"scope": "row"}, "th"
            if column in published:
                token.attrs["class"] = "published"
        elif token.type == "td_close" and column == 0:
            token.tag = "th"


def _scroll(self: Any, tokens: Sequence[Token], i: int, options: Any, env: Any) -> str:
    tag = self.renderToken(tokens, i, options, env)
    return SCROLL + tag if tokens[i].nesting == 1 else f"{tag}</div>"


_MARKDOWN = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
for _rule in (_links, _figures, _tables):
    _MARKDOWN.core.ruler.push(_rule.__name__, _rule)
_MARKDOWN.add_render_rule("table_open", _scroll)
_MARKDOWN.add_render_rule("table_close", _scroll)

"""Files of questions in VLMEvalKit's columns."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def encoded(image: Image.Image | str, **options: Any) -> str:
    """An image, or a small one of this colour, in base64; a PNG unless `options` say otherwise."""
    if isinstance(image, str):
        image = Image.new("RGB", (9, 9), image)
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | options))
    return base64.b64encode(buffer.getvalue()).decode()


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows; an index and an image are added where they have none."""
    full = [{"index": i, "image": encoded("red"), **row} for i, row in enumerate(rows)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(full[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(full)
    return path

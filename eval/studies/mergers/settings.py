from __future__ import annotations

from typing import Annotated

from pydantic import Field

from merit.config.settings import PositiveFloat
from merit.eval.studies.study import Study


class Mergers(Study):
    """Post-hoc mergers on one method's branches, at default and at swept scale (table 12)."""

    title = "Post-hoc mergers"

    method: str = "merit-2d"
    seeds: Annotated[list[int], Field(min_length=1)] = [1]
    scales: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.125, 0.25, 0.5, 1.0, 2.0]

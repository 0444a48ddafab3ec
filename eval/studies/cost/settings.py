from __future__ import annotations

from typing import Annotated

from pydantic import Field

from merit.eval.studies.study import Study


class Cost(Study):
    """Wall-clock time of the method's steps beside joint training's (table 15)."""

    title = "Wall-clock time"
    timed = True

    joint: str = "joint-1ep"
    methods: Annotated[list[str], Field(min_length=1)] = ["merit-1d", "merit-2d", "merit-3d"]

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from merit.config.settings import PositiveInt
from merit.eval.studies.study import Study


class Surface(Study):
    """Loss on the plane through the base, the joint and the merged model (figure 2)."""

    title = "Loss surface"

    joint: str = "joint-1ep"
    method: str = "merit-3d"
    seed: int = 1
    resolution: Annotated[int, Field(ge=3)] = 21  # points a side
    num_examples: PositiveInt = 256

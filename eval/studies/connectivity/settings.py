from __future__ import annotations

from typing import Annotated

from pydantic import Field

from merit.config.settings import PositiveInt
from merit.eval.studies.study import Study


class Connectivity(Study):
    """Linear mode connectivity of one method's branches and merged model (table 5)."""

    title = "Linear mode connectivity"

    method: str = "merit-2d"
    seed: int = 1
    num_points: Annotated[int, Field(ge=3)] = 21
    num_examples: PositiveInt = 512  # of the full mixture, on which the loss is measured

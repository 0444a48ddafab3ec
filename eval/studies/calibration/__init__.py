from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from merit.config.settings import PositiveInt
from merit.eval.studies.study import Study


class Calibration(Study):
    """Cosine of the n-example mean gradient to the `reference`-example one (table 11)."""

    title = "Calibration size"

    sizes: Annotated[list[PositiveInt], Field(min_length=1)] = [
        *(50, 100, 150, 200, 250, 300, 400, 500, 700),
    ]
    reference: PositiveInt = 1000  # itself one more row
    unit: Literal["task", "family"] = "family"  # a family's tasks are pooled where tasks are small
    num_draws: PositiveInt = 3

    @model_validator(mode="after")
    def _below_reference(self) -> Self:
        above = [n for n in self.sizes if n >= self.reference]
        if above:
            raise ValueError(f"`sizes` must lie below `reference`, {self.reference}: found {above}")
        return self

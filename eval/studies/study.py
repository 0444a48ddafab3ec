"""What the settings of all studies share."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from merit.config.settings import PositiveFloat, Settings

Methods = Annotated[list[str], Field(min_length=1)]
Seeds = Annotated[list[int], Field(min_length=1)]
Scales = Annotated[list[PositiveFloat], Field(min_length=1)]
NumPoints = Annotated[int, Field(ge=3)]  # along a path, ends included


class Study(Settings):
    """A block `studies.<name>`.

    Numbers of a `timed` study differ from run to run: the report stage leaves them beside the
    timings, and neither DVC nor git keeps them. A study that `reads_scores` waits for the
    evaluation; one `without_benchmarks` may be run where there is none.
    """

    title: ClassVar[str]
    timed: ClassVar[bool] = False
    reads_scores: ClassVar[bool] = True
    without_benchmarks: ClassVar[bool] = False

from typing import Annotated

from pydantic import Field

from merit.config.settings import PositiveFloat, PositiveInt
from merit.eval.studies.study import Study


class Fidelity(Study):
    """Strided and sketched against full gradients, and their norms (tables 16 and 19)."""

    title = "Strided gradients and their norms"

    strides: Annotated[list[PositiveInt], Field(min_length=1)] = [2, 5, 10]
    trims: list[Annotated[float, Field(ge=0, lt=0.5)]] = [0.0, 0.05, 0.1]
    sketch_sizes: list[PositiveInt] = [1021, 4093, 16_381, 65_537]
    num_sketches: PositiveInt = 5  # of every size, each of a seed of its own
    # of the calibration examples, with replacement: how stable the partition is in any case; every
    # one takes as long as the gradients stage
    num_resamples: Annotated[int, Field(ge=0)] = 5
    # of full gradients, tasks x parameters x 4 bytes; beyond it sketches of `reference_size` signed
    # sums (a cosine's standard error is at most 0.0005) stand for them
    max_scratch_gb: PositiveFloat = 32
    reference_size: PositiveInt = 4_194_301

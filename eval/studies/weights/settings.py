from __future__ import annotations

from typing import Annotated

from pydantic import Field

from merit.eval.studies.study import Study


class Weights(Study):
    """Every method's branches merged under every reading of `merge_weights`."""

    title = "What a merge weight counts"

    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)] = [1, 2, 3]

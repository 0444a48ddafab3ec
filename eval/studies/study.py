"""What the settings of all studies share."""

from __future__ import annotations

from typing import ClassVar

from merit.config.settings import Settings


class Study(Settings):
    """What all studies share.

    `reads` are the parts of the artifacts that its numbers come from (everything upstream of them
    is implied); `tables` the stems of the paper's tables that it measures again. Numbers of a
    `timed` study differ from run to run: pages link to it and do not repeat them.
    """

    title: ClassVar[str]
    reads: ClassVar[tuple[str, str]]
    tables: ClassVar[tuple[str, ...]] = ()
    timed: ClassVar[bool] = False

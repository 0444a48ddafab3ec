"""`python -m merit.run.ranks N EXPERIMENT STAGE [ITEM]`: a base or a branch in N processes.

It is torchrun, but for two things that a training of hours needs. A signal that stops it goes to
the processes, which have as long as they need for their checkpoint: torchrun kills them after 30
seconds. And if they exit with status 75 (stopped, can resume), so does this, not with 1.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from merit.errors import STOPPED, STOPPING
from merit.run.pool import end_with_parent


def main(num_ranks: str, experiment: str, stage: str, *items: str) -> int:
    """The exit status of all ranks."""
    import psutil
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def pass_on(number: int, _: object) -> None:
        for rank in psutil.Process().children():  # their own children read images: no concern
            rank.send_signal(number)

    end_with_parent()
    for number in STOPPING:
        signal.signal(number, pass_on)
    own = "--signals_to_handle=SIGINT,SIGHUP,SIGQUIT"
    command = ["-m", "merit", "run", experiment, stage]
    command += ["--only", *items] if items else []
    try:
        run.main(["--standalone", f"--nproc-per-node={num_ranks}", own, *command])
    except ChildFailedError as error:
        return common_status([failure.exitcode for failure in error.failures.values()])
    return 0


def common_status(codes: Sequence[int]) -> int:
    """75 if a rank has it, since the others are then ended; else the highest, at least 1."""
    return STOPPED if STOPPED in codes else max(1, *codes)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

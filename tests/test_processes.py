"""Everything that the settings of training offer runs, and computes what the plainest run does.

A table: what is trained x precision x checkpointing x packing in a single process; half of it, in
which any two of these meet, in two processes over gloo; in bfloat16 also in the single sharded
process of one GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merit.run.smoke_table import Cell, cells
from tests.processes import in_processes, outcome

CELLS = {str(cell): cell for cell in cells()}
STOPPED = Cell("vision", ("projector", "decoder"), packed=True)


@pytest.fixture(scope="module")
def single() -> dict[Cell, Any]:
    plain = {cell.plain for cell in CELLS.values()}
    return {cell: outcome(cell) for cell in plain | set(CELLS.values())}


@pytest.fixture(scope="module")
def several() -> dict[str, dict[Cell, Any]]:
    half = [c for c in CELLS.values() if c.bfloat16 ^ c.checkpointing ^ c.packed ^ True]
    low = [cell for cell in half if cell.bfloat16 and cell.sharded]
    return {
        name: dict(zip(chosen, in_processes(number, [(c,) for c in chosen]), strict=True))
        for name, number, chosen in (("pair", 2, half), ("one GPU's", 1, low))
    }


@pytest.mark.parametrize("name", CELLS)
def test_every_setting_trains_as_the_plainest_does(
    name: str, single: dict[Cell, Any], several: dict[str, dict[Cell, Any]]
) -> None:
    """The same losses, gradient norms and parameters but for rounding: float32's, or bfloat16's.

    Parameters that are not trained stay as they are.
    """
    cell = CELLS[name]
    expected = single[cell.plain]
    losses = np.array(expected["losses"])
    rounding = cell.rounding
    found = {"single": single[cell]} | {k: v[cell] for k, v in several.items() if cell in v}
    for kind, run in found.items():
        assert run["sharded"] == (cell.sharded and kind != "single"), kind
        assert run["frozen"], kind
        assert np.array(run["losses"])[:, 0] == pytest.approx(losses[:, 0], rel=rounding[0]), kind
        assert np.array(run["losses"])[:, 1] == pytest.approx(losses[:, 1], rel=rounding[1]), kind
        assert run["norm"] == pytest.approx(expected["norm"], rel=rounding[2]), kind
    low = single[cell]["losses"] != expected["losses"]
    assert low or not cell.bfloat16  # it is another arithmetic


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_another_number_of_processes_resumes(
    single: dict[Cell, Any], tmp_path: Path, before: int, after: int
) -> None:
    """Stopped after the first of two steps; the one before is not computed again."""

    def run(number: int, stop: int) -> dict[str, Any]:
        jobs = [(STOPPED, tmp_path, stop)]
        result: dict[str, Any] = in_processes(number, jobs)[0] if number > 1 else outcome(*jobs[0])
        return result

    stopped = run(before, 1)
    assert (stopped["stopped"], len(stopped["losses"])) == (True, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    resumed, expected = run(after, 0), single[STOPPED]
    assert np.array(resumed["losses"]) == pytest.approx(np.array(expected["losses"]), rel=1e-3)
    assert resumed["norm"] == pytest.approx(expected["norm"], rel=1e-5)

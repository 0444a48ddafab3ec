"""The golden hashes hold on this machine, and on emulated CPUs of two makers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from merit.io.machine import differences
from merit.pins import PINS

ROOT = Path(__file__).parents[1]
GOLDEN = json.loads((Path(__file__).parent / "golden/same_bytes.json").read_text(encoding="utf-8"))
RUN = ("-m", "tests.same_bytes")


def hashes_of(*command: str) -> dict[str, str]:
    """Those of a process without variables of its own, where `merit` pins all."""
    environment = {name: value for name, value in os.environ.items() if name not in PINS}
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    done = subprocess.run(
        command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_golden_hashes() -> None:
    if found := differences():
        pytest.skip("; ".join(found))
    assert hashes_of(sys.executable, *RUN) == GOLDEN


@pytest.mark.emulated
@pytest.mark.parametrize("cpu", ["Haswell-noTSX", "EPYC-Milan"])
def test_golden_hashes_on_an_emulated_cpu(cpu: str) -> None:
    """Seven minutes each. The interpreter itself: a link of a venv is not followed."""
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("qemu-x86_64 is not installed (Debian: qemu-user)")
    python = str(Path(sys.executable).resolve())
    assert hashes_of("qemu-x86_64", "-cpu", cpu, python, *RUN) == GOLDEN

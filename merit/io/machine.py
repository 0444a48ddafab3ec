"""Whether this machine computes the same bytes as every other one."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import zlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

from merit.errors import MeritError
from merit.pins import LATE, PINS

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"  # in a clone
COMPUTE = (  # the packages that compute or draw what is committed
    *("matplotlib", "numpy", "pillow", "scikit-learn", "scipy", "tokenizers", "torch"),
    *("torchvision", "transformers"),
)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; by default all.

    Raises MeritError for a name that is none: CUDA would leave it out, and what follows it.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:  # a container may lack nvidia-smi, WSL the devices
        number = len(list(Path("/dev").glob("nvidia[0-9]*")))
        if not number and shutil.which("nvidia-smi"):
            command = ["nvidia-smi", "-L"]
            listed = subprocess.run(command, capture_output=True, text=True, check=False)
            number = sum(line[:4] == "GPU " for line in listed.stdout.splitlines())
        return [str(i) for i in range(number)]
    names = [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    for name in names:
        if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name) or names.count(name) > 1:
            raise MeritError(
                f"CUDA_VISIBLE_DEVICES={chosen!r}: {name!r} is no GPU of its own; give numbers "
                "such as 0,1, names of `nvidia-smi -L`, or nothing for the CPU"
            )
    return names


@cache
def differences() -> tuple[str, ...]:
    """Why this machine's bytes may differ from those of others; nothing where they are the same.

    They are the same on Linux, an x86-64 CPU with AVX2 and no GPU, with the versions of
    constraints.txt and the variables of `merit.pins`.
    """
    found = []
    if (system := f"{platform.system()} {platform.machine()}") != "Linux x86_64":
        found.append(system)
    elif not re.search(r"\bavx2\b", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
        found.append("a CPU without AVX2")
    if visible_gpus():
        found.append("a GPU")
    if "ng" in zlib.ZLIB_RUNTIME_VERSION:
        found.append("zlib-ng, which writes the same pixels as other bytes")
    if CONSTRAINTS.is_file():
        lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
        tested = dict(line.split("==") for line in lines if "==" in line and line[0] != "#")
        found += [
            f"{name} {version(name)} in place of {tested[name]}"
            for name in COMPUTE
            if version(name) != tested[name]
        ]
    found += [
        f"{name}={os.environ.get(name)} in place of {value}"
        for name, value in PINS.items()
        if os.environ.get(name) != value
    ]
    return (*found, *(f"{name} was imported before merit" for name in LATE))

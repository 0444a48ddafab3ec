"""Run what a model has written: no network, no files but a small /tmp, limited time and memory.

Linux namespaces through util-linux' `unshare`, which needs no rights on most systems: an empty
network, read-only file systems, no /proc, /tmp and the working folder in memory, processes that end
with the first one, no capabilities, an empty environment, 16 MiB a file and of output, 64 processes
(not of root's). If the system does not allow it, nothing is run.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from merit.errors import MeritError

ADVICE = "leave benchmarks that run code out of `evaluation.benchmarks`, or use another machine"
TOOLS = ("unshare", "setpriv", "prlimit", "mount")
PREPARE = """
while read -r _ place _; do mount -o remount,bind,ro "$place" 2>/dev/null; done < /proc/self/mounts
mount -t tmpfs -o ro,size=4k tmpfs /proc || exit 97
mount -t tmpfs -o size=64m tmpfs /tmp && cd /tmp || exit 97
exec prlimit --as="$1" --cpu="$2" --fsize=16777216 --nproc=64 --core=0 \
  setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$3" -I -
"""
PROBE = """
import os, socket
found = []
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=1)
    found.append("the network can be reached")
except OSError:
    pass
try:
    open({file!r}, "w")
    found.append("files can be written")
except OSError:
    pass
if {secret!r} in os.environ:
    found.append("the environment can be read")
print("; ".join(found) or "isolated")
"""


def passes(program: str, timeout: float = 10.0, memory: int = 1 << 30) -> bool:
    """Whether a Python program ends without an error in `timeout` seconds and `memory` bytes."""
    return _run(program, timeout, memory)[0] == 0


def check_isolation(folder: Path) -> None:
    """Raises MeritError if programs cannot be isolated here, or could write to `folder`."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise MeritError(f"model code cannot be isolated here: `{missing[0]}` is missing; {ADVICE}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        target = folder.resolve() / ".merit-sandbox-probe"
        said = _run(PROBE.format(port=port, file=str(target), secret="HOME"), 30.0, 1 << 30)[1]
    target.unlink(missing_ok=True)
    if said.strip() != "isolated":
        found = (said.strip() or "no namespaces").splitlines()[-1]
        raise MeritError(f"model code cannot be isolated here ({found}); {ADVICE}")


def _run(program: str, timeout: float, memory: int) -> tuple[int, str]:
    """(exit status, output); the output is a file, whose size is limited as any other's."""
    unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork"]
    limits = [str(memory), str(int(timeout) + 1), sys.executable]
    command = [*unshare, "--ipc", "--uts", "--kill-child", "sh", "-c", PREPARE, "sh", *limits]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            status = subprocess.run(
                command,
                input=program,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
        output.seek(0)
        return status, output.read()

"""A real Slurm of one node for a test: controller, node and munge, started here as root.

Debian: `apt install slurm-wlm munge`. Nothing is installed or changed outside the folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
KillWait=1
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=node Default=YES State=UP
PartitionName=down Nodes=node State=DOWN
"""


def missing() -> str:
    """Why there can be no Slurm here; "" where there can."""
    absent = [command for command in COMMANDS if not find(command)]
    if absent:
        return f"{absent[0]} is not installed (Debian: slurm-wlm and munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons are started as root, this is another user"


def find(command: str) -> str | None:
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def slurm(folder: Path, cpus: int = 5) -> Iterator[Path]:
    """slurm.conf of a cluster that takes jobs while the block runs; its daemons end with it.

    Raises RuntimeError where it does not come up.
    """
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=folder, ports=free_ports(2), host=socket.gethostname(), cpus=cpus
        )
    )
    options = {"key-file": key, "socket": folder / "munge.socket", "seed-file": folder / "seed"}
    options |= {"pid-file": folder / "munged.pid", "log-file": folder / "munged.log"}
    munged = [f"--{name}={value}" for name, value in options.items()]
    daemons = [["munged", "--force", *munged], ["slurmctld"], ["slurmd", "-N", "node"]]
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    try:
        for command, *arguments in daemons:
            path = find(command)
            assert path is not None
            done = subprocess.run(
                [path, *arguments], env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{command}: {done.stderr.strip()}")
        deadline = time.monotonic() + 10
        while _state(environment) != "idle":
            if time.monotonic() > deadline:
                raise RuntimeError(f"no idle node: {(folder / 'slurmctld.log').read_text()[-500:]}")
            time.sleep(0.1)
        yield configuration
    finally:
        scancel = ["scancel", "--user=root", "--signal=KILL", "--full"]
        subprocess.run(scancel, env=environment, capture_output=True, check=False)
        for name in ("slurmd", "slurmctld", "munged"):
            _end(folder / f"{name}.pid")


def _state(environment: dict[str, str]) -> str:
    command = ["sinfo", "--noheader", "--partition=main", "--format=%T"]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def _end(pid_file: Path) -> None:
    """The daemon of this file, if it runs; by force, since slurmd would take ten seconds."""
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports

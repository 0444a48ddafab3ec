"""Items side by side: a process each, forked from one that has the libraries loaded.

A process that fails or is killed takes no other with it, and none outlives the command. Each slot
has GPUs of its own if the machine has any.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from multiprocessing.connection import wait
from typing import Any

import psutil

from merit.config import PARAMS_FILE, Params
from merit.errors import BUG, STOPPED, STOPPING, MeritError, Stopped, message_of
from merit.io.machine import visible_gpus
from merit.io.progress import Progress

Task = tuple[str, Callable[..., None], tuple[Any, ...]]  # label, function, arguments


def gpu_slots(params: Params) -> list[list[str]]:
    """The GPUs of each slot; without GPUs, empty ones: `launch.slots` or `workers` of them.

    Raises MeritError if the host has fewer GPUs than the settings ask for.
    """
    gpus, settings = visible_gpus(), params.launch
    size = settings.gpus_per_branch
    if not gpus or not size:
        return [[] for _ in range(settings.slots or params.workers)]
    number = settings.slots or max(1, len(gpus) // size)
    if number * size > len(gpus):
        raise MeritError(
            f"{PARAMS_FILE}: key `launch.gpus_per_branch`: {number} x {size} GPUs are asked for, "
            f"{len(gpus)} are visible here; lower it or `launch.slots`"
        )
    return [list(gpus[i * size : (i + 1) * size]) for i in range(number)]


def describe_slots(slots: Sequence[list[str]]) -> str:
    """Which GPUs are used, and how."""
    gpus = [gpu for slot in slots for gpu in slot]
    side = f"{len(slots)} items side by side" if len(slots) > 1 else "one item at a time"
    if not gpus:
        return f"no GPU is used: {side} on the CPU"
    each = f", {len(slots[0])} GPUs each" if len(slots[0]) > 1 and len(slots) > 1 else ""
    return f"GPU {', '.join(gpus)}: {side}{each}"


class Pool:
    """Runs tasks in the slots. Set the preloaded modules before the first task."""

    def __init__(self, slots: Sequence[list[str]], preload: Sequence[str]) -> None:
        self.slots = slots
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["merit.run.preloaded", *preload])

    def run(
        self, label: str, tasks: Sequence[Task], slots: Sequence[list[str]] | None = None
    ) -> dict[str, str]:
        """Run all tasks, in other `slots` if they are given; returns {label: why} of those that
        failed.

        Ctrl-C, SIGTERM and SIGUSR2 are passed on: a training writes its checkpoint first. Raises
        Stopped after a signal, KeyboardInterrupt after Ctrl-C.
        """
        todo, failures = list(tasks), {}
        running: dict[int, tuple[str, Any, list[str]]] = {}
        free = list(slots or self.slots)
        before = {number: signal.signal(number, _stop) for number in STOPPING}
        try:
            with Progress(label, len(tasks)) if len(tasks) > 1 else nullcontext() as progress:
                while todo or running:
                    while todo and free:
                        name, function, arguments = todo.pop(0)
                        gpus = free.pop(0)
                        process = self.context.Process(
                            target=_child, args=(gpus, function, arguments), name=name
                        )
                        # the fork server must outlive the signals that stop its children
                        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
                        process.start()
                        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
                        running[process.sentinel] = (name, process, gpus)
                    for sentinel in wait(list(running)):
                        name, process, gpus = running.pop(sentinel)  # type: ignore[arg-type]
                        process.join()
                        free.append(gpus)
                        if process.exitcode:
                            failures[name] = _ending(process.exitcode)
                        if progress:
                            progress.advance()
        except (KeyboardInterrupt, Stopped):
            for _, process, _ in running.values():
                process.terminate()
            for _, process, _ in running.values():
                process.join()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return failures


def _stop(number: int, frame: object) -> None:
    for again in STOPPING:  # Slurm and its job both send one; checkpoints are waited for
        signal.signal(again, signal.SIG_IGN)
    raise Stopped


def _ending(code: int) -> str:
    if code == STOPPED:
        return "stopped by a signal; the same command resumes it"
    if code > 0:
        return f"failed (exit status {code}); its message is above"
    memory = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"ended by signal {-code}{memory}"


def _child(gpus: list[str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run the function in this process; a user's mistake is one line and exit status 2."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes Ctrl-C on as SIGTERM
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    parent = multiprocessing.parent_process()
    assert parent is not None
    end_with(parent.join)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    try:
        function(*arguments)
    except Exception as error:  # not the exit status of a training that was stopped
        if (text := message_of(error)) is None:
            traceback.print_exc()
            print(BUG, file=sys.stderr)
            sys.exit(1)
        print(f"merit: error: {multiprocessing.current_process().name}: {text}", file=sys.stderr)
        sys.exit(2)


def end_with(parent_ends: Callable[[], None]) -> None:
    """End this process and its children once `parent_ends` returns, whatever they do.

    So what is killed leaves nothing running, and no lock that is held.
    """

    def end() -> None:
        parent_ends()
        for process in psutil.Process().children(recursive=True):  # torchrun's, readers of images
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()


def end_with_parent() -> None:
    """`end_with` the process that started this one, without a pipe to it."""
    parent = os.getppid()

    def parent_ends() -> None:
        while os.getppid() == parent:
            time.sleep(1)

    end_with(parent_ends)


def run_stage(module: str, experiment: str, item: str | None, hub: bool) -> None:
    """What a child does: one stage of one experiment, for one of its items."""
    from merit.check.access import set_access

    set_access(hub)
    importlib.import_module(module).run(experiment, item)

"""Stages without start-up: a process that has torch loaded forks a child for each one.

A stage of a miniature takes seconds, and torch's import as long. `make repro` starts the server;
`bin/merit` runs this file as its client, which passes arguments, folder and standard streams and
exits as the child does. Without the server, or where it is gone, the stage runs on its own.
"""

import array
import contextlib
import json
import os
import signal
import socket
import sys

# what stages import; heavy ones first
PRELOADED = (
    *("torch", "transformers", "numpy", "scipy.stats", "sklearn.cluster", "pandas"),
    *("merit.train.model", "merit.train.loop", "merit.train.branch", "merit.merge.model"),
    *("merit.eval.stages.evaluate", "merit.eval.answering.generate", "lm_eval.models.huggingface"),
    # transformers loads these only when asked for them: two seconds of every stage with a model
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2.modeling_qwen2",
)

GPUS = "CUDA_VISIBLE_DEVICES"  # the child's own, since it has the server's environment


def client(path: str, arguments: list[str]) -> int:
    """Run `merit <arguments>` in a child of the server; its exit status."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError:
            os.execv(sys.executable, [sys.executable, "-m", "merit", *arguments])
        gpus = os.environ.get(GPUS)
        asked = {"arguments": arguments, "folder": os.getcwd(), "gpus": gpus}
        request = json.dumps(asked).encode()
        streams = array.array("i", [0, 1, 2])
        connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        reply = connection.recv(64)
        if not reply:
            print(
                "merit: error: the process that stages are forked from is gone (out of memory?); "
                "run the same command again, with fewer `workers` in params.yaml if need be",
                file=sys.stderr,
            )
        return int(reply) if reply else 1


def serve(path: str) -> None:
    """Answer until the parent process ends. One thread: a forked child must not miss any."""
    import importlib

    from merit.run.access import set_access
    from merit.run.cli import quiet

    quiet()
    set_access(False)  # stages that may ask the hub are not forked
    for name in PRELOADED:
        importlib.import_module(name)
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        listener.settimeout(0.02)  # how late a finished child is noticed
        children: dict[int, socket.socket] = {}
        while os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                children |= _start(connection, listener)
            _collect(children)
    for child in children:
        os.kill(child, signal.SIGTERM)


def _start(connection: socket.socket, listener: socket.socket) -> dict[int, socket.socket]:
    data, control, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(3 * 4))
    request = json.loads(data)
    streams = array.array("i")
    for _, _, received in control:
        streams.frombytes(received)
    child = os.fork()
    if child:
        for stream in streams:
            os.close(stream)
        return {child: connection}
    listener.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    if request["gpus"] is not None:
        os.environ[GPUS] = request["gpus"]
    status = 1
    try:
        from merit.run.cli import main

        main(request["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _collect(children: dict[int, socket.socket]) -> None:
    """Tell the clients of finished children how they ended."""
    for child in list(children):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError), children.pop(child) as connection:
                connection.send(str(code if code >= 0 else 128 - code).encode())


if __name__ == "__main__":
    sys.exit(client(os.environ["MERIT_FORK"], sys.argv[1:]))
